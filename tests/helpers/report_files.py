"""A run directory as training and evaluation leave it, made by hand."""

import dataclasses
import json

import numpy as np
from clu import metric_writers
from PIL import Image

from ofa_jax.evaluation import gallery
from ofa_jax.evaluation.gallery import GalleryExample, LabelledBox
from ofa_jax.utils import files

TRUE, PREDICTED = (10.0, 20.0, 60.0, 50.0), (12.0, 18.0, 70.0, 55.0)


def grounding_example(index):
    """Returns an example of an image of 100 x 80 pixels with both boxes."""
    pixels = np.random.default_rng(index).integers(0, 256, (80, 100, 3), np.uint8)
    return GalleryExample(
        index=index,
        id=f"record {index} <b>&",
        instruction='which region does the text " a <cat> " describe?',
        target="10, 20, 60, 50",
        prediction="12, 18, 70, 55",
        score=-0.25,
        quality=0.5,
        image=gallery.data_uri(Image.fromarray(pixels)),
        width=100,
        height=80,
        target_boxes=[LabelledBox(TRUE, "a cat")],
        predicted_boxes=[LabelledBox(PREDICTED)],
    )


def write_run(directory, losses=(3.0, 2.0, 1.0), lone_surrogate=False):
    """Writes events, metrics and a gallery; returns the directory."""
    writer = metric_writers.SummaryWriter(str(directory))
    for step, loss in enumerate(losses, 1):
        writer.write_scalars(
            step,
            {
                "train/loss": loss,
                "train/loss/visual_grounding": loss,
                "train/learning_rate": 0.1 * step,
                "train/gradient_norm": float("nan") if step == 2 else 1.0,
                "train/examples_per_second": 100.0,
                "train/time/compilation": 0.2,
                "train/goodput": 0.8,
            },
        )
    writer.write_scalars(3, {"validation/loss/visual_grounding": 1.5})
    writer.write_scalars(3, {"validation/unigram_loss/visual_grounding": 2.5})
    writer.flush()
    writer.close()
    evaluation = directory / "evaluations" / "test"
    folder = evaluation / "3" / "visual_grounding"
    folder.mkdir(parents=True)
    metrics = {"visual_grounding": {"acc@0.5": 0.75, "not_finite": None}}
    files.write_json(evaluation / "metrics.json", {"2": metrics, "3": metrics})
    examples = [grounding_example(index) for index in range(2)]
    if lone_surrogate:
        examples[0] = dataclasses.replace(examples[0], prediction="half \ud83d </script>")
    files.write_json(folder / gallery.GALLERY_FILE, gallery.to_json(examples))
    (directory / "config.gin").write_text("MODEL_DIR = 'x'  # </pre><script>alert(1)</script>\n")
    return directory


def json_in(page, identity):
    """Returns the JSON in a page's script of an id."""
    start = page.index(">", page.index(f'id="{identity}"')) + 1
    return json.loads(page[start : page.index("</script>", start)])
