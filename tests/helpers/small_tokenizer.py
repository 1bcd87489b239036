"""A tiny VQGAN, a data set of a few images in memory, and runs of them."""

import dataclasses
import io

import numpy as np
from PIL import Image
from rich.console import Console
from small_run import Events

from ofa_jax.data.sources.memory import InMemoryRecords
from ofa_jax.preprocessing.negatives import NegativePool
from ofa_jax.tokenizers.vqgan import VQGANConfig
from ofa_jax.training.image_tokenizer.batches import ImageBatches
from ofa_jax.training.image_tokenizer.build import build_tokenizer_run
from ofa_jax.training.image_tokenizer.config import ImageTokenizerLoss, QuantizerConfig
from ofa_jax.training.image_tokenizer.step import TokenizerProgram
from ofa_jax.training.loop_config import LoopConfig
from ofa_jax.training.optimizer import OptimizerConfig

TINY = VQGANConfig(
    width=32,
    multipliers=(1, 1),
    num_blocks=1,
    attention_levels=(),
    latent_width=32,
    code_width=8,
    num_codes=16,
)
SIZE = 16


def png(array):
    """Returns the PNG file of an image."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, "png")
    return file.getvalue()


def flat_images(count=4, size=SIZE):
    """Returns uint8 [N, size, size, 3]: four squares of plain colours each."""
    colours = np.random.default_rng(0).integers(0, 256, (count, 2, 2, 3), np.uint8)
    return colours.repeat(size // 2, axis=1).repeat(size // 2, axis=2)


@dataclasses.dataclass(frozen=True)
class FewImages:
    """A data set of a few images; the last record of "damaged" holds no image."""

    count: int = 4
    size: int = SIZE
    splits = ("train", "validation", "damaged")

    def records(self, kind, split):
        assert kind == "images"
        records = [
            {"id": str(k), "image": png(image)}
            for k, image in enumerate(flat_images(self.count, self.size))
        ]
        if split == "damaged":
            records[-1] = {"id": "bad", "image": b"no image"}
        return InMemoryRecords(records)

    def negatives(self):
        return NegativePool()


def make_program(kind="nearest", features=None, size=SIZE, config=TINY, **options):
    """Returns a program; options are of `ImageTokenizerLoss`, quantiser and optimiser."""
    fields = {field.name for field in dataclasses.fields(ImageTokenizerLoss)}
    loss = {name: options.pop(name) for name in list(options) if name in fields}
    fields = {field.name for field in dataclasses.fields(QuantizerConfig)}
    quantizer = {name: options.pop(name) for name in list(options) if name in fields}
    optimizer = dict(learning_rate=3e-3, total_steps=1000, warmup=0, weight_decay=0.0)
    return TokenizerProgram(
        config,
        QuantizerConfig(kind, **quantizer),
        ImageTokenizerLoss(**loss),
        OptimizerConfig(**optimizer | options),
        features,
        size,
    )


def make_tokenizer_run(model_dir, total_steps=4, data_set=None, loop=None, **options):
    """Returns a run over `FewImages` that logs and saves every step."""
    periods = dict(log_period=1, checkpoint_period=1) | (loop or {})
    defaults = dict(
        model=TINY,
        images=ImageBatches(data_set or FewImages(), 4, SIZE),
        optimizer=OptimizerConfig(3e-3, 1000, warmup=0, weight_decay=0.0, ema_decay=0.5),
        quantizer=QuantizerConfig("nearest"),
        num_threads=1,
    )
    run = build_tokenizer_run(
        str(model_dir), loop=LoopConfig(total_steps, **periods), **defaults | options
    )
    return dataclasses.replace(run, writer=ImageEvents(), console=Console(file=io.StringIO()))


class ImageEvents(Events):
    """A metric writer that keeps scalars and images in memory."""

    def __init__(self):
        super().__init__()
        self.images = {}

    def write_images(self, step, images):
        self.images.setdefault(step, {}).update(images)
