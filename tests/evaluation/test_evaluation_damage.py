"""An evaluation whose files were damaged, whose data changed, or whose records are odd."""

import dataclasses
import json

import numpy as np
import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st
from small_evaluation import make_evaluator, make_task, records

from ofa_jax.data.sources.memory import InMemoryRecords
from ofa_jax.evaluation import fingerprints
from ofa_jax.evaluation.evaluator import EvaluationError
from ofa_jax.evaluation.prediction_files import PredictionFiles, read_lines
from ofa_jax.evaluation.results import EvalResults, describe_findings, summarise
from ofa_jax.utils.json_values import to_json

STEP, COUNT = 7, 13


@pytest.fixture(scope="module")
def task(vocabulary, partitioner):
    return make_task(vocabulary, partitioner, count=COUNT, invalid=(6,), batch_size=4)


@pytest.fixture(scope="module")
def shared_evaluator(model, partitioner):
    """Returns an evaluator whose program is compiled once; `evaluator` gives it folders."""
    return make_evaluator(model, epath.Path("unused"), partitioner, batches_per_part=2)


class Logged(list):
    """Collects sentences."""

    def __call__(self, sentence):
        self.append(sentence)

    @property
    def text(self):
        return "\n".join(self)


@pytest.fixture
def logged():
    return Logged()


@pytest.fixture
def evaluator(shared_evaluator, tmp_path, logged, monkeypatch):
    monkeypatch.setattr(shared_evaluator, "_directory", epath.Path(tmp_path))
    monkeypatch.setattr(shared_evaluator, "_log", logged)
    return shared_evaluator


@pytest.fixture
def evaluate(evaluator, task, variables):
    """Evaluates the task, or another one; returns the result."""

    def run(other=None, weights="w"):
        return evaluator.evaluate(other or task, STEP, "here", variables, weights=weights)

    return run


@pytest.fixture
def folder(tmp_path, task):
    return tmp_path / str(STEP) / task.name


def is_finished(evaluator, task):
    return evaluator.is_finished(task, STEP, "here", "w")


def cut(data):
    return data[: len(data) // 2]


def flip(data):
    return data[:40] + bytes([data[40] ^ 1]) + data[41:]


DAMAGES = {
    "torn": cut,
    "empty": lambda data: b"",
    "zeros": lambda data: b"\0" * len(data),
    "binary": lambda data: b"\xff\xfe\x80" + data,
    "a list": lambda data: b"[1]\n",
    "a number": lambda data: b"3\n" * 13,
    "nothing": lambda data: b"null\n",
    "nested": lambda data: b"[" * 100_000,
    "without its last line": lambda data: data[: data[:-1].rfind(b"\n") + 1],
    "with a line twice": lambda data: data[: data.index(b"\n") + 1] + data,
    "without keys": lambda data: b'{"index": 0}\n' * 13,
    "with a note that is none": lambda data: data.replace(b'"id"', b'"notes": [3], "id"'),
    "a flipped bit": flip,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_predictions_are_made_anew_and_said_to_be(
    damage, evaluate, evaluator, task, folder, logged
):
    expected = evaluate()
    path = folder / "predictions.jsonl"
    intact = path.read_bytes()
    assert is_finished(evaluator, task) and not logged
    path.write_bytes(DAMAGES[damage](intact))
    assert not is_finished(evaluator, task) and evaluator.needs_model(task, STEP)
    again = evaluate()
    assert path.read_bytes() == intact
    assert again.metrics == expected.metrics
    assert again.decoded == COUNT
    assert f"{path} " in logged.text and "damaged predictions" in logged.text
    assert is_finished(evaluator, task)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_part_alone_is_made_anew(damage, evaluate, evaluator, task, folder, logged):
    evaluate()
    path = folder / "predictions.jsonl"
    intact, lines = path.read_bytes(), read_lines(path)
    path.unlink()
    files = PredictionFiles(epath.Path(folder), COUNT, 8)
    files.write(0, lines[:8])
    files.write(1, lines[8:])
    part = folder / "part-00001.process-0000.jsonl"
    part.write_bytes(DAMAGES[damage](part.read_bytes()))
    again = evaluate()
    # A bit that makes another valid line is not seen in a part: there is no digest of it yet.
    assert again.decoded == 5 or (damage == "a flipped bit" and again.decoded == 0)
    assert sorted(own.name for own in folder.iterdir()) == [
        "predictions.jsonl",
        "result.json",
        "settings.json",
    ]
    if damage != "a flipped bit":
        assert path.read_bytes() == intact
        assert part.name in logged.text or "predictions of part 1" in logged.text


def test_names_that_are_not_parts_and_unfinished_files_are_no_obstacle(evaluate, folder):
    folder.mkdir(parents=True)
    (folder / "part-x.jsonl").write_text("note")
    (folder / ".predictions.jsonl.host-1-0.tmp").write_text("{")
    (folder / "settings.json").write_text("{")
    assert evaluate().decoded == COUNT
    assert not list(folder.glob(".*.tmp"))


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_settings_are_taken_from_the_result(
    damage, evaluate, evaluator, task, folder, logged, variables
):
    evaluate()
    path = folder / "settings.json"
    intact = path.read_bytes()
    path.write_bytes(DAMAGES[damage](intact))
    if damage in ("with a line twice", "a flipped bit", "without keys"):
        return  # other settings, or valid ones: see below
    assert is_finished(evaluator, task)
    if damage != "with a note that is none":
        assert "damaged record of an evaluation" in logged.text
    with pytest.raises(EvaluationError, match="checkpoint = 'here' and not 'there'"):
        evaluator.evaluate(task, STEP, "there", variables, weights="w")
    assert evaluate().decoded == 0
    assert path.read_bytes() == intact


def test_predictions_without_any_settings_are_set_aside_and_made_anew(
    evaluate, evaluator, task, folder, logged
):
    expected = evaluate()
    predictions = (folder / "predictions.jsonl").read_bytes()
    (folder / "settings.json").write_text("{")
    (folder / "result.json").unlink()
    assert not is_finished(evaluator, task)
    assert "without the settings that made them" in logged.text
    again = evaluate()
    assert again.decoded == COUNT and again.metrics == expected.metrics
    assert (folder / "predictions.jsonl.unverified").read_bytes() == predictions


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_result_is_computed_again_from_the_predictions(
    damage, evaluate, evaluator, task, folder, logged
):
    expected = evaluate()
    path = folder / "result.json"
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    if damage not in ("a flipped bit", "without its last line", "with a note that is none"):
        assert not is_finished(evaluator, task)
        assert "damaged record of an evaluation" in logged.text
    again = evaluate()
    assert again.decoded == 0 and again.metrics == expected.metrics
    assert json.loads(path.read_text())["metrics"] == expected.metrics


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_table_of_metrics_is_put_together_from_the_results(
    damage, evaluate, tmp_path, logged, task
):
    result = evaluate()
    results = EvalResults(epath.Path(tmp_path))
    results.add(STEP, task.name, result.metrics)
    results.add(STEP, "other_task", {})
    path = tmp_path / "metrics.json"
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    (tmp_path / "9").mkdir()
    again = EvalResults(epath.Path(tmp_path), logged)
    if logged:
        assert "metrics.json" in logged.text and again.of_step(STEP) == {task.name: {"count": 12}}
    again.add(9, "third_task", {"a": 0.5})
    assert EvalResults(epath.Path(tmp_path)).of_step(9) == {"third_task": {"a": 0.5}}


@given(st.binary(max_size=60), st.sampled_from(["settings.json", "result.json", "metrics.json"]))
def test_no_bytes_in_a_record_of_an_evaluation_end_it(content, name):
    import tempfile

    from ofa_jax.evaluation.task_folder import TaskFolder

    with tempfile.TemporaryDirectory() as where:
        path = epath.Path(where)
        (path / name).write_bytes(content)
        task_folder = TaskFolder(path, "text", 2, lambda message: None)
        task_folder.result()
        assert not task_folder.is_finished()
        try:
            task_folder.check_settings({"a": 1})
        except EvaluationError:
            assert name == "settings.json" and content.strip()[:1] == b"{"
        EvalResults(path, lambda message: None)


# ---------------------------------------------------------------------- changed data and weights


def test_predictions_of_other_weights_are_refused(evaluate, evaluator, task):
    evaluate()
    with pytest.raises(EvaluationError, match="weights = 'w' and not 'v'"):
        evaluate(weights="v")
    assert evaluator.check_settings(task, STEP, "here")  # without checksums nothing is known


def data_settings(task):
    source = task.source
    return {
        "data": {
            "examples": fingerprints.of_examples(source.num_examples, source.content),
            "files": fingerprints.of_records(source.task.records),
        }
    }


def test_predictions_of_other_records_are_refused(
    evaluate, evaluator, vocabulary, partitioner, task
):
    def with_data(data):
        made = make_task(vocabulary, partitioner, data=data, batch_size=4)
        return dataclasses.replace(made, settings=made.settings | data_settings(made))

    evaluate()  # of an earlier version, which wrote nothing about the data
    first = with_data(records(COUNT, (6,)))
    assert evaluator.check_settings(first, STEP, "here", "w")
    assert evaluate(first).decoded == 0
    for change in ({"words": "no no no"}, {"image": records(20).records[19]["image"]}):
        changed = list(records(COUNT, (6,)).records)
        changed[12] = changed[12] | change
        with pytest.raises(EvaluationError, match="data.examples = .* and not"):
            evaluate(with_data(InMemoryRecords(changed)))
    assert evaluate(with_data(records(COUNT, (6,)))).decoded == 0


def test_files_of_records_are_part_of_the_fingerprint(tmp_path):
    @dataclasses.dataclass
    class Stored:
        files: tuple
        directory: str

    @dataclasses.dataclass
    class Wrapped:
        records: Stored

    for name in ("a.tsv", "b.tsv", "shards/0", "shards/1"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    stored = Stored((str(tmp_path / "a.tsv"), tmp_path / "b.tsv"), str(tmp_path / "shards"))
    found = fingerprints.of_records(Wrapped(stored))
    assert set(found) == {"0", "1", "a.tsv", "b.tsv"} and found["a.tsv"][0] == 5
    (tmp_path / "a.tsv").write_text("A.tsv")
    (tmp_path / "shards" / "1").unlink()
    changed = fingerprints.of_records(Wrapped(stored))
    assert changed["a.tsv"] != found["a.tsv"] and changed["b.tsv"] == found["b.tsv"]
    assert "1" not in changed


# ------------------------------------------------------------------------------------ odd records


class Odd:
    """Records of which some raise, or hold what nobody expects."""

    def __init__(self, changes, count=COUNT):
        self._records, self._changes = records(count), changes

    def __len__(self):
        return len(self._records)

    def __getitem__(self, index):
        change = self._changes.get(index, {})
        if isinstance(change, BaseException):
            raise change
        return {**self._records[index], **change}


def test_one_record_never_ends_an_evaluation(evaluate, vocabulary, partitioner, folder):
    changes = {
        1: ZeroDivisionError("division by zero"),
        2: {"image": b"not an image"},
        4: {"id": "\ud83d", "words": "a red \ud83d apple"},
        5: {"id": b"\xff\x00"},
        6: RecursionError("too deep"),
        7: {"references": float("nan")},
        8: {"references": object()},
        9: {"references": {"a": {1: np.float32("inf")}, "b": {"x", "y"}, "c": b"\xff"}},
        10: MemoryError("no memory"),
        11: {"words": None},
    }
    odd = make_task(
        vocabulary,
        partitioner,
        data=Odd(changes),
        batch_size=4,
        references=lambda record: record.get("references", "a"),
    )
    result = evaluate(odd)
    raw = (folder / "predictions.jsonl").read_bytes().decode("utf-8")
    lines = [json.loads(line, parse_constant=pytest.fail) for line in raw.split("\n") if line]
    assert [line["index"] for line in lines] == list(range(COUNT))
    errors = {line["index"]: line for line in lines if "error" in line}
    assert {1, 2, 6, 10} <= set(errors) <= {1, 2, 4, 6, 10, 11}
    assert errors[1]["reason"] == "unexpected error" and "division by zero" in errors[1]["error"]
    assert "image" in errors[2]["reason"] and errors[2]["id"] == "r2"
    assert lines[4]["id"] == lines[5]["id"][:1] == "\ufffd"
    assert lines[7]["references"] is None and lines[8]["references"] is None
    assert lines[8]["notes"][0][0] == "unreadable references" and "notes" not in lines[7]
    assert lines[9]["references"] == {"a": {"1": None}, "b": ["x", "y"], "c": "\ufffd"}
    assert result.skipped == len(errors) and result.examples == COUNT - len(errors)
    assert result.scored == result.examples - 2 and result.metrics == {"count": result.scored}
    assert result.findings["unreadable references"] == 1
    assert sum(result.findings.values()) >= len(errors) + 1
    assert f"{len(errors)} skipped because" in summarise("t", result)
    sentences = "\n".join(describe_findings("t", result))
    assert "2 of" in sentences and "unreadable references: 1" in sentences
    stored = json.loads((folder / "result.json").read_text(), parse_constant=pytest.fail)
    assert stored["bad_input"] == result.findings and stored["scored"] == result.scored


def test_a_failing_metric_keeps_the_predictions_and_is_repeated_without_decoding(
    evaluate, evaluator, vocabulary, partitioner, folder, variables
):
    def fails(references, predictions):
        assert (folder / "predictions.jsonl").exists()
        raise ZeroDivisionError("division by zero")

    failing = make_task(vocabulary, partitioner, metric=fails, batch_size=4)
    result = evaluate(failing)
    assert result.metrics == {} and result.failed == {
        "fails": "ZeroDivisionError: division by zero"
    }
    assert json.loads((folder / "result.json").read_text())["failed"] == result.failed
    assert not is_finished(evaluator, failing) and not evaluator.needs_model(failing, STEP)
    working = make_task(vocabulary, partitioner, batch_size=4)
    again = evaluator.evaluate(working, STEP, "here", None, weights="w")
    assert again.decoded == 0 and again.metrics == {"count": COUNT} and not again.failed
    assert is_finished(evaluator, working)


@given(
    st.recursive(
        st.one_of(
            st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(),
            st.sampled_from(["\ud83d", np.float32("nan"), np.arange(3), {1.5: (np.int8(1),)}]),
        ),
        lambda own: st.one_of(st.lists(own), st.tuples(own), st.dictionaries(st.text(), own)),
        max_leaves=8,
    )
)  # fmt: skip
def test_everything_that_is_written_is_strict_json(value):
    text = json.dumps(to_json(value), allow_nan=False, ensure_ascii=False).encode("utf-8")
    assert to_json(json.loads(text)) == to_json(value)


def test_what_json_does_not_know_is_refused():
    for value in (object(), {"a": [object()]}, complex(1)):
        with pytest.raises(TypeError):
            to_json(value)
