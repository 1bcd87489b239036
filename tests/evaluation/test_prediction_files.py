"""Parts of predictions: complete ones are kept, partial ones are deleted."""

import hashlib

import jax
import pytest
from etils import epath

from ofa_jax.evaluation.prediction_files import PredictionFiles, read_lines


@pytest.fixture
def folder(tmp_path):
    return epath.Path(tmp_path) / "predictions"


def lines(*indices):
    return [{"index": index, "prediction": f"ö\u2028{index}"} for index in indices]


def as_process(monkeypatch, number):
    monkeypatch.setattr(jax, "process_index", lambda: number)


def test_parts_of_several_processes_are_merged_in_order(folder, monkeypatch):
    files = PredictionFiles(folder, 7, 4)
    assert files.unfinished() == [0, 1]
    files.write(1, lines(4, 5, 6))
    for process, indices in ((1, (1, 3)), (0, (2, 0))):
        as_process(monkeypatch, process)
        files.write(0, lines(*indices))
    assert files.unfinished() == []
    merged, digest = files.merge()
    assert merged == lines(*range(7)) == read_lines(files.path)
    assert digest == hashlib.sha256(files.path.read_bytes()).hexdigest()
    assert [path.name for path in folder.iterdir()] == ["predictions.jsonl"]
    assert files.unfinished() == [] and files.merge() == (lines(*range(7)), digest)


def test_partial_parts_are_deleted_and_unfinished(folder, monkeypatch):
    files = PredictionFiles(folder, 7, 4)
    files.write(0, lines(0, 1, 2, 3))
    as_process(monkeypatch, 1)
    files.write(1, lines(4, 6))  # the other process was killed
    as_process(monkeypatch, 0)
    assert files.unfinished() == [1]
    assert [path.name for path in folder.iterdir()] == ["part-00000.process-0000.jsonl"]
    with pytest.raises(ValueError, match="holds 4 predictions instead of 7"):
        files.merge()


def test_parts_of_another_size_are_deleted(folder):
    PredictionFiles(folder, 7, 4).write(0, lines(0, 1, 2, 3))
    PredictionFiles(folder, 7, 4).write(1, lines(4, 5, 6))
    assert PredictionFiles(folder, 7, 3).unfinished() == [0, 1, 2]
    assert not list(folder.iterdir())


def test_predictions_of_fewer_examples_are_unfinished(folder):
    files = PredictionFiles(folder, 2, 4)
    files.write(0, lines(0, 1))
    files.merge()
    assert PredictionFiles(folder, 3, 4).unfinished() == [0]


def test_arrays_are_written_as_lists(folder):
    import numpy as np

    files = PredictionFiles(folder, 1, 4)
    files.write(0, [{"index": 0, "references": np.array([1.5, 2], np.float32)}])
    assert files.merge()[0] == [{"index": 0, "references": [1.5, 2.0]}]
