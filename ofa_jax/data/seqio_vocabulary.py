"""`OFAVocabulary` as a seqio vocabulary."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from ofa_jax.data.seqio_evaluation import DecodedText as DecodedText
from ofa_jax.data.task_settings import SettingsSource
from ofa_jax.tokenizers.vocabulary import OFAVocabulary


class SeqioVocabulary(seqio.Vocabulary):
    """Delegates to an `OFAVocabulary`.

    OFA pads with 1, where seqio usually pads with 0 (`<s>` in OFA), so `pad_id` is 1. Packing and
    trimming in seqio assume 0; the loader and `OFAFeatureConverter` pad with `pad_id`.
    """

    def __init__(self, vocabulary: OFAVocabulary):
        super().__init__(extra_ids=0)
        self._wrapped = vocabulary

    @property
    def wrapped(self) -> OFAVocabulary:
        """The `OFAVocabulary` that methods delegate to."""
        return self._wrapped

    @property
    def pad_id(self) -> int:
        """The id of padding, 1."""
        return self.wrapped.pad_id

    @property
    def bos_id(self) -> int:
        """The id of `<s>`, 0."""
        return self.wrapped.bos_id

    @property
    def eos_id(self) -> int:
        """The id of `</s>`, 2."""
        return self.wrapped.eos_id

    @property
    def unk_id(self) -> int:
        """The id of `<unk>`, 3."""
        return self.wrapped.unk_id

    @property
    def _base_vocab_size(self) -> int:
        return self.wrapped.vocab_size

    def _encode(self, s: str) -> Sequence[int]:
        return self.wrapped.encode(s).tolist()

    def _decode(self, ids: Sequence[int]) -> DecodedText:
        return DecodedText(self.wrapped.decode(ids), ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        vocabulary = self.wrapped  # TensorFlow's threads do not see the context variables

        def encode(text: Any) -> np.ndarray:
            # A graph passes bytes, eager code a zero-dimensional array.
            return vocabulary.encode(np.asarray(text).item().decode("utf-8"))

        ids = tf.numpy_function(encode, [s], tf.int32, stateful=False)
        ids.set_shape([None])
        return ids

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        vocabulary = self.wrapped

        def decode(rows: np.ndarray) -> np.ndarray:
            flat = rows.reshape(-1, rows.shape[-1])
            texts = [vocabulary.decode(row.tolist()).encode("utf-8") for row in flat]
            return np.array(texts, object).reshape(rows.shape[:-1])

        text = tf.numpy_function(decode, [ids], tf.string, stateful=False)
        text.set_shape(ids.shape[:-1])
        return text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SeqioVocabulary) and self.wrapped == other.wrapped

    def __hash__(self) -> int:
        return hash(self.wrapped)


class TaskVocabulary(SeqioVocabulary):
    """The vocabulary of the settings that a task runs over, resolved at every use.

    So a task can be registered before its run is configured. `resolve` returns the vocabulary of
    given settings; all other methods use the default settings.
    """

    def __init__(self, source: SettingsSource):
        """Stores the source of the settings; vocabularies of the same source are equal."""
        seqio.Vocabulary.__init__(self, extra_ids=0)
        self._source = source

    @property
    def wrapped(self) -> OFAVocabulary:
        """The vocabulary of the default settings."""
        return self._source.of().vocabulary

    @property
    def settings(self) -> Any:
        """The settings in effect by default."""
        return self._source.of()

    def resolve(self, settings: Any) -> SeqioVocabulary:
        """Returns the vocabulary of the settings of a run."""
        return SeqioVocabulary(self._source.of(settings).vocabulary)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TaskVocabulary) and self._source == other._source

    def __hash__(self) -> int:
        return hash(self._source)
