"""Files that jobs and evaluations write and read again: no line is lost, doubled or made up."""

import json
import pathlib
import random
from typing import Any

from etils import epath

from fuzz import cases
from fuzz.mutations import mutate_bytes, mutate_json_file, mutate_text
from ofa_jax.evaluation.prediction_files import PredictionFiles
from ofa_jax.evaluation.results import EvalResults
from ofa_jax.inference import shards
from ofa_jax.training.validation import History

_COUNT, _SIZE = 10, 4
_REFUSALS = (ValueError, OSError)
_JOB = {"checkpoint": "run/checkpoints/7", "num_inputs": _COUNT, "seed": 0, "decoding": None}


def _line(index: int) -> dict[str, Any]:
    return {
        "index": index,
        "id": f"r{index}",
        "instruction": "what is it?",
        "references": ["a dog"],
        "prediction": f"a dog \u2028 {index}",
        "score": -0.5,
    }


def _answer(index: int) -> dict[str, Any]:
    return {"id": f"r{index}", "instruction": "what is it?", "answer": f"a dog \u2028 {index}"}


class OutputFiles(cases.Target):
    """Damages an output of an interrupted job, and lets the job go on."""

    name = "outputs"

    def run(self, rng: random.Random, folder: pathlib.Path) -> str:
        """Runs one of the kinds of outputs."""
        kinds = (self._predictions, self._answers, self._metrics, self._validations)
        return rng.choice(kinds)(rng, folder)

    def _predictions(self, rng: random.Random, folder: pathlib.Path) -> str:
        """Damages parts of predictions, or all of them, and finishes the evaluation."""

        digest: list[str] = []

        def finish() -> list[Any]:
            known = digest[0] if digest else None
            files = PredictionFiles(epath.Path(folder), _COUNT, _SIZE, digest=known)
            for part in files.unfinished():
                files.write(part, map(_line, range(part * _SIZE, min((part + 1) * _SIZE, _COUNT))))
            lines, written = files.merge()
            digest.append(written)
            return lines

        files = PredictionFiles(epath.Path(folder), _COUNT, _SIZE)
        for part in range(rng.randint(1, 3)):
            files.write(part, map(_line, range(part * _SIZE, min((part + 1) * _SIZE, _COUNT))))
        if rng.random() < 0.4:
            finish()
        expected = [_line(index) for index in range(_COUNT)]
        return self._finish(rng, folder, "*.jsonl", finish, expected, bool(digest))

    def _answers(self, rng: random.Random, folder: pathlib.Path) -> str:
        """Damages answers or the record of a job, and resumes it."""
        outputs = shards.Shards(folder, _COUNT, _SIZE)

        def write(shard: int) -> None:
            outputs.write(shard, [_answer(index) for index in outputs.inputs(shard)])

        def finish() -> list[Any]:
            shards.check_job_file(folder, _JOB)
            for shard in outputs.unfinished(range(outputs.count)):
                write(shard)
            outputs.count_lines(range(outputs.count))
            texts = [outputs.path(shard).read_text("utf-8-sig") for shard in range(outputs.count)]
            return [json.loads(line) for text in texts for line in text.split("\n") if line]

        shards.write_job_file(folder, _JOB)
        for shard in range(rng.randint(1, outputs.count)):
            write(shard)
        pattern = rng.choice(("*.jsonl", "*.jsonl", "job.json"))
        return self._finish(rng, folder, pattern, finish, [_answer(k) for k in range(_COUNT)])

    def _finish(
        self,
        rng: random.Random,
        folder: pathlib.Path,
        pattern: str,
        finish: Any,
        expected: Any,
        known: bool = False,
    ) -> str:
        """Damages one file, finishes the job, and compares what was written.

        Args:
          rng: the source of randomness.
          folder: of the job.
          pattern: of the files, one of which is damaged.
          finish: lets the job go on; returns its lines.
          expected: the lines of an undamaged job.
          known: whether the job knows the digest of the file, so that it finds any change.
        """
        path = rng.choice(sorted(folder.glob(pattern)))
        content = path.read_bytes()
        mutate = rng.choice((mutate_bytes, mutate_text))
        if pattern == "job.json":
            mutate = mutate_json_file
        changed = mutate(rng, content)
        path.write_bytes(changed)
        found, error = cases.attempt(finish, *_REFUSALS)
        if error is not None:
            return cases.REFUSED
        assert found is not None
        cases.check(len(found) == len(expected), f"{len(found)} lines instead of {len(expected)}")
        if known or not _is_plausible(changed):
            cases.check(found == expected, "damaged lines are used")
        return cases.ACCEPTED

    def _metrics(self, rng: random.Random, folder: pathlib.Path) -> str:
        """Damages the results of evaluations, and adds one."""
        results = EvalResults(epath.Path(folder))
        results.add(5, "vqa", {"accuracy": 0.5})
        results.add(10, "caption", {"cider": 1.5, "bleu": float("nan")})
        (path,) = folder.glob("*.json")
        path.write_bytes(mutate_json_file(rng, path.read_bytes()))

        def go_on() -> None:
            again = EvalResults(epath.Path(folder))
            for step in (5, 10, 15):
                for name, value in again.of_step(step).items():
                    cases.check(
                        isinstance(name, str) and isinstance(value, dict), "odd results are used"
                    )
            again.add(15, "vqa", {"accuracy": 0.7})
            added = EvalResults(epath.Path(folder)).of_step(15)
            cases.check(added["vqa"] == {"accuracy": 0.7}, "a new result is lost")

        _, error = cases.attempt(go_on, *_REFUSALS)
        return cases.ACCEPTED if error is None else cases.REFUSED

    def _validations(self, rng: random.Random, folder: pathlib.Path) -> str:
        """Damages the history of validations, and asks for the best step."""
        path = folder / "validations.json"
        history = History(epath.Path(path))
        for step in (5, 10):
            history.add(step, {"total": {"loss": 1.0 / step}, "vqa": {"loss": 2.0}})
        path.write_bytes(mutate_json_file(rng, path.read_bytes()))

        def go_on() -> None:
            again = History(epath.Path(path))
            best = again.best("loss", [5, 10])
            cases.check(best in (None, 5, 10), f"the best step is {best}")
            again.add(15, {"total": {"loss": 0.01}})
            cases.check(
                History(epath.Path(path)).best("loss", [15]) == 15, "a new validation is lost"
            )

        _, error = cases.attempt(go_on, *_REFUSALS)
        return cases.ACCEPTED if error is None else cases.REFUSED


def _is_plausible(content: bytes) -> bool:
    """Returns whether each line is still an object of JSON: then no reader can tell."""
    try:
        lines = [json.loads(line) for line in content.decode("utf-8-sig").split("\n") if line]
    except ValueError:
        return False
    return all(isinstance(line, dict) for line in lines)


TARGETS = {"outputs": OutputFiles}
