"""Fixtures: golden examples and the configuration that they were computed with."""

import json

import numpy as np
import pytest

from ofa_jax.preprocessing.boxes import as_boxes
from ofa_jax.preprocessing.negatives import NegativePool
from ofa_jax.preprocessing.objective_config import ObjectiveConfig
from ofa_jax.tokenizers.vocabulary import OFAVocabulary


@pytest.fixture(scope="module")
def fixed(golden):
    return json.loads((golden / "preprocess" / "fixed.json").read_text())


@pytest.fixture(scope="module")
def pixels(golden):
    return np.load(golden / "preprocess" / "fixed_images.npz")


@pytest.fixture(scope="module")
def config(shared_golden):
    """Returns the configuration of the golden run: shorter side 400, no RandAugment."""
    return ObjectiveConfig(
        OFAVocabulary.from_ofa_directory(shared_golden / "bpe"),
        negatives=NegativePool(),
        resize_range=(400, 400),
        randaugment=False,
    )


@pytest.fixture(scope="module")
def to_record(golden):
    """Returns a function that converts a row of an official TSV file to a record."""

    def convert(row):
        answers = [ref.split("|!+") for ref in row["refs"].split("&&") if "|!+" in ref]
        confidence, answer = max(answers, default=("1", ""), key=lambda pair: float(pair[0]))
        record = {
            "id": row["uniq_id"],
            "image": (golden / "preprocess" / row["image"]).read_bytes(),
            "data_set": row["dataset_name"],
            "object_labels": [name for name in row["gt_objects"].split("&&") if name],
        }
        if row["type"] == "caption":
            record["captions"] = [row["caption"]]
        elif row["type"] == "qa":
            record |= {
                "questions": [row["question"]],
                "answers": [answer],
                "answer_confidences": [float(confidence)],
            }
        else:
            record |= {
                "phrases": [row["caption"]],
                "phrase_boxes": as_boxes([float(x) for x in row["refs"].split(",")]),
            }
        return record

    return convert
