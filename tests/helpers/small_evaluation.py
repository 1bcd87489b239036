"""An evaluation of a small random model on a few records, without seqio."""

import dataclasses
import io

import numpy as np
from PIL import Image
from small_model import SMALL

from ofa_jax.data.features import Stream
from ofa_jax.data.sampling import WeightedTask
from ofa_jax.data.sources.memory import InMemoryRecords
from ofa_jax.data.sources.scenes import Scenes
from ofa_jax.decoding import DecodingConfig
from ofa_jax.evaluation.eval_sources import EvalBatcher, RecordEvalSource
from ofa_jax.evaluation.eval_spec import EvalSpec
from ofa_jax.evaluation.evaluator import EvalTask, Evaluator
from ofa_jax.model import OFA, OFAConfig
from ofa_jax.preprocessing import images
from ofa_jax.preprocessing.examples import make_example
from ofa_jax.preprocessing.records import InvalidRecordError
from ofa_jax.sharding import Partitioner
from ofa_jax.tokenizers.vocabulary import OFAVocabulary

PIXELS = 32
SIZES = dict(
    width=16, ffn_width=32, num_heads=2, encoder_layers=1, decoder_layers=1, resnet_width=4
)
"""Of a model that compiles quickly."""
WORDS = ("a", "red", "apple", "green", "yes", "no", "and")


def scenes_config(data_dir) -> OFAConfig:
    """Returns the configuration of a small model for the Scenes in a folder."""
    vocab_size = Scenes(str(data_dir)).vocabulary(64).vocab_size
    return OFAConfig.scenes(**SIZES, code_image_size=32, vocab_size=vocab_size)


@dataclasses.dataclass(frozen=True)
class WordsPreprocessor:
    """Makes an example whose target is the record's words; its input contains a random number."""

    vocabulary: OFAVocabulary

    def __call__(self, record, rng):
        if "words" not in record:
            raise InvalidRecordError("it has no words")
        image = images.decode(record["image"]).resize((PIXELS, PIXELS))
        instruction = f" {record['words']} {rng.integers(10, 100)}"
        return make_example(
            self.vocabulary, instruction, f" {record['words']}", images.to_array(image)
        )


def records(count, invalid=()):
    """Returns images of different sizes with a few words each; invalid ones lack the words."""
    rng = np.random.default_rng(5)
    made = []
    for number in range(count):
        size = (40 + number, 70 - number)
        image = Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), np.uint8))
        encoded = io.BytesIO()
        image.save(encoded, "png")
        words = " ".join(rng.choice(WORDS, 3))
        record = {"id": f"r{number}", "image": encoded.getvalue(), "size": size, "words": words}
        if number in invalid:
            del record["words"]
        made.append(record)
    return InMemoryRecords(made)


def words_of(record):
    return record["words"]


def size_of(record):
    return list(record["size"])


def make_task(
    vocabulary,
    partitioner,
    kind="text",
    count=13,
    invalid=(),
    batch_size=8,
    metric=None,
    data=None,
    references=None,
    settings=None,
):
    """Returns a task of kind text, or of kind box, whose reference is the image's size.

    `data` takes the place of `records(count, invalid)`, and `references` of the words or the size.
    """
    bins = (vocabulary.bin_ids.start, vocabulary.bin_ids.stop)
    decoding = {
        "text": DecodingConfig(beam_size=2, max_length=5),
        "box": DecodingConfig(beam_size=1, max_length=4, min_length=4, constraint_range=bins),
    }[kind]
    spec = EvalSpec(
        f"some_{kind}",
        kind,
        references or (words_of if kind == "text" else size_of),
        (metric or (lambda references, predictions: {"count": len(predictions)}),),
        decoding,
        max_image_size=PIXELS,
    )
    stream = Stream("stream", spec.task, batch_size, {"inputs": 12, "targets": 8}, PIXELS)
    batcher = EvalBatcher(
        stream, vocabulary, spec.references, partitioner.num_data_shards, partitioner.data_shards
    )
    data = records(count, invalid) if data is None else data
    task = WeightedTask(spec.task, 1.0, data, WordsPreprocessor(vocabulary))
    settings = {"beam_size": decoding.beam_size, **(settings or {})}
    return EvalTask(spec, RecordEvalSource.open(task, batcher), batch_size, vocabulary, settings)


def make_model(vocabulary):
    return OFA(SMALL.replace(vocab_size=vocabulary.vocab_size))


def make_evaluator(model, folder, partitioner=None, **options):
    return Evaluator(model, partitioner or Partitioner(), folder, **options)
