"""Scenes and sentences for the downstream tasks on Scenes, composed when they are read.

classes          image, label                one object
captions         image, captions             one to four objects
questions        image, one question         one to four objects; several records of a scene
coded_captions   captions, codes             one object; the codes of the whole image
text             text                        sentences of the corpus
sentences        sentence, label             the same with their topics
"""

import dataclasses
import functools
from typing import Any

from ofa_jax.data.sources.base import RecordSource
from ofa_jax.data.sources.memory import InMemoryRecords
from ofa_jax.preprocessing import images
from ofa_jax.preprocessing.records import Record
from ofa_jax.tokenizers import ImageTokenizer

MAX_OBJECTS = {"classes": 1, "captions": 4, "questions": 4, "coded_captions": 1}
"""Kind of record with an image -> the most objects in one."""
KINDS = (*MAX_OBJECTS, "text", "sentences")
QUESTIONS_OF_A_SCENE = 4
_KEPT = 10_000
_FIELDS = {
    "classes": ("id", "image", "label"),
    "captions": ("id", "image", "captions", "object_labels"),
}


@dataclasses.dataclass(frozen=True)
class ComposedScenes:
    """A RecordSource of scenes that are a function of their number.

    Attributes:
      options: of the scenes, a `DownstreamScenes`.
      split: of Scenes.
      kind: a key of `MAX_OBJECTS`.
      count: number of scenes.
      image_tokenizer: of `coded_captions`.
      code_image_size: the side of the image whose codes these have.
    """

    options: Any
    split: str
    kind: str
    count: int
    image_tokenizer: ImageTokenizer | None = None
    code_image_size: int = 64

    def __len__(self) -> int:
        return self.count * (QUESTIONS_OF_A_SCENE if self.kind == "questions" else 1)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"There is no record {index}: there are {len(self)}.")
        if self.kind == "questions":
            return self._question(*divmod(int(index), QUESTIONS_OF_A_SCENE))
        scene = _compose(self.options, self.split, int(index))
        if self.kind == "coded_captions":
            return self._coded_caption(scene)
        return {name: scene[name] for name in _FIELDS[self.kind]}

    def _question(self, number: int, place: int) -> Record:
        """Returns a scene with one of its questions."""
        scene = _compose(self.options, self.split, number)
        place %= len(scene["questions"])
        return {
            "id": f"{scene['id']}-{place}",
            "image": scene["image"],
            **{name: [scene[name][place]] for name in ("questions", "answers", "answer_types")},
        }

    def _coded_caption(self, scene: Record) -> Record:
        """Returns the caption of a scene and the codes of its image."""
        assert self.image_tokenizer is not None
        image = images.resize_to_square(images.decode(scene["image"]), self.code_image_size)
        codes = self.image_tokenizer.encode(image[None])
        caption = [scene["image_caption"]]
        return {"id": scene["id"], "captions": caption, "codes": codes.reshape(-1)}


@functools.lru_cache(maxsize=_KEPT)
def _compose(options: Any, split: str, index: int) -> dict[str, Any]:
    """Composes a scene, which takes some milliseconds, once for all epochs."""
    from ofa_jax.scenes import downstream_records  # draws pictograms: when it is first needed

    return downstream_records.make_record(options, split, index)


def open_sentences(kind: str, split: str, count: int | None) -> RecordSource:
    """Returns the first sentences of a split of the corpus, with their topics in `sentences`.

    Args:
      kind: "text" or "sentences".
      split: of Scenes.
      count: at most this many; all when None.
    """
    from ofa_jax.scenes import corpus

    if kind == "text":
        records = [{"text": line} for line in corpus.load_sentences(split)]
    else:
        pairs = corpus.load_topics(split)
        records = [{"sentence": line, "label": topic} for line, topic in pairs]
    # Sentences of a country follow each other: any first ones would be of a few countries.
    chosen = sorted(range(len(records)), key=lambda number: _shuffled(number))[:count]
    return InMemoryRecords(
        tuple({"id": f"{split}-{number:07d}", **records[number]} for number in chosen)
    )


def _shuffled(number: int) -> int:
    """Returns a place in a fixed random order (a multiplicative hash, Knuth, volume 3, 6.4)."""
    return number * 2654435761 % 2**32
