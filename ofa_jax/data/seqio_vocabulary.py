"""`OFAVocabulary` as seqio and its tools see it."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from ofa_jax.tokenizers.vocabulary import OFAVocabulary


class SeqioVocabulary(seqio.Vocabulary):
    """A view: text in, ids out, and back.

    OFA pads with 1, not with seqio's usual 0 (0 is `<s>`), so `pad_id` says 1 here. seqio's own
    packing and trimming assume 0; the loader and `OFAFeatureConverter` pad with `pad_id`.
    """

    def __init__(self, vocabulary: OFAVocabulary):
        super().__init__(extra_ids=0)
        self.wrapped = vocabulary

    @property
    def pad_id(self) -> int:
        return self.wrapped.pad_id

    @property
    def bos_id(self) -> int:
        return self.wrapped.bos_id

    @property
    def eos_id(self) -> int:
        return self.wrapped.eos_id

    @property
    def unk_id(self) -> int:
        return self.wrapped.unk_id

    @property
    def _base_vocab_size(self) -> int:
        return self.wrapped.vocab_size

    def _encode(self, s: str) -> Sequence[int]:
        return self.wrapped.encode(s).tolist()

    def _decode(self, ids: Sequence[int]) -> str:
        return self.wrapped.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        def encode(text):
            # bytes from a graph, an array of no dimensions from eager code.
            return self.wrapped.encode(np.asarray(text).item().decode("utf-8"))

        ids = tf.numpy_function(encode, [s], tf.int32, stateful=False)
        ids.set_shape([None])
        return ids

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        def decode(rows):
            flat = rows.reshape(-1, rows.shape[-1])
            texts = [self.wrapped.decode(row).encode("utf-8") for row in flat]
            return np.array(texts, object).reshape(rows.shape[:-1])

        text = tf.numpy_function(decode, [ids], tf.string, stateful=False)
        text.set_shape(ids.shape[:-1])
        return text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SeqioVocabulary) and self.wrapped == other.wrapped

    def __hash__(self) -> int:
        return hash(self.wrapped)


class CurrentVocabulary(seqio.Vocabulary):
    """The vocabulary that settings name, looked up whenever it is used.

    So tasks can be registered before they are configured.
    """

    def __init__(self, look_up: Callable[[], OFAVocabulary]):
        """
        Args:
          look_up: gives the vocabulary; two of the same function are equal.
        """
        super().__init__(extra_ids=0)
        self.__dict__["__look_up__"] = look_up

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__"):
            return super().__getattribute__(name)
        return getattr(_look_up(self)().as_seqio(), name)

    @property
    def bos_id(self):
        raise NotImplementedError

    eos_id = unk_id = _base_vocab_size = bos_id

    def _encode(self, s):
        raise NotImplementedError

    _decode = _encode_tf = _decode_tf = _encode

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CurrentVocabulary) and _look_up(self) == _look_up(other)

    def __hash__(self) -> int:
        return hash(_look_up(self))


def _look_up(vocabulary: CurrentVocabulary) -> Callable[[], OFAVocabulary]:
    return vocabulary.__dict__["__look_up__"]
