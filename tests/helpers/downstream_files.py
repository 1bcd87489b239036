"""Official downstream files with one or a few lines each, named as in the official scripts."""

import base64
import io
import json
import pathlib

import numpy as np
from PIL import Image

CODES = " ".join(str(code) for code in range(0, 8192, 8))
QUESTIONS = ("What is on the table", "Is it red/white?", "how many are there?")
# Width, height, and a box within.
SIZE, BOX = (60, 40), (6.0, 4.0, 30.0, 36.0)
_LABELS = ("entailment", "neutral", "contradiction")


def make_image(seed: int = 0, size: tuple[int, int] = SIZE) -> bytes:
    """Encodes random pixels as a PNG."""
    rng = np.random.default_rng(seed)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def encoded(seed: int = 0) -> str:
    """Encodes random pixels as a PNG in base64."""
    return base64.urlsafe_b64encode(make_image(seed)).decode()


ROWS = {
    "caption_stage1": [
        ["7", "COCO_7", "A dog, on a red-brown sofa!", "dog&&sofa", encoded(1)],
        ["8", "COCO_8", "two birds", "bird", encoded(2)],
    ],
    "caption_stage2": [["7", "COCO_7", "A dog.&&the dog on it", "dog", encoded(1)]],
    "caption": [["7", "COCO_7", "A dog.&&the dog on it", "dog", encoded(1)]],
    "vqa": [
        [str(k), str(k), question, "0.3|!+cup&&1.0|!+two cups", "cup&&red table", encoded(k)]
        for k, question in enumerate(QUESTIONS)
    ],
    **{
        name: [["79_1", "79", "the Man-in black", ",".join(map(str, BOX)), encoded(3)]]
        for name in ("refcoco", "refcocoplus", "refcocog")
    },
    "snli_ve": [
        [f"{k}#1", str(k), encoded(k), "A man sleeps.", "a man/boy sits", label]
        for k, label in enumerate(_LABELS)
    ],
    "imagenet_1k": [[encoded(4), "2", "great white shark"], [encoded(5), "1", "tench"]],
    "coco_vqgan": [["5", CODES, "a  bench by the sea"]],
    "gigaword": [["the <unk> rose by ## points", "<unk> up ## points today"]],
    "cola": [["gj04", "They drank the pub dry.", "1"], ["gj05", "Dry the", "0"]],
    "sst2": [["so bad", "0"], ["So good", "1"]],
    "mrpc": [["One text", "another", "0"]],
    "qqp": [["0", "1", "2", "Why?", "How come?", "1"]],
    "mnli": [["It rains", "it is wet", "0"]],
    "qnli": [["0", "Who?", "It was Ann.", "entailment"]],
    "rte": [["0", "It was Ann.", "Ann did it.", "not_entailment"]],
}
CLASS_NAMES = ("tench", "great white shark")
VQA_ANSWERS = ("two cups", "cup", "two")


def write(folder: pathlib.Path) -> pathlib.Path:
    """Writes NAME_train.tsv, NAME_val.tsv, NAME_dev.tsv ..., all with the same lines."""
    for name, rows in ROWS.items():
        lines = "".join("\t".join(row) + "\n" for row in rows)
        for split in ("train", "val", "dev", "test", "testA", "testB", "val_subset"):
            (folder / f"{name}_{split}.tsv").write_text(lines)
    (folder / "coco_vqgan_full_test.tsv").write_text("\t".join(ROWS["coco_vqgan"][0]) + "\n")
    (folder / "trainval_ans2label.json").write_text(
        json.dumps({answer: number for number, answer in enumerate(VQA_ANSWERS)})
    )
    (folder / "class2label_new.json").write_text(json.dumps(CLASS_NAMES))
    return folder
