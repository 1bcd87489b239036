"""From an example to model features with static shapes, and the stream that fixes the shapes.

An *example* is what a task's preprocessors make of a record (all arrays numpy):

    inputs       int32[S']        the instruction, framed by bos and eos
    targets      int32[T']        the answer, ended by eos
    image        uint8[H, W, 3]   absent, or of size 0, where there is none
    blank_box    int32[4]         y0 x0 y1 x1: pixels that are exactly 0 after normalising; optional
    loss_weight  float32          the example's confidence; 1 where absent
    code_mask    bool             whether the targets are image codes; False where absent
    unscored_targets  int32       so many tokens at the start are not scored; 0 where absent
    noisy_targets  int32[T']      what the decoder reads in place of the targets, to learn to go on
                                  from mistakes; absent or empty where it reads the targets

and, read only when the task is evaluated (both optional):

    view         float32[4]       x0 y0 x1 y1: the part of the stored image that `image` shows, in
                                  its pixels; all of it where absent
    target_prefix  int32[P]       what the answer is made to begin with

and, read only when the task is evaluated (both optional):

    view         float32[4]       x0 y0 x1 y1: the part of the stored image that `image` shows, in
                                  its pixels; all of it where absent
    target_prefix  int32[P]       what the answer is made to begin with

and, read only when the task is evaluated (both optional):

    view         float32[4]       x0 y0 x1 y1: the part of the stored image that `image` shows, in
                                  its pixels; all of it where absent
    target_prefix  int32[P]       what the answer is made to begin with

A *batch* has the names of DESIGN's doors, the same shapes at every step.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

PAD_ID, BOS_ID, EOS_ID = 1, 0, 2
PATCH_SIZE = 16

Example = Mapping[str, Any]
Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Stream:
    """A mixture plus its static shapes and batch size: one batch of it goes into every step.

    Attributes:
      name: how logs and the step call it.
      mixture_or_task_name: in the seqio registry.
      batch_size: examples per step over all hosts.
      task_feature_lengths: {"inputs": S, "targets": T}, in tokens.
      image_size: H = W of the images in pixels; None for text alone, and then the batch has no
        image at all and the ResNet never runs.
      num_sampled_patches: draw so many of the image's patches, without replacement, per example
        (196 of 576 in pretraining); None for all.
      code_targets: some targets are image codes (image infilling).
      loss_group: streams of one group are normalised together by their tokens (section 4 of the
        spec: pairs; and text, images and detection).
    """

    name: str
    mixture_or_task_name: str
    batch_size: int
    task_feature_lengths: Mapping[str, int]
    image_size: int | None = None
    num_sampled_patches: int | None = None
    code_targets: bool = False
    loss_group: str = "pairs"

    def __post_init__(self) -> None:
        where = f"Stream {self.name!r}"
        lengths = self.task_feature_lengths
        if set(lengths) != {"inputs", "targets"} or min(lengths.values()) < 1:
            raise ValueError(
                f"{where}: task_feature_lengths is {dict(lengths)}; give "
                "{'inputs': S, 'targets': T} with both at least 1."
            )
        if self.batch_size < 1:
            raise ValueError(f"{where}: batch_size is {self.batch_size}; it must be at least 1.")
        if self.image_size is not None and self.image_size % PATCH_SIZE:
            raise ValueError(
                f"{where}: image_size {self.image_size} is no multiple of {PATCH_SIZE} pixels, "
                "the size of a patch."
            )
        if self.num_sampled_patches is not None:
            if self.image_size is None or not 0 < self.num_sampled_patches <= self.num_patches:
                raise ValueError(
                    f"{where}: cannot sample {self.num_sampled_patches} of {self.num_patches} "
                    "patches."
                )

    @property
    def num_patches(self) -> int:
        """Patches of a whole image, 0 without one."""
        return 0 if self.image_size is None else (self.image_size // PATCH_SIZE) ** 2


def to_features(example: Example, stream: Stream, task_id: int, rng: np.random.Generator) -> Batch:
    """One example with static shapes, without the batch axis.

    What is too long is cut: inputs keep their eos at the end, targets lose it (the answer goes on).

    Args:
      example: see the module's text.
      stream: the shapes.
      task_id: index of the task in the run's list.
      rng: draws the sampled patches.

    Returns:
      The batch's arrays for one row.

    Raises:
      ValueError: the image's size is not the stream's; targets that are codes in a stream that
        does not expect them.
    """
    features = empty_features(stream, task_id)
    inputs = np.asarray(example["inputs"], np.int32)
    targets = np.asarray(example["targets"], np.int32)
    source_length = stream.task_feature_lengths["inputs"]
    target_length = stream.task_feature_lengths["targets"]
    if len(inputs) > source_length:
        inputs = np.append(inputs[: source_length - 1], inputs[-1])
    targets = targets[:target_length]

    features["encoder_input_tokens"][: len(inputs)] = inputs
    features["decoder_target_tokens"][: len(targets)] = targets
    read = example.get("noisy_targets")
    if read is None or not len(read):
        read = targets
    features["decoder_input_tokens"][1 : len(targets)] = read[: len(targets) - 1]
    features["decoder_loss_weights"][: len(targets)] = example.get("loss_weight", 1.0)
    unscored = min(int(example.get("unscored_targets", 0)), len(targets) - 1)
    features["decoder_target_tokens"][:unscored] = PAD_ID
    features["decoder_loss_weights"][:unscored] = 0

    image = example.get("image")
    if image is not None and image.size:
        _place_image(features, example, image, stream, rng)
    if bool(example.get("code_mask", False)):
        if not stream.code_targets:
            raise ValueError(
                f"Stream {stream.name!r} got an answer of image codes: set its code_targets=True."
            )
        features["decoder_code_mask"][...] = True
    return features


def _place_image(
    features: Batch, example: Example, image: np.ndarray, stream: Stream, rng: np.random.Generator
) -> None:
    if stream.image_size is None:
        raise ValueError(
            f"Stream {stream.name!r} has no image_size, but {stream.mixture_or_task_name} yields "
            "images: set it, or leave the image out of the task."
        )
    expected = (stream.image_size, stream.image_size, 3)
    if image.shape != expected:
        raise ValueError(
            f"Stream {stream.name!r} expects images of {expected}, but "
            f"{stream.mixture_or_task_name} yields {image.shape}: make the stream's image_size and "
            "the task's equal."
        )
    features["encoder_images"][...] = image
    features["encoder_image_mask"][...] = True
    if stream.num_sampled_patches is not None:
        chosen = rng.permutation(stream.num_patches)[: stream.num_sampled_patches]
        features["encoder_patch_indices"][...] = chosen
    blank = example.get("blank_box")
    if blank is not None and np.any(blank):
        if not stream.code_targets:
            raise ValueError(
                f"Stream {stream.name!r} got an image with a blanked part: set its "
                "code_targets=True."
            )
        features["encoder_image_blank_boxes"][...] = blank


def empty_features(stream: Stream, task_id: int) -> Batch:
    """A row that teaches nothing: padding, no image, all loss weights 0.

    It stands where a record was bad, so that a row's place stays a function of the step, and fills
    the last batch of an evaluation.
    """
    source_length = stream.task_feature_lengths["inputs"]
    target_length = stream.task_feature_lengths["targets"]
    features = {
        "encoder_input_tokens": np.full(source_length, PAD_ID, np.int32),
        "decoder_input_tokens": np.full(target_length, PAD_ID, np.int32),
        "decoder_target_tokens": np.full(target_length, PAD_ID, np.int32),
        "decoder_loss_weights": np.zeros(target_length, np.float32),
        "task_ids": np.array(task_id, np.int32),
    }
    # The encoder must see something, or its softmax has nothing to attend to.
    features["encoder_input_tokens"][0] = BOS_ID
    features["decoder_input_tokens"][0] = BOS_ID
    if stream.image_size is not None:
        size = stream.image_size
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


def stack(rows: Iterable[Batch]) -> Batch:
    """Rows to a batch: every array gets a leading axis."""
    rows = list(rows)
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
