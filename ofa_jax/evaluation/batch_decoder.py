"""Decodes batches of one task: its compiled program, and predictions as numpy arrays."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int32

from ofa_jax.decoding import Hypotheses, Trie, make_decoder, make_scorer
from ofa_jax.decoding.search import select_decoder_inputs
from ofa_jax.evaluation import postprocess
from ofa_jax.evaluation.eval_spec import EvalSpec
from ofa_jax.model import OFA
from ofa_jax.sharding import Partitioner
from ofa_jax.tokenizers.vocabulary import OFAVocabulary


@dataclasses.dataclass(frozen=True)
class DecodedBatch:
    """The hypotheses of a batch: G for each of R rows.

    Attributes:
      tokens: each hypothesis ends with eos, then padding; without a forced prefix.
      scores: -inf for a missing hypothesis.
    """

    tokens: Int32[np.ndarray, "R G T"]
    scores: Float32[np.ndarray, "R G"]

    def best(self, row: int) -> tuple[Int32[np.ndarray, " n"], float]:
        """Returns the hypothesis with the highest score, without eos, and its score."""
        index = int(self.scores[row].argmax())
        return postprocess.truncate_at_eos(self.tokens[row, index]), float(self.scores[row, index])

    def hypotheses(self, row: int) -> list[tuple[Int32[np.ndarray, " n"], float]]:
        """Returns all hypotheses, the best first (samples: in the order of drawing)."""
        return [
            (postprocess.truncate_at_eos(tokens), float(score))
            for tokens, score in zip(self.tokens[row], self.scores[row], strict=True)
            if np.isfinite(score)
        ]


@dataclasses.dataclass(frozen=True)
class _PendingBatch:
    """A batch that the device works on: its forced prefixes, and its tokens and scores to be."""

    prefix: Int[np.ndarray, "R P"] | None
    outputs: tuple[jax.Array, jax.Array]


class BatchDecoder:
    """Decodes batches according to a task's `EvalSpec`.

    Decoders share compiled programs: another task with the same shapes, and decoding settings that
    differ only in their numeric parameters, runs the same program.

        decoder = BatchDecoder(model, spec, vocabulary, partitioner)
        decoded = decoder(variables, batch)

    Calling the two halves separately lets the host prepare the next batch while the device works:

        pending = decoder.start(variables, batch)
        ...
        decoded = decoder.finish(pending)
    """

    def __init__(
        self,
        model: OFA,
        spec: EvalSpec,
        vocabulary: OFAVocabulary,
        partitioner: Partitioner | None = None,
        seed: int = 0,
        candidates_at_once: int = 32,
        num_best: int = 1,
    ):
        """Encodes the candidates, if the task has some; compiles nothing.

        Args:
          model: the model to decode with.
          spec: kind, decoding settings and candidates.
          vocabulary: the vocabulary of model and task.
          partitioner: the mesh of variables and batches; None for one device.
          seed: seed of sampling.
          candidates_at_once: see `make_scorer`; only for `score_all`.
          num_best: the hypotheses for each row, the best candidates; only for `score_all`.

        Raises:
          ValueError: settings that do not fit each other or the model.
        """
        self._model, self._spec, self._partitioner = model, spec, partitioner
        self._key = jax.random.key(seed)
        self._vocabulary = vocabulary
        self._candidate_table: np.ndarray | None = None
        candidates = _encode_candidates(spec, vocabulary)
        self._trie = None
        if candidates is not None:
            self._trie = Trie.from_sequences(candidates, model.config.vocab_size)
        if spec.score_all and candidates is not None:
            self._candidate_table = _pad_candidates(candidates)
            self._num_best = min(num_best, len(candidates))
            self._score = make_scorer(
                model,
                candidates,
                self._trie,
                candidates_at_once,
                restrict_to_trie=spec.decoding.renormalize,
            )
        else:
            self._make_decode(0)  # raises if the settings do not fit

    def start(
        self,
        variables: Any,
        batch: Mapping[str, np.ndarray],
        number: int = 0,
        seeds: Sequence[int] | None = None,
    ) -> _PendingBatch:
        """Starts to decode a batch and returns at once (the first time: once it is compiled).

        Args:
          variables: {"params", "batch_stats"}, on the mesh.
          batch: this host's rows (as for `Partitioner.put_batch`) of the `encoder_*` arrays and,
            where present, of decoder_code_mask and of decoder_prefix_tokens, int32 [rows, P], with
            which predictions are forced to begin; other arrays are ignored.
          number: number of the batch; samples follow from it and the seed,
          seeds: or from the seed and these, one for each row, whatever else is in the batch.

        Returns:
          The argument of `finish`.
        """
        features: dict[str, Any] = select_decoder_inputs(batch)
        prefix = features.get("decoder_prefix_tokens")
        if self._spec.decoding.is_guided:
            features["guidance_input_tokens"] = self._unconditional(
                features["encoder_input_tokens"].shape
            )
        if self._spec.decoding.method == "sample" and seeds is not None:
            features["decoder_seeds"] = np.asarray(seeds, np.uint32)
        with contextlib.ExitStack() as stack:
            if self._partitioner is not None:
                features = self._partitioner.put_batch(features)
                stack.enter_context(self._partitioner.mesh_context())
            if self._candidate_table is not None:
                outputs = _best_candidates(
                    self._score(variables, features), self._candidate_table, self._num_best
                )
                prefix = None  # the scored candidates follow it
            else:
                key = self._key if seeds is not None else jax.random.fold_in(self._key, number)
                decode = self._make_decode(0 if prefix is None else prefix.shape[1])
                found = decode(variables, features, key)
                outputs = found.tokens, found.scores
            if self._partitioner is not None:
                outputs = jax.device_put(outputs, self._partitioner.batch_sharding)
        return _PendingBatch(prefix, outputs)

    def _unconditional(self, shape: tuple[int, int]) -> Int32[np.ndarray, "R S"]:
        """Returns the instruction without its caption in every row.

        Raises:
          ValueError: it is longer than the rows.
        """
        assert self._spec.unconditional is not None
        ids = self._vocabulary.encode(self._spec.unconditional, add_bos=True, add_eos=True)
        if len(ids) > shape[1]:
            raise ValueError(
                f"The instruction without a caption has {len(ids)} tokens, and instructions are "
                f"padded to {shape[1]}: make them longer, or leave DecodingConfig.guidance_scale "
                "at 1."
            )
        row = np.pad(ids, (0, shape[1] - len(ids)), constant_values=OFAVocabulary.pad_id)
        return np.tile(row.astype(np.int32), (shape[0], 1))

    def _make_decode(self, prefix_length: int) -> Callable[..., Hypotheses]:
        """Returns a decoder that generates up to the task's maximum length after a prefix."""
        config = self._spec.decoding
        config = config.replace(max_length=config.max_length + prefix_length)
        return make_decoder(self._model, config, self._trie)

    def finish(self, pending: _PendingBatch) -> DecodedBatch:
        """Waits for a batch and returns this host's rows in their order."""
        to_numpy = np.asarray if self._partitioner is None else self._partitioner.local_rows
        tokens, scores = map(to_numpy, pending.outputs)
        if pending.prefix is not None:
            tokens = _strip_prefix(pending.prefix, tokens)
        return DecodedBatch(tokens, scores)

    def __call__(
        self,
        variables: Any,
        batch: Mapping[str, np.ndarray],
        number: int = 0,
        seeds: Sequence[int] | None = None,
    ) -> DecodedBatch:
        """Decodes a batch; see `start`."""
        return self.finish(self.start(variables, batch, number, seeds))


def _encode_candidates(spec: EvalSpec, vocabulary: OFAVocabulary) -> list[list[int]] | None:
    """Returns the token ids of the candidates; None for free generation."""
    if spec.candidates is None:
        return None
    texts = list(spec.candidates())
    if not texts:
        raise ValueError(f"EvalSpec of task {spec.task!r}: its list of candidates is empty.")
    return [vocabulary.encode(text).tolist() for text in texts]


def _strip_prefix(
    prefix: Int[np.ndarray, "R P"], tokens: Int[np.ndarray, "R G T"]
) -> Int[np.ndarray, "R G T"]:
    """Removes the forced prefixes from the start of the hypotheses."""
    length = tokens.shape[2]
    positions = np.arange(length) + (prefix != OFAVocabulary.pad_id).sum(axis=1)[:, None, None]
    kept = np.take_along_axis(tokens, np.minimum(positions, length - 1), axis=2)
    return np.where(positions < length, kept, OFAVocabulary.pad_id)


def _pad_candidates(candidates: list[list[int]]) -> Int32[np.ndarray, "C T"]:
    """Returns the candidates as rows of one array, each ended by eos, then padding."""
    table = np.full((len(candidates), max(map(len, candidates)) + 1), OFAVocabulary.pad_id)
    for row, ids in zip(table, candidates, strict=True):
        row[: len(ids)] = ids
        row[len(ids)] = OFAVocabulary.eos_id
    return table.astype(np.int32)


@functools.partial(jax.jit, static_argnames="number")
def _best_candidates(
    scores: Float[Array, "R C"], table: Int[Array, "C T"], number: int
) -> tuple[Int[Array, "R G T"], Float[Array, "R G"]]:
    """Returns the tokens and the scores of the best candidates of each row, the best first."""
    if number == 1:
        best = scores.argmax(axis=1)
        return jnp.take(table, best, axis=0)[:, None], scores.max(axis=1)[:, None]
    best_scores, best = jax.lax.top_k(scores, number)
    return jnp.take(table, best, axis=0), best_scores
