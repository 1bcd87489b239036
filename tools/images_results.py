"""The page results/images.md, made from results/images.json.

    {"tokenizer": {"psnr", "codebook_psnr", ...},
     "text_to_image": {"asked_nouns", "real_images", "shuffled_captions", "rows": {...}, ...},
     "infilling": {"asked_nouns", "real_images", "hidden_middle", "psnr", "rows": {...}, ...}}

A part that was not measured is not there. Shares are of 1.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from . import result_files

NAME = "images"
# (part, number) -> least or largest value, and whether it is the least.
AIMS: Mapping[tuple[str, str], tuple[float, bool]] = {
    ("text_to_image", "asked_nouns"): (0.5, True),
    ("text_to_image", "real_images"): (0.85, True),
    ("text_to_image", "shuffled_captions"): (0.1, False),
}
"""What is to be reached. The image tokenizer is to have a higher PSNR than the codebook."""

_ROWS = {
    "generated": "generated: the best of the candidates",
    "one_sample": "generated: one sample, not ranked",
    "real": "real images (upper bound)",
    "reconstructed": "real images from their codes",
    "shuffled_captions": "control: generated, captions of other images",
    "nearest": "the training images nearest to the generated ones",
    "infilled": "middle infilled",
    "hidden": "control: middle hidden",
}
_SHARES = {
    "nouns": "nouns",
    "nouns_captioned": "by captions",
    "nouns_detected": "by detection",
    "counts": "counts",
    "backgrounds": "backgrounds",
}
_MEASURES = {
    "psnr": "PSNR of the middle",
    "frechet_distance": "Frechet distance",
    "nearest_training_image": "distance to the nearest training image",
}
_TOKENIZER = {
    "psnr": ("PSNR", "{:.2f} dB"),
    "ssim": ("SSIM", "{:.3f}"),
    "feature_distance": ("distance of features", "{:.3f}"),
    "codes_used": ("share of codes in use", "{:.3f}"),
    "perplexity": ("perplexity of the codes", "{:.0f}"),
    "num_codes": ("codes", "{:,}"),
}


def load(path: pathlib.Path) -> dict[str, Any]:
    """Reads the JSON file; returns {} if there is none.

    Raises:
      DamagedFileError: it is torn, or not what `tools.images_on_scenes` writes.
    """
    return result_files.read(path, "the results of images on Scenes", page, empty={})


def save(directory: pathlib.Path, results: Mapping[str, Any]) -> None:
    """Writes both files atomically."""
    result_files.write(directory, NAME, results, page(results))


def page(results: Mapping[str, Any]) -> str:
    """Returns the Markdown page."""
    parts = [
        "# Images out, on Scenes",
        "Written by `python -m tools.images_on_scenes`. All images are of the test split, which no "
        "model has seen.",
    ]
    for name, describe in (
        ("tokenizer", _tokenizer),
        ("text_to_image", _text_to_image),
        ("infilling", _infilling),
    ):
        if found := results.get(name):
            parts += describe(found) + [_about(found)]
        else:
            parts.append(f"Not measured: `python -m tools.images_on_scenes --parts {name}`.")
    return "\n\n".join(parts) + "\n"


def _tokenizer(found: Mapping[str, Any]) -> list[str]:
    rows = [
        [words, form.format(found[name]), form.format(found[f"codebook_{name}"])]
        for name, (words, form) in _TOKENIZER.items()
    ]
    better = found["psnr"] > found["codebook_psnr"]
    return [
        "## Image tokenizer",
        f"{found['images']} images, encoded and decoded. The distance of features is that of the "
        "run's ResNet after its stem and each stage. A code stands for 8 x 8 pixels in both.",
        _table(["", "VQGAN", "codebook"], rows),
        f"By PSNR the VQGAN is {'better than' if better else 'not better than'} the codebook.",
        f"![Real images, and what both make of them]({found['sheet']})",
    ]


def _text_to_image(found: Mapping[str, Any]) -> list[str]:
    way = found["generation"]
    return [
        "## Text to image",
        f"{found['images']} test captions; {found['steps']:,} steps of fine-tuning on the codes of "
        f"the VQGAN; images of {found['image_size']} pixels; "
        f"{way['num_candidates']} candidates, guidance {way['guidance_scale']:g}, temperature "
        f"{way['temperature']:g}, top-k {way['top_k']}, top-p {way['top_p']:g}. The run on Scenes "
        "ranks the candidates by image-text matching. It then looks in each image for what its "
        "caption asks for: nouns in the caption that it writes and among the objects that it "
        "detects, counts in either, backgrounds by a question. The control looks in the same "
        "generated images for what another caption asks for.",
        _shares(found["rows"]),
        "The distances are those of the ResNet's last features, averaged over places: the Frechet "
        "distance to the real test images (of real images: as many of the training split, which "
        "is the least to expect), and the median distance to the nearest training image.",
        _aims("text_to_image", found),
        f"![Real, generated and nearest training images]({found['sheet']})",
    ]


def _infilling(found: Mapping[str, Any]) -> list[str]:
    return [
        "## Image infilling",
        f"The middle of {found['images']} test images, generated by the run on Scenes. Asked are "
        "the nouns all of whose objects have their centre in the middle; the run looks for them "
        "in the whole image, as above.",
        _shares(found["rows"]),
        f"![Real, infilled, reconstructed and hidden middles]({found['sheet']})",
    ]


def _shares(rows: Mapping[str, Mapping[str, Any]]) -> str:
    shares = [name for name in _SHARES if any(row.get(name) is not None for row in rows.values())]
    measures = [name for name in _MEASURES if any(name in row for row in rows.values())]
    header = ["", *(_SHARES[name] for name in shares), *(_MEASURES[name] for name in measures)]
    lines = []
    for key in (name for name in _ROWS if name in rows):
        row = rows[key]
        cells = [_ROWS[key], *(_percent(row.get(name)) for name in shares)]
        cells += [f"{row[name]:.2f}" if name in row else "-" for name in measures]
        lines.append(cells)
    asked = next(iter(rows.values()))["asked"]
    return (
        _table(header, lines)
        + f"\n\nAsked: {asked['nouns']:,} nouns"
        + (f", {asked['backgrounds']:,} backgrounds." if asked["backgrounds"] else ".")
    )


def _aims(part: str, found: Mapping[str, Any]) -> str:
    lines = []
    for (of_part, name), (bound, is_least) in AIMS.items():
        if of_part != part:
            continue
        value = found[name]
        met = value is not None and (value >= bound if is_least else value <= bound)
        words = "at least" if is_least else "at most"
        lines.append(
            [name.replace("_", " "), _percent(value), f"{words} {_percent(bound)}", _yes(met)]
        )
    return _table(["", "reached", "aim", "met"], lines)


def _about(found: Mapping[str, Any]) -> str:
    commands = "\n".join([*found["commands"], found["command"]])
    return (
        f"Seed {found['seed']}; commit {found['commit']}; {found['device']}; looked at by "
        f"`{found['checkpoint']}`.\n\n```bash\n{commands}\n```"
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
