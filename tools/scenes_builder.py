"""The TFDS builder of Scenes: how records become parquet files that TFDS can read.

    builder = tfds.builder_from_directory("data/scenes/images/1.1.0")
    builder.as_data_source("train")[0]

Two configs, "images" and "text". Examples keep their order, so that record i is scene i.
"""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import tensorflow_datasets as tfds

from ofa_jax.data.sources.scenes import VERSION

_DESCRIPTION = (
    "Scenes: pictograms on photographs with exact boxes, true captions, false captions, questions "
    "with answers and referring phrases; and sentences of the CIA World Factbook. Composed by "
    "tools/build_scenes.py from the packages that ATTRIBUTION.md credits."
)


class _WholeShardWriter(tfds.core.ExampleWriter):
    """Hands TFDS a whole shard as a list.

    The parquet writer of TFDS 4.9.10 cuts its input into batches of 100 with
    islice(input, i, i + 100), which on an iterator skips i examples each time: more than half of
    the data would be lost without an error. On a list it is right.
    """

    def write(self, path, iterator: Iterable):
        return super().write(path, list(iterator))


class Scenes(tfds.core.GeneratorBasedBuilder):
    """See the module.

    streams: split -> a function that gives the split's records in order.
    image_size: pixels of a side; of config "images".
    """

    VERSION = tfds.core.Version(VERSION)
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="images", description="images and what is true of them"),
        tfds.core.BuilderConfig(name="text", description="sentences"),
    ]

    def __init__(
        self,
        *,
        streams: Mapping[str, Callable[[], Iterator[dict]]],
        image_size: int | None = None,
        **options,
    ):
        self._streams = streams
        self._image_size = image_size
        super().__init__(file_format="parquet", **options)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features
        if self.builder_config.name == "text":
            fields = {"id": features.Text(), "text": features.Text()}
        else:
            strings = features.Sequence(features.Text())
            boxes = features.Tensor(shape=(None, 4), dtype=np.float32)
            fields = {
                "id": features.Text(),
                "image": features.Image(
                    shape=(self._image_size, self._image_size, 3), encoding_format="jpeg"
                ),
                "captions": strings,
                "negative_captions": strings,
                "questions": strings,
                "answers": strings,
                "answer_types": strings,
                "answer_confidences": features.Sequence(np.float32),
                "phrases": strings,
                "phrase_boxes": boxes,
                "true_phrases": strings,
                "true_phrase_boxes": boxes,
                "object_labels": strings,
                "object_boxes": boxes,
            }
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=features.FeaturesDict(fields),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(stream) for split, stream in self._streams.items()}

    def _generate_examples(self, stream):
        for index, record in enumerate(stream()):
            if "image" in record:
                record = {**record, "image": io.BytesIO(record["image"])}
            yield index, record

    def _example_writer(self) -> tfds.core.ExampleWriter:
        return _WholeShardWriter(file_format=self.info.file_format)
