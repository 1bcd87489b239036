"""A model that answers batches of one task: its compiled program, and answers as numpy arrays."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.decoding import Hypotheses, Trie, make_decoder, make_scorer
from ofa_jax.decoding.search import select_decoder_inputs
from ofa_jax.evaluation import postprocess
from ofa_jax.evaluation.eval_spec import EvalSpec
from ofa_jax.model import OFA
from ofa_jax.sharding import Partitioner
from ofa_jax.tokenizers.vocabulary import OFAVocabulary


@dataclasses.dataclass(frozen=True)
class DecodedBatch:
    """What was written to R questions, G hypotheses each.

    Attributes:
      tokens: int32 [R, G, T], each ended by eos, then padding; without a forced prefix.
      scores: float32 [R, G]; -inf for a hypothesis that is not there.
    """

    tokens: np.ndarray
    scores: np.ndarray

    def best(self, row: int) -> tuple[np.ndarray, float]:
        """The answer with the highest score: int32 [n] without eos, and its score."""
        place = int(self.scores[row].argmax())
        return postprocess.until_eos(self.tokens[row, place]), float(self.scores[row, place])

    def all(self, row: int) -> list[tuple[np.ndarray, float]]:
        """All answers that are there, the best first (samples: in the order of drawing)."""
        return [
            (postprocess.until_eos(tokens), float(score))
            for tokens, score in zip(self.tokens[row], self.scores[row], strict=True)
            if np.isfinite(score)
        ]


class BatchDecoder:
    """Answers batches in the way that a task's `EvalSpec` says.

    Answerers share what is compiled: another task with the same shapes, and decoding settings that
    differ only in numbers, run the same program.

        answerer = BatchDecoder(model, judging, vocabulary, partitioner)
        answers = answerer(variables, batch)

    The device works while the host prepares the next batch, if they are called apart:

        started = answerer.start(variables, batch)
        ...
        answers = answerer.finish(started)
    """

    def __init__(
        self,
        model: OFA,
        judging: EvalSpec,
        vocabulary: OFAVocabulary,
        partitioner: Partitioner | None = None,
        seed: int = 0,
        candidates_at_once: int = 32,
    ):
        """Encodes the allowed answers, if the task has a list of them; compiles nothing.

        Args:
          model: whose answers are wanted.
          judging: kind, decoding settings and allowed answers.
          vocabulary: of model and task.
          partitioner: the mesh that variables and batches are spread over; None for one device.
          seed: of answers that are drawn.
          candidates_at_once: see `make_scorer`; only for `score_all`.

        Raises:
          ValueError: settings that do not fit each other or the model.
        """
        self._model, self._judging, self._partitioner = model, judging, partitioner
        self._key = jax.random.key(seed)
        self._table: np.ndarray | None = None
        candidates = _encoded(judging, vocabulary)
        self._trie = None
        if candidates is not None:
            self._trie = Trie.from_sequences(candidates, model.config.vocab_size)
        if judging.score_all:
            self._table = _table(candidates)
            self._score = make_scorer(
                model,
                candidates,
                self._trie,
                candidates_at_once,
                restrict_to_trie=judging.decoding.renormalize,
            )
        else:
            self._decoder(0)  # says what does not fit

    def start(self, variables: Any, batch: Mapping[str, np.ndarray], number: int = 0) -> Any:
        """Gives a batch to the device and returns at once (the first time: when it is compiled).

        Args:
          variables: {"params", "batch_stats"}, on the mesh.
          batch: this host's rows of the `encoder_*` arrays (as `Partitioner.put_batch` takes
            them), and where there are any decoder_code_mask and decoder_prefix_tokens, int32
            [rows, P], which answers are made to begin with; others are not looked at.
          number: of the batch; drawn answers follow from it and the seed.

        Returns:
          What `finish` takes.
        """
        batch = select_decoder_inputs(batch)
        prefix = batch.get("decoder_prefix_tokens")
        with contextlib.ExitStack() as stack:
            if self._partitioner is not None:
                batch = self._partitioner.put_batch(batch)
                stack.enter_context(self._partitioner.mesh_context())
            if self._table is not None:
                written = _best(self._score(variables, batch), self._table)
                prefix = None  # what is scored comes behind it
            else:
                key = jax.random.fold_in(self._key, number)
                decode = self._decoder(0 if prefix is None else prefix.shape[1])
                found = decode(variables, batch, key)
                written = found.tokens, found.scores
            if self._partitioner is not None:
                written = jax.device_put(written, self._partitioner.batch_sharding)
        return prefix, written

    def _decoder(self, prefix_length: int) -> Callable[..., Hypotheses]:
        """A decoder whose longest answer, behind such a prefix, is the task's."""
        config = self._judging.decoding
        config = config.replace(max_length=config.max_length + prefix_length)
        return make_decoder(self._model, config, self._trie)

    def finish(self, started: Any) -> DecodedBatch:
        """Waits for a batch's answers: those to this host's rows, in their order."""
        prefix, written = started
        take = np.asarray if self._partitioner is None else self._partitioner.local_rows
        tokens, scores = map(take, written)
        return DecodedBatch(tokens if prefix is None else _behind(prefix, tokens), scores)

    def __call__(
        self, variables: Any, batch: Mapping[str, np.ndarray], number: int = 0
    ) -> DecodedBatch:
        """Answers a batch; see `start`."""
        return self.finish(self.start(variables, batch, number))


def _encoded(judging: EvalSpec, vocabulary: OFAVocabulary) -> list[list[int]] | None:
    """Token ids of the allowed answers, None where all are allowed."""
    if judging.candidates is None:
        return None
    texts = list(judging.candidates())
    if not texts:
        raise ValueError(
            f"EvalSpec of task {judging.task!r}: its list of allowed answers is empty."
        )
    return [vocabulary.encode(text).tolist() for text in texts]


def _behind(prefix: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Answers int32 [R, G, T] without the prefixes [R, P] that they were made to begin with."""
    length = tokens.shape[2]
    places = np.arange(length) + (prefix != OFAVocabulary.pad_id).sum(axis=1)[:, None, None]
    kept = np.take_along_axis(tokens, np.minimum(places, length - 1), axis=2)
    return np.where(places < length, kept, OFAVocabulary.pad_id)


def _table(candidates: list[list[int]]) -> np.ndarray:
    """int32 [C, T], every candidate ended by eos, then padding."""
    table = np.full((len(candidates), max(map(len, candidates)) + 1), OFAVocabulary.pad_id)
    for row, ids in zip(table, candidates, strict=True):
        row[: len(ids)] = ids
        row[len(ids)] = OFAVocabulary.eos_id
    return table.astype(np.int32)


@jax.jit
def _best(scores: jax.Array, table: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of float32 [R, C] the best candidate: tokens int32 [R, 1, T], score float32 [R, 1]."""
    best = scores.argmax(axis=1)
    return jnp.take(table, best, axis=0)[:, None], scores.max(axis=1)[:, None]
