"""Targets for every patch and noun of a scene, which `tools.pretrain_encoder` trains on.

A scene says which object each patch shows, where each object is, and the answers to questions
about it. An instruction is several short texts in a random order (nouns, present and absent;
phrases of regions; questions; captions, right and wrong), and the last token of each has a target:
how many objects of the noun there are, the box of the phrase, the answer to the question, whether
the caption is right.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from jaxtyping import Float, Int

from ofa_jax.model.config import PATCH_STRIDE
from ofa_jax.preprocessing import images, prompts
from ofa_jax.scenes import nouns
from ofa_jax.tokenizers.vocabulary import OFAVocabulary

MAX_COUNT = 3
"""Counts from here on are one class."""

NO_TARGET = -1
"""Count or answer of a text that has none."""

_FILLER = (
    prompts.IMAGE_CAPTIONING,
    prompts.GROUNDED_CAPTIONING,
    prompts.OBJECT_DETECTION,
    *prompts.TEXT_INFILLING,
    " a and an, with the exactly one two three four to of is in are",
)


@dataclasses.dataclass(frozen=True)
class Text:
    """A part of an instruction, and the target of its last token.

    Attributes:
      ids: tokens.
      count: number of objects of the noun, at most MAX_COUNT; NO_TARGET if it is not a noun.
      answer: first token of the answer; NO_TARGET if it is neither a question nor a caption.
      box: in pixels; None if the text has none.
    """

    ids: Sequence[int]
    count: int = NO_TARGET
    answer: int = NO_TARGET
    box: Float[np.ndarray, "4"] | None = None


@dataclasses.dataclass(frozen=True)
class TargetMaker(grain.transforms.RandomMap):
    """Makes an example for the encoder of a record of Scenes.

    Attributes:
      vocabulary: of the model.
      names: the nouns; their indices are the classes of patches, and `len(names)` is "no object".
      image_size: in pixels a side.
      length: tokens of an instruction, L.
      list_share: share of the instructions that are nouns alone. Attention from words to patches is
        learned from these: with many nouns in an image most examples have what is to be found.
      num_texts: texts with a target in an instruction at most, W.
      num_patches: patches with a box as target at most, K.
    """

    vocabulary: OFAVocabulary
    names: tuple[str, ...]
    image_size: int
    length: int = 40
    list_share: float = 1.0
    num_texts: int = 12
    num_patches: int = 12

    def random_map(
        self, record: Mapping[str, Any], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Returns the arrays of an example, without a batch axis.

        Returns:
          encoder_images uint8 [H, W, 3], encoder_input_tokens int32 [L]; patch_nouns int32 [P];
          patch_indices int32 [K], patch_bins float32 [K, 4] and patch_weights [K]; text_ends int32
          [W], counts and answers int32 [W], text_bins float32 [W, 4], text_weights [W].
        """
        known = [index for index, name in enumerate(record["object_labels"]) if name in self.names]
        labels = np.asarray([self.names.index(record["object_labels"][i]) for i in known], np.int32)
        boxes = np.asarray(record["object_boxes"], np.float32).reshape(-1, 4)[known]
        tokens, texts = self._instruction(record, labels, boxes, rng)
        return {
            "encoder_images": images.to_array(images.decode(record["image"])),
            **self._patch_targets(labels, boxes, rng),
            **tokens,
            **texts,
        }

    def _patch_targets(
        self,
        labels: Int[np.ndarray, " objects"],
        boxes: Float[np.ndarray, "objects 4"],
        rng: np.random.Generator,
    ) -> dict[str, np.ndarray]:
        """Returns the noun of every patch, and the boxes of some."""
        owners = patch_owners(boxes, self.image_size)
        shown = np.append(labels, len(self.names))[owners]  # owner -1 is the last entry
        chosen = rng.permutation(np.flatnonzero(owners >= 0))[: self.num_patches]
        indices = np.zeros(self.num_patches, np.int32)
        bins = np.zeros((self.num_patches, 4), np.float32)
        indices[: len(chosen)] = chosen
        bins[: len(chosen)] = self._bins(boxes[owners[chosen]])
        weights = (np.arange(self.num_patches) < len(chosen)).astype(np.float32)
        return {
            "patch_nouns": shown.astype(np.int32),
            "patch_indices": indices,
            "patch_bins": bins,
            "patch_weights": weights,
        }

    def _instruction(
        self,
        record: Mapping[str, Any],
        labels: Int[np.ndarray, " objects"],
        boxes: Float[np.ndarray, "objects 4"],
        rng: np.random.Generator,
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Returns the instruction, and the targets of its texts."""
        is_list = rng.random() < self.list_share
        texts = list(self._nouns(labels, boxes, rng, 6 if is_list else 2))
        if not is_list:
            texts += self._phrases(record, rng, 3)
            texts += self._questions(record, rng, 2)
            texts += self._captions(record, rng)
        filler = self._filler()
        tokens = np.full(self.length, self.vocabulary.pad_id, np.int32)
        targets = {
            "text_ends": np.zeros(self.num_texts, np.int32),
            "counts": np.full(self.num_texts, NO_TARGET, np.int32),
            "answers": np.full(self.num_texts, NO_TARGET, np.int32),
            "text_bins": np.zeros((self.num_texts, 4), np.float32),
            "text_weights": np.zeros(self.num_texts, np.float32),
        }
        position = number = 0
        for index in rng.permutation(len(texts)):
            text = texts[index]
            # Words in between, so that a noun is found by what it is and not by where it stands.
            gap = rng.integers(0, 3 if is_list else 2)
            end = position + gap + len(text.ids)
            if number == self.num_texts or end > self.length:
                continue
            tokens[position : position + gap] = rng.choice(filler, gap)
            tokens[position + gap : end] = text.ids
            targets["text_ends"][number] = end - 1
            targets["counts"][number] = text.count
            targets["answers"][number] = text.answer
            if text.box is not None:
                targets["text_bins"][number] = self._bins(text.box)
                targets["text_weights"][number] = 1
            position, number = end, number + 1
        return {"encoder_input_tokens": tokens}, targets

    def _nouns(
        self,
        labels: Int[np.ndarray, " objects"],
        boxes: Float[np.ndarray, "objects 4"],
        rng: np.random.Generator,
        number: int,
    ) -> Iterator[Text]:
        """Yields nouns that are present, and as many others, of which most are absent."""
        present = rng.permutation(np.unique(labels))[:number]
        for noun in (*present, *rng.integers(0, len(self.names), number)):
            of_noun = np.flatnonzero(labels == noun)
            name = self.names[noun]
            text = f" {name if rng.random() < 0.5 else nouns.plural(name)}"
            box = boxes[of_noun[0]] if len(of_noun) == 1 else None
            yield Text(self._encode(text), min(len(of_noun), MAX_COUNT), box=box)

    def _phrases(
        self, record: Mapping[str, Any], rng: np.random.Generator, number: int
    ) -> list[Text]:
        """Returns phrases of regions."""
        chosen = rng.permutation(len(record["phrases"]))[:number]
        boxes = np.asarray(record["phrase_boxes"], np.float32).reshape(-1, 4)
        return [Text(self._encode(f" {record['phrases'][i]}"), box=boxes[i]) for i in chosen]

    def _questions(
        self, record: Mapping[str, Any], rng: np.random.Generator, number: int
    ) -> list[Text]:
        """Returns questions."""
        chosen = rng.permutation(len(record["questions"]))[:number]
        return [
            Text(
                self._encode(f" {record['questions'][i]}"),
                answer=self._encode(f" {record['answers'][i]}")[0],
            )
            for i in chosen
        ]

    def _captions(self, record: Mapping[str, Any], rng: np.random.Generator) -> Iterator[Text]:
        """Yields a caption and a wrong one, whose answers are yes and no."""
        for field, answer in (("captions", prompts.YES), ("negative_captions", prompts.NO)):
            if captions := record[field]:
                caption = captions[rng.integers(len(captions))]
                yield Text(self._encode(f" {caption}"), answer=self._encode(answer)[0])

    def _bins(self, boxes: Float[np.ndarray, "*n 4"]) -> Float[np.ndarray, "*n 4"]:
        """Returns boxes in units of location bins, not rounded."""
        return boxes / self.image_size * (self.vocabulary.num_bins - 1)

    def _encode(self, text: str) -> tuple[int, ...]:
        return _encode(self.vocabulary, text)

    def _filler(self) -> Int[np.ndarray, " n"]:
        return np.concatenate([self._encode(text) for text in _FILLER])


@functools.lru_cache(maxsize=1 << 16)
def _encode(vocabulary: OFAVocabulary, text: str) -> tuple[int, ...]:
    """Encodes a text; most of them occur many times."""
    return tuple(int(i) for i in vocabulary.encode(text))


def patch_owners(
    boxes: Float[np.ndarray, "objects 4"], image_size: int
) -> Int[np.ndarray, " patches"]:
    """Returns the index of the object that each patch shows, row by row; -1 for none.

    A patch shows an object if its centre is in the object's box; of several, the one whose centre
    is nearest.
    """
    side = image_size // PATCH_STRIDE
    steps = (np.arange(side, dtype=np.float32) + 0.5) * PATCH_STRIDE
    x, y = np.tile(steps, side), np.repeat(steps, side)
    if not len(boxes):
        return np.full(side * side, -1, np.int64)
    left, top, right, bottom = (edge[:, None] for edge in boxes.T)
    distance = ((left + right) / 2 - x) ** 2 + ((top + bottom) / 2 - y) ** 2
    inside = (left <= x) & (x <= right) & (top <= y) & (y <= bottom)
    distance = np.where(inside, distance, np.inf)
    return np.where(inside.any(axis=0), distance.argmin(axis=0), -1)


def batches(
    records: Any, maker: TargetMaker, batch_size: int, seed: int, *, repeat: bool = True
) -> Iterator[dict[str, np.ndarray]]:
    """Yields batches of examples; the same seed gives the same batches.

    Args:
      records: of kind "all" (`ofa_jax.data.sources.scenes.Scenes`).
      maker: of the examples.
      batch_size: of training; without `repeat` the last batch may be smaller.
      seed: of order and targets.
      repeat: whether to shuffle and never end; otherwise every record once, in order.
    """
    dataset = grain.MapDataset.source(records).seed(seed)
    if repeat:
        dataset = dataset.shuffle().repeat()
    dataset = dataset.random_map(maker).batch(batch_size, drop_remainder=repeat)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=2)))
