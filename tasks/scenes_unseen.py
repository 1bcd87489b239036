"""Unseen tasks over Scenes: instructions about a region that no training example has.

    grounded_question_answering  region_neighbour  region_in_style  region_yes_no
    <task> + AMONG_ANSWERS      the same, with only the task's possible answers allowed
    <task>_100                  the task with 100 training examples, also _10 and _1000
    scenes_unseen               all of the first two kinds, for an evaluation's stream

`ofa_jax.scenes.region_questions` describes the questions. A pretrained model is evaluated without
any training (`python -m tools.zero_shot`), or after a few examples: a task's training split has the
first 1,000 images that have a question, or as few as its name says.
"""

import dataclasses
import functools
import zlib
from typing import Any

import numpy as np

from ofa_jax.data.pretraining_settings import PRETRAINING
from ofa_jax.data.registration import add_mixture, add_pretraining_task
from ofa_jax.data.sources.base import RecordSource
from ofa_jax.data.sources.scenes import Scenes
from ofa_jax.data.task_settings import TaskContext
from ofa_jax.decoding import DecodingConfig
from ofa_jax.evaluation import eval_spec, seqio_metrics
from ofa_jax.evaluation.eval_spec import EvalSpec
from ofa_jax.evaluation.metrics.vqa import vqa_accuracy
from ofa_jax.preprocessing import objectives
from ofa_jax.preprocessing.examples import Example
from ofa_jax.preprocessing.objective_config import ObjectiveConfig
from ofa_jax.preprocessing.records import Record
from ofa_jax.preprocessing.text import clean_caption, clean_question

NAMES = (
    "grounded_question_answering",
    "region_neighbour",
    "region_in_style",
    "region_yes_no",
)
AMONG_ANSWERS = "_among_answers"
"""The suffix of tasks with only the possible answers allowed; whole captions have none."""
TRAINING_EXAMPLES = (10, 100, 1000)
"""How many training examples a task may have."""
MIXTURE = "scenes_unseen"
_LONGEST = 32


@dataclasses.dataclass(frozen=True)
class RegionQuestions:
    """A RecordSource of questions about a region of scenes.

    Attributes:
      objects: records with the objects of scenes.
      indices: of the scenes that have a question.
      task: one of NAMES.
      image_size: the side of an image in pixels.
      nouns: all nouns of the data set.
    """

    objects: RecordSource
    indices: tuple[int, ...]
    task: str
    image_size: int
    nouns: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Record:
        record = self.objects[self.indices[index]]
        question = _ask(self.task, record, self.indices[index], self.image_size, self.nouns)
        assert question is not None, "only scenes with a question are listed"
        return {
            "id": record["id"],
            "image": record["image"],
            "questions": [question.text],
            "answer_types": [question.type],
            "phrases": [question.answer],
            "phrase_boxes": np.array([question.box], np.float32),
        }


def _ask(task: str, record: Record, index: int, size: int, nouns: tuple[str, ...]) -> Any:
    """Returns the question about a scene, always the same; None if it has none."""
    from ofa_jax.scenes import region_questions

    labels, boxes = record["object_labels"], record["object_boxes"]
    scene = region_questions.restore_scene(labels, boxes, size, nouns)
    rng = np.random.default_rng([zlib.crc32(task.encode()), index])
    return region_questions.ask(task, scene, rng)


def _open(task: str, num_training: int, split: str, context: TaskContext) -> RegionQuestions:
    """Opens the questions of a split; of the training split the first `num_training`.

    Raises:
      ValueError: the data set is not Scenes, or no scene has a question.
    """
    data_set = PRETRAINING.of(context.settings).data_set
    if not isinstance(data_set, Scenes):
        raise ValueError(
            f"{task} is about Scenes, but the settings have {type(data_set).__name__}: evaluate it "
            "with `--gin.SETTINGS=@scenes_settings()`."
        )
    objects = data_set.records("objects", split)
    size, nouns = data_set.description["options"]["image_size"], data_set.negatives().object_names
    limit = num_training if split == "train" else len(objects)
    indices: list[int] = []
    for index in range(min(len(objects), 100 * limit)):
        if len(indices) == limit:
            break
        if _ask(task, objects[index], index, size, nouns) is not None:
            indices.append(index)
    if not indices:
        raise ValueError(f"No scene of the split {split} has a question of {task}: build more.")
    return RegionQuestions(objects, tuple(indices), task, size, nouns)


def ask_about_region(record: Record, rng: np.random.Generator, config: ObjectiveConfig) -> Example:
    """Returns `{question} region: {box}` -> the answer, in the form of grounded captioning."""
    question = clean_question(record["questions"][0], config.max_source_words)
    prompts = {"grounded_captioning": {f"{question} region:{{region}}": 1.0}}
    asked = dataclasses.replace(config, prompts=prompts)
    return objectives.grounded_captioning(record, rng, asked)


def references(record: Record) -> dict[str, Any]:
    """Returns the answer and the type of the question."""
    return {
        "answers": [clean_caption(record["phrases"][0])],
        "type": record["answer_types"][0],
    }


def _candidates(task: str, settings: Any) -> tuple[str, ...] | None:
    """Returns the possible answers as they are encoded; None if they are whole captions."""
    from ofa_jax.scenes import region_questions

    nouns = PRETRAINING.of(settings).data_set.negatives().object_names
    found = region_questions.possible_answers(task, nouns)
    if found is None:
        return None
    return tuple(dict.fromkeys(f" {clean_caption(answer)}" for answer in found))


def _describe(name: str, task: str, among_answers: bool, settings: Any) -> EvalSpec:
    """Returns the evaluation by exact match with the only correct answer."""
    return EvalSpec(
        name,
        kind="text",
        references=references,
        metrics=(vqa_accuracy,),
        decoding=DecodingConfig(max_length=_LONGEST),
        candidates=functools.partial(_candidates, task, settings) if among_answers else None,
        max_image_size=PRETRAINING.of(settings).evaluation_config.max_image_size,
    )


def _register(name: str, task: str, num_training: int, among_answers: bool = False) -> None:
    add_pretraining_task(
        name,
        "region_questions",
        ask_about_region,
        functools.partial(_open, task, num_training),
        seqio_metrics.of_spec(name),
    )
    eval_spec.register_factory(name, functools.partial(_describe, name, task, among_answers))


def has_answers(task: str) -> bool:
    """Returns whether the possible answers of a task can be listed."""
    return task != "region_in_style"


_evaluated = []
for _task in NAMES:
    _register(_task, _task, max(TRAINING_EXAMPLES))
    _evaluated.append(_task)
    if has_answers(_task):
        _register(_task + AMONG_ANSWERS, _task, max(TRAINING_EXAMPLES), among_answers=True)
        _evaluated.append(_task + AMONG_ANSWERS)
    for _number in TRAINING_EXAMPLES:
        _register(f"{_task}_{_number}", _task, _number)
add_mixture(MIXTURE, _evaluated, default_rate=1.0)
