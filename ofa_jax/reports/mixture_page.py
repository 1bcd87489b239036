"""The page of a mixture: what training would read, before it reads it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seqio
from etils import epath
from jaxtyping import UInt8
from PIL import Image
from plotly import graph_objects

from ofa_jax.data.features import Example, single
from ofa_jax.evaluation.gallery import LabelledBox, data_uri
from ofa_jax.reports import curves
from ofa_jax.reports.mixture import FEATURES, Fit, TaskSample, length_summary
from ofa_jax.reports.page import write_page
from ofa_jax.tokenizers.vocabulary import OFAVocabulary

_MAX_TOKENS = 400
_CORNERS = 4


@dataclasses.dataclass(frozen=True)
class Token:
    """A token as the page shows it: its text, and its id on hover."""

    text: str
    id: int


@dataclasses.dataclass(frozen=True)
class ShownExample:
    """An example as the page shows it.

    Attributes:
      instruction: the input as text, for the label of the image.
      inputs, targets: tokens.
      image: what the model sees, as a data URI; None without one.
      width, height: of that image in pixels.
      given_boxes, target_boxes: from the bins of inputs and targets, in pixels of that image.
      weight: of the loss.
    """

    instruction: str
    inputs: Sequence[Token]
    targets: Sequence[Token]
    image: str | None
    width: int
    height: int
    given_boxes: Sequence[LabelledBox]
    target_boxes: Sequence[LabelledBox]
    weight: float


def write_mixture_page(
    path: epath.PathLike,
    title: str,
    samples: Sequence[TaskSample],
    lengths: Mapping[str, Mapping[str, int]],
    num_examples: int = 12,
    max_image_size: float = 512,
) -> None:
    """Writes the page of a mixture as one self-contained HTML file.

    Args:
      path: of the file.
      title: of the page.
      samples: of its tasks.
      lengths: task -> feature -> configured length in tokens; may lack tasks.
      num_examples: number of examples to show of each task.
      max_image_size: pixels that the last location bin stands for.
    """
    tokens = sum(_mean_tokens(sample) * sample.share for sample in samples)
    write_page(
        path,
        "mixture.html",
        title=title,
        plotly=curves.plotly_script(),
        tasks=[
            {
                "sample": sample,
                "token_share": _mean_tokens(sample) * sample.share / max(tokens, 1e-9),
                "fits": _fits(sample, lengths.get(sample.name, {})),
                "histogram": _histogram(sample, lengths.get(sample.name, {})),
                "examples": [
                    _shown(example, sample.vocabulary, max_image_size)
                    for example in sample.examples[:num_examples]
                ],
            }
            for sample in samples
        ],
    )


def _mean_tokens(sample: TaskSample) -> float:
    """Returns the mean number of target tokens of an example."""
    return float(sample.lengths("targets").mean())


def _fits(sample: TaskSample, lengths: Mapping[str, int]) -> list[tuple[str, str, Fit | None]]:
    """Returns for each feature its lengths in words, and how they fit the configured length."""
    rows = []
    for feature in FEATURES:
        own = sample.lengths(feature)
        length = lengths.get(feature)
        rows.append((feature, length_summary(own), None if length is None else Fit.of(own, length)))
    return rows


def _histogram(sample: TaskSample, lengths: Mapping[str, int]) -> str:
    """Returns the figure of the lengths in tokens, with the configured ones as lines."""
    figure = graph_objects.Figure(
        [
            graph_objects.Histogram(
                x=sample.lengths(feature), name=feature, marker_color=colour, opacity=0.7
            )
            for feature, colour in zip(FEATURES, curves.COLOURS, strict=False)
        ]
    )
    for feature, colour in zip(FEATURES, curves.COLOURS, strict=False):
        if feature in lengths:
            figure.add_vline(lengths[feature], line={"color": colour, "dash": "dot"})
    return curves.as_html(
        figure, curves.layout("Lengths", "examples", "tokens") | {"barmode": "overlay"}
    )


def _shown(example: Example, vocabulary: seqio.Vocabulary, max_image_size: float) -> ShownExample:
    """Returns an example as the page shows it."""
    image = np.asarray(example.get("image", ()))
    has_image = image.ndim == 3 and image.size > 0 and image.shape[2] in (1, 3)
    own = getattr(vocabulary, "wrapped", None)
    boxes: dict[str, list[LabelledBox]] = {feature: [] for feature in FEATURES}
    if isinstance(own, OFAVocabulary):
        boxes = {name: _boxes_of_bins(example[name], own, max_image_size) for name in FEATURES}
    return ShownExample(
        instruction=vocabulary.decode([int(token) for token in example["inputs"]]),
        inputs=_tokens(example["inputs"], vocabulary),
        targets=_tokens(example["targets"], vocabulary),
        image=data_uri(Image.fromarray(_visible(image, example))) if has_image else None,
        width=image.shape[1] if has_image else 0,
        height=image.shape[0] if has_image else 0,
        given_boxes=boxes["inputs"],
        target_boxes=boxes["targets"],
        weight=float(single(example, "loss_weight", 1.0)),
    )


def _visible(image: np.ndarray, example: Example) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the image with the pixels that the model sees as 0 in grey.

    Other tasks may have grey images, or values in [0, 1] or, normalised, in [-1, 1].
    """
    if image.dtype != np.uint8:
        low, high = float(image.min()), float(image.max())
        start, scale = (-1.0, 127.5) if low < 0 else (0.0, 255.0 if high <= 1 else 1.0)
        image = ((image - start) * scale).clip(0, 255).astype(np.uint8)
    image = np.broadcast_to(image, (*image.shape[:2], 3)).copy()
    blank = example.get("blank_box")
    if blank is not None and len(blank):
        y0, x0, y1, x1 = map(int, blank)
        image[y0:y1, x0:x1] = 128
    return image


def _tokens(ids: Any, vocabulary: seqio.Vocabulary) -> list[Token]:
    """Returns the tokens of a feature, at most some hundred."""
    shown = [Token(_piece(vocabulary, int(index)), int(index)) for index in ids[:_MAX_TOKENS]]
    return shown + ([Token(f"… {len(ids)} tokens", -1)] if len(ids) > _MAX_TOKENS else [])


def _piece(vocabulary: seqio.Vocabulary, index: int) -> str:
    """Returns the text of one token; its id in brackets where it has none."""
    return vocabulary.decode([index]) or f"[{index}]"


def _boxes_of_bins(ids: Any, vocabulary: OFAVocabulary, max_image_size: float) -> list[LabelledBox]:
    """Returns the boxes of all runs of four location bins, with the text after each as label."""
    ids = np.asarray(ids)
    is_bin = (ids >= vocabulary.bin_ids.start) & (ids < vocabulary.bin_ids.stop)
    found, place = [], 0
    while place <= len(ids) - _CORNERS:
        if not is_bin[place : place + _CORNERS].all():
            place += 1
            continue
        box = vocabulary.decode_box(ids[place : place + _CORNERS], max_image_size)
        place += _CORNERS
        end = place + int(np.argmax(is_bin[place:])) if is_bin[place:].any() else len(ids)
        label = vocabulary.decode(ids[place:end].tolist()).strip()
        x0, y0, x1, y1 = map(float, box)
        found.append(LabelledBox((x0, y0, x1, y1), label))
        place = max(end, place)
    return found
