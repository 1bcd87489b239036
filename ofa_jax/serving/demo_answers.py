"""The answers of the demo page as HTML: text, boxes on the image, generated images, candidates."""

import functools
import html
from collections.abc import Sequence
from typing import Any

import jinja2
from PIL import Image

from ofa_jax.evaluation.gallery import LabelledBox, data_uri
from ofa_jax.inference.predictions import Prediction
from ofa_jax.preprocessing import image_files
from ofa_jax.serving.uploads import Upload, crop_square, decode_data_uri

_MIDDLE_TASK = "image_infilling"


def render(template: str, **values: Any) -> str:
    """Renders a template of this package; all values are escaped."""
    text = _environment().get_template(template).render(values)
    return text.encode("utf-8", "replace").decode("utf-8")


@functools.cache
def _environment() -> jinja2.Environment:
    """Returns the environment of the templates beside this module."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("ofa_jax.serving", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def problem(sentence: str) -> str:
    """Returns what the page shows instead of an answer."""
    return f'<p class="ofa-problem" role="alert">{html.escape(sentence)}</p>'


def answer(
    prediction: Prediction,
    task: str | None,
    upload: Upload | None,
    region: Sequence[float] | None,
    infill: tuple[int, int],
) -> str:
    """Returns the answer to a question.

    Args:
      prediction: of the model.
      task: of the question, or of its instruction.
      upload: the image; None without one.
      region: of the question, in pixels of the image; None without one.
      infill: pixels a side of the image that infilling reads, and of its hidden middle.
    """
    return render(
        "demo_answer.html",
        text=describe(prediction),
        warnings=prediction.warnings,
        upload=upload,
        region=region,
        boxes=_labelled_boxes(prediction),
        images=_images(prediction, task, upload, infill),
        candidates=[
            {"text": describe(one), "score": one.score}
            for one in (prediction, *prediction.alternatives)
        ],
    )


def describe(prediction: Prediction) -> str:
    """Returns a prediction in words."""
    if prediction.codes is not None:
        return f"an image of {len(prediction.codes)} codes"
    if len(prediction.boxes) and not prediction.labels:
        return "; ".join(
            f"the box {', '.join(f'{corner:.0f}' for corner in box)}" for box in prediction.boxes
        )
    return prediction.text or prediction.symbols or "(nothing)"


def _labelled_boxes(prediction: Prediction) -> list[LabelledBox]:
    """Returns the predicted boxes that have an area."""
    labels = prediction.labels or ("",) * len(prediction.boxes)
    found = []
    for box, label in zip(prediction.boxes.tolist(), labels, strict=False):
        x0, y0, x1, y1 = (round(float(corner), 1) for corner in box)
        if x1 > x0 and y1 > y0:
            found.append(LabelledBox((x0, y0, x1, y1), label))
    return found


def _images(
    prediction: Prediction, task: str | None, upload: Upload | None, infill: tuple[int, int]
) -> list[tuple[str, str]]:
    """Returns captions and data URIs of generated images."""
    made = prediction.image
    if made is None:
        return []
    if task != _MIDDLE_TASK or upload is None:
        others = [(one.score, one.image) for one in prediction.alternatives if one.image]
        if not others:
            return [("generated image", data_uri(made))]
        return [(f"the best candidate, score {prediction.score:.3f}", data_uri(made))] + [
            (f"candidate {number}, score {score:.3f}", data_uri(image))
            for number, (score, image) in enumerate(others, 2)
        ]
    side, hidden = infill
    # The preview is turned and composed as the model sees it.
    whole = crop_square(image_files.decode(decode_data_uri(upload.preview))).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    corner = (side - hidden) // 2
    seen, filled = whole.copy(), whole.copy()
    seen.paste((128, 128, 128), (corner, corner, corner + hidden, corner + hidden))
    filled.paste(made.resize((hidden, hidden)), (corner, corner))
    return [
        ("what the model sees", data_uri(seen)),
        ("its middle infilled", data_uri(filled)),
        ("the true image", data_uri(whole)),
    ]
