"""Converts an example to model features with static shapes; `Stream` fixes the shapes.

An *example* is what the preprocessors of a task make of a record (all arrays are numpy):

    inputs       int32[S']        the instruction, framed by bos and eos
    targets      int32[T']        the target tokens, ended by eos
    image        uint8[H, W, 3]   absent, or of size 0, if the example has none
    blank_box    int32[4]         y0 x0 y1 x1: pixels set to exactly 0 after normalisation; optional
    loss_weight  float32          weight of every target token; 1 if absent
    code_mask    bool             whether the targets are image codes; False if absent
    unscored_targets  int32       number of leading target tokens left out of the loss; 0 if absent
    noisy_targets  int32[T']      replaces the targets as the decoder's input, so that the model
                                  learns to recover from mistakes; absent or empty for the targets

and, used only in evaluation (both optional):

    view         float32[4]       x0 y0 x1 y1: the part of the stored image that `image` shows, in
                                  pixels of the stored image; all of it if absent
    target_prefix  int32[P]       tokens that the decoded output starts with

A *batch* stacks the features of B examples. Its shapes are the same at every step:

    encoder_input_tokens       int32[B, S]
    encoder_images             uint8[B, H, W, 3]   streams with an image_size only
    encoder_image_mask         bool[B]             the same: whether the example has an image
    encoder_patch_indices      int32[B, K]         streams that sample patches only
    encoder_image_blank_boxes  int32[B, 4]         streams of images with code_targets only
    decoder_input_tokens       int32[B, T]         the targets shifted right behind bos
    decoder_target_tokens      int32[B, T]
    decoder_loss_weights       float32[B, T]
    decoder_code_mask          bool[B]             streams with code_targets only
    task_ids                   int32[B]            indices into the run's list of tasks
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import numpy as np
from jaxtyping import UInt8

from ofa_jax.preprocessing.examples import Example as Example
from ofa_jax.utils import options
from ofa_jax.utils.option_checks import checked

PAD_ID, BOS_ID, EOS_ID = 1, 0, 2
PATCH_SIZE = 16

Features = dict[str, np.ndarray]
"""The arrays of one example, named as in the module's docstring, without the axis B."""
Batch = dict[str, np.ndarray]
"""The stacked features of several examples."""


_PATCHES = options.Help(f"A patch has {PATCH_SIZE} x {PATCH_SIZE} pixels.")

AT_LEAST_ONE_STREAM = options.Help("Give at least one Stream.")


@checked
@dataclasses.dataclass(frozen=True)
class Stream:
    """A mixture with its static shapes and batch size; every step takes one batch of it.

    Attributes:
      name: identifies the stream in logs and in the training step.
      mixture_or_task_name: in the seqio registry.
      batch_size: examples per step over all hosts.
      task_feature_lengths: {"inputs": S, "targets": T}, in tokens.
      image_size: height and width of the images in pixels; None for text alone: such a batch has
        no images, and the ResNet does not run.
      num_sampled_patches: number of patches drawn from each image without replacement (196 of 576
        in pretraining); None for all.
      code_targets: whether some targets are image codes (image infilling).
      loss_group: streams of one group share one loss, normalised by their number of target
        tokens. Pretraining has two groups: pairs; and text, images and detection.
      shared_images: whether captions and matching, and grounding and grounded captioning, take two
        examples of one record, with one image, as in the reference implementation. It halves the
        work on images. This is another order of the examples, see `paired_order`.
    """

    name: options.Name
    mixture_or_task_name: options.Name
    batch_size: options.Count
    task_feature_lengths: Mapping[str, options.Count]
    image_size: Annotated[options.Pixels, options.MultipleOf(PATCH_SIZE), _PATCHES] | None = None
    num_sampled_patches: options.Count | None = None
    code_targets: bool = False
    loss_group: options.Name = "pairs"
    shared_images: bool = False

    def __post_init__(self) -> None:
        where = f"Stream {self.name!r}"
        lengths = self.task_feature_lengths
        if set(lengths) != {"inputs", "targets"}:
            raise ValueError(
                f"{where}: task_feature_lengths is {dict(lengths)}; give "
                "{'inputs': S, 'targets': T} with both at least 1."
            )
        if self.num_sampled_patches is not None:
            if self.image_size is None or self.num_sampled_patches > self.num_patches:
                raise ValueError(
                    f"{where}: cannot sample {self.num_sampled_patches} of {self.num_patches} "
                    "patches."
                )

    def fingerprint(self) -> dict[str, Any]:
        """Returns the fields on which the examples of a run depend.

        `shared_images` is there only where it is on: checkpoints of earlier versions lack it.
        """
        fields = dataclasses.asdict(self)
        if not self.shared_images:
            del fields["shared_images"]
        return fields

    @property
    def num_patches(self) -> int:
        """Number of patches of an image; 0 for text alone."""
        return 0 if self.image_size is None else (self.image_size // PATCH_SIZE) ** 2


def to_features(
    example: Example, stream: Stream, task_id: int, rng: np.random.Generator
) -> Features:
    """Converts one example to features with the stream's static shapes.

    The image is not copied: the features hold the example's own array.

    Sequences that are too long are truncated: inputs keep their final eos; targets lose it, as they
    do not end there.

    Args:
      example: see the module's docstring.
      stream: fixes the shapes.
      task_id: index of the task in the run's list.
      rng: draws the sampled patches.

    Raises:
      StreamMismatchError: the size of the image differs from the stream's, or the targets are
        image codes and the stream has no code_targets.
    """
    image = example.get("image")
    if image is not None and not image.size:
        image = None
    features = _empty_features(stream, task_id, zero_image=image is None)
    inputs = np.asarray(example["inputs"], np.int32)
    targets = np.asarray(example["targets"], np.int32)
    source_length = stream.task_feature_lengths["inputs"]
    target_length = stream.task_feature_lengths["targets"]
    if len(inputs) > source_length:
        inputs = np.append(inputs[: source_length - 1], inputs[-1])
    targets = targets[:target_length]

    features["encoder_input_tokens"][: len(inputs)] = inputs
    features["decoder_target_tokens"][: len(targets)] = targets
    decoder_inputs = example.get("noisy_targets")
    if decoder_inputs is None or not len(decoder_inputs):
        decoder_inputs = targets
    features["decoder_input_tokens"][1 : len(targets)] = decoder_inputs[: len(targets) - 1]
    features["decoder_loss_weights"][: len(targets)] = example.get("loss_weight", 1.0)
    unscored = min(int(single(example, "unscored_targets", 0)), len(targets) - 1)
    features["decoder_target_tokens"][:unscored] = PAD_ID
    features["decoder_loss_weights"][:unscored] = 0

    if image is not None:
        _place_image(features, example, image, stream, rng)
    if bool(single(example, "code_mask", False)):
        if not stream.code_targets:
            raise StreamMismatchError(
                f"Stream {stream.name!r} got targets of image codes: set its code_targets=True."
            )
        features["decoder_code_mask"][...] = True
    return features


def single(example: Example, name: str, default: float) -> float:
    """Returns a field of one number, which seqio's datasets hold in a vector of one element."""
    value = example.get(name)
    return default if value is None else np.asarray(value).reshape(-1)[0]


def _place_image(
    features: Features,
    example: Example,
    image: UInt8[np.ndarray, "h w 3"],
    stream: Stream,
    rng: np.random.Generator,
) -> None:
    """Writes an image, its sampled patches and its blank box into `features`."""
    if stream.image_size is None:
        raise StreamMismatchError(
            f"Stream {stream.name!r} has no image_size, but {stream.mixture_or_task_name} yields "
            "images: set it, or leave the image out of the task."
        )
    expected = (stream.image_size, stream.image_size, 3)
    if image.shape != expected:
        raise StreamMismatchError(
            f"Stream {stream.name!r} expects images of {expected}, but "
            f"{stream.mixture_or_task_name} yields {image.shape}: make the stream's image_size and "
            "the task's equal."
        )
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:
        features["encoder_images"] = image  # `stack` makes the only copy
    else:
        features["encoder_images"] = np.asarray(image).astype(np.uint8)
    features["encoder_image_mask"][...] = True
    if stream.num_sampled_patches is not None:
        chosen = rng.permutation(stream.num_patches)[: stream.num_sampled_patches]
        features["encoder_patch_indices"][...] = chosen
    blank = example.get("blank_box")
    if blank is not None and np.any(blank):
        if not stream.code_targets:
            raise StreamMismatchError(
                f"Stream {stream.name!r} got an image with a blanked part: set its "
                "code_targets=True."
            )
        features["encoder_image_blank_boxes"][...] = blank


class StreamMismatchError(ValueError):
    """The examples of a task do not fit its stream, whichever the record: the options are wrong."""


def empty_features(stream: Stream, task_id: int) -> Features:
    """Returns features without any loss: padding, no image, all loss weights 0.

    They take the place of an invalid record, so that all other rows keep their positions, and fill
    up the last batch of an evaluation.
    """
    return _empty_features(stream, task_id, zero_image=True)


def _empty_features(stream: Stream, task_id: int, zero_image: bool) -> Features:
    """Returns empty features; without `zero_image` their image is to be replaced."""
    source_length = stream.task_feature_lengths["inputs"]
    target_length = stream.task_feature_lengths["targets"]
    features = {
        "encoder_input_tokens": np.full(source_length, PAD_ID, np.int32),
        "decoder_input_tokens": np.full(target_length, PAD_ID, np.int32),
        "decoder_target_tokens": np.full(target_length, PAD_ID, np.int32),
        "decoder_loss_weights": np.zeros(target_length, np.float32),
        "task_ids": np.array(task_id, np.int32),
    }
    # Both sides keep one token that is not padding, so that attention has a position to attend to.
    features["encoder_input_tokens"][0] = BOS_ID
    features["decoder_input_tokens"][0] = BOS_ID
    if stream.image_size is not None:
        size = stream.image_size if zero_image else 0
        features["encoder_images"] = np.zeros((size, size, 3), np.uint8)
        features["encoder_image_mask"] = np.array(False)
        if stream.num_sampled_patches is not None:
            first = np.arange(stream.num_sampled_patches, dtype=np.int32)
            features["encoder_patch_indices"] = first
    if stream.code_targets:
        features["decoder_code_mask"] = np.array(False)
        if stream.image_size is not None:
            features["encoder_image_blank_boxes"] = np.zeros(4, np.int32)
    return features


def stack(rows: Iterable[Features]) -> Batch:
    """Stacks the features of several examples to a batch, along a new leading axis."""
    rows = list(rows)
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
