"""Writes the rows of golden/preprocess as official TSV files."""

import base64
import json
import pathlib

COLUMNS = ("uniq_id", "image", "caption", "question", "refs", "gt_objects", "dataset_name", "type")


def encoded(golden: pathlib.Path, image: str, urlsafe: bool = True) -> str:
    """Encodes an image of golden/preprocess in base64."""
    encode = base64.urlsafe_b64encode if urlsafe else base64.b64encode
    return encode((golden / "preprocess" / image).read_bytes()).decode()


def write_official_files(golden: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Writes the four files and the negative samples, named as in the official scripts."""
    fixed = json.loads((golden / "preprocess" / "fixed.json").read_text())
    pairs = []
    for number, item in enumerate(fixed["image_text"]):
        row = dict(item["row"])
        # Every other image in the standard alphabet.
        row["image"] = encoded(golden, row["image"], urlsafe=number % 2 == 0)
        pairs.append([row[column] for column in COLUMNS])
    others = {
        name: [[row[0], encoded(golden, row[1]), row[2]] for row in rows]
        for name, rows in (
            ("image", [item["row"] for item in fixed["image_infilling"]]),
            ("detection", [item["row"] for item in fixed["detection"]]),
        )
    }
    texts = [row for item in fixed["text_infilling"] for row in item["rows"]]
    files = {"vision_language": pairs, "text": texts, **others}
    for name, rows in files.items():
        lines = ["\t".join(row) + "\n" for row in rows]
        (folder / f"{name}_examples.tsv").write_text("".join(lines))
    negatives = folder / "negative_sample"
    negatives.mkdir()
    (negatives / "all_captions.txt").write_text("a cat on a mat\n\na red bus \ntwo birds\n")
    (negatives / "object.txt").write_text("cat\ndog\n\nbus\n")
    answers = {"other": ["blue", "tennis"], "how many": ["1", "2"], "yes/no": ["yes", "no"]}
    (negatives / "type2ans.json").write_text(json.dumps(answers))
    return folder


def write_faulty_files(golden, folder):
    """Writes the official files with three invalid pairs among the others; returns the folder."""
    folder = write_official_files(golden, folder)
    pairs = folder / "vision_language_examples.tsv"
    lines = pairs.read_text().splitlines()
    torn, unknown, unreadable = (lines[n].split("\t") for n in (0, 1, 2))
    unknown[-1], unreadable[1] = "video", "aGVsbG8="
    lines[4:4] = ["\t".join(columns) for columns in (torn[:-2], unknown, unreadable)]
    pairs.write_text("\n".join(lines) + "\n")
    return folder
