"""VQA accuracy (Antol et al. 2015) with the answer normalisation of the official evaluation.

An answer scores min(number of annotators who gave it / 3, 1), averaged over all subsets of nine of
the ten annotators. Answers are normalised before they are compared; where all ten annotators agree,
the official evaluation skips the normalisation, and so does this module.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from ofa_jax.evaluation.metrics import inputs

_NUMBERS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
_ARTICLES = frozenset(("a", "an", "the"))
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_GROUPS = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")

# Words whose apostrophe is restored; each is recognised by its spellings that lack exactly one.
# Words missing from the official table (such as "lets" and "shed") are missing here too.
_CONTRACTIONS = """
ain't aren't can't couldn't didn't doesn't don't hadn't hasn't haven't isn't mightn't mustn't
needn't oughtn't shan't shouldn't wasn't weren't won't wouldn't
could've might've must've not've should've they've we've what've where've who've would've you've
he'd how'd it'd someone'd something'd there'd they'd where'd who'd you'd
how'll it'll somebody'll someone'll something'll they'll what'll who'll why'll you'll
he's how's somebody's someone's that's there's what's when's where's who's why's
there're they're what're why're you're
ma'am o'clock 'twas y'all
couldn't've hadn't've mightn't've shouldn't've wouldn't've
he'd've it'd've she'd've somebody'd've someone'd've something'd've there'd've they'd've we'd've
who'd've you'd've y'all'll y'all'd've 'ow's'at
"""


def _spellings() -> dict[str, str]:
    """Maps spellings without an apostrophe to the official ones."""
    table = {
        word[:index] + word[index + 1 :]: word
        for word in _CONTRACTIONS.split()
        for index, letter in enumerate(word)
        if letter == "'"
    }
    # The official table maps this one in the wrong direction.
    return table | {"somebody'd": "somebodyd"}


_SPELLINGS = _spellings()


def normalize_answer(answer: str) -> str:
    """Normalises punctuation, number words, articles, contractions and case as officially.

    >>> normalize_answer("Two dogs, and the cat.")
    '2 dogs and cat'
    """
    text = answer = _one_line(answer)
    has_digit_groups = _DIGIT_GROUPS.search(answer)
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if beside_space or has_digit_groups else " ")
    words = [_NUMBERS.get(word, word) for word in _PERIOD.sub("", text).lower().split()]
    return " ".join(_SPELLINGS.get(word, word) for word in words if word not in _ARTICLES)


def _one_line(text: str) -> str:
    """Replaces line breaks and tabs by spaces."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def _usable_answers(reference: Any) -> dict[str, Any] | None:
    """Returns a reference without blank answers and numbers that are not finite.

    Empty confidences are those of a source that gives only the annotators' answers.
    """
    answers, confidences = reference["answers"], reference.get("confidences")
    usable = {name: value for name, value in reference.items() if name != "confidences"}
    if not isinstance(usable.get("type", ""), str):
        del usable["type"]
    if confidences is None or not len(confidences):
        usable["answers"] = inputs.texts(answers)
        return usable if usable["answers"] else None
    pairs = [
        (answer, float(confidence))
        for answer, confidence in zip(answers, confidences, strict=True)
        if inputs.one_text(answer) is not None and inputs.is_finite(confidence)
    ]
    usable["answers"] = [answer for answer, _ in pairs]
    return usable | {"confidences": [confidence for _, confidence in pairs]} if pairs else None


@inputs.accepts(_usable_answers)
def vqa_accuracy(
    references: Sequence[Mapping[str, Any]], predictions: Sequence[str | None]
) -> dict[str, float]:
    """Computes "accuracy", and "accuracy/<type>" where questions have a type.

    Args:
      references: {"answers": list[str]; optional "confidences": list[float]; optional "type": str}.
        With confidences, a prediction scores the confidence of the answer that it equals exactly,
        as in the reference implementation's validation; without, the official accuracy over the
        annotators' answers. With fewer than four of them, a prediction that equals one scores 1.
      predictions: one text per question.
    """
    inputs.check_pairs("vqa_accuracy", references, predictions)
    inputs.check_references("vqa_accuracy", [reference["answers"] for reference in references])
    by_type: dict[str, list[float]] = defaultdict(list)
    scores = []
    for reference, prediction in zip(references, predictions, strict=True):
        scores.append(_score(reference, inputs.text(prediction)))
        if reference.get("type"):
            by_type[reference["type"]].append(scores[-1])
    return {"accuracy": math.fsum(scores) / len(scores)} | {
        f"accuracy/{kind}": math.fsum(by_type[kind]) / len(by_type[kind])
        for kind in sorted(by_type)
    }


def _score(reference: Mapping[str, Any], prediction: str) -> float:
    """Scores one prediction, see `vqa_accuracy`."""
    answers, confidences = reference["answers"], reference.get("confidences")
    if confidences is not None:
        return dict(zip(answers, confidences, strict=True)).get(prediction, 0.0)
    answers, prediction = [_one_line(answer) for answer in answers], _one_line(prediction)
    if len(set(answers)) > 1:
        answers = [normalize_answer(answer) for answer in answers]
        prediction = normalize_answer(prediction)
    same = sum(answer.lower() == prediction.lower() for answer in answers)
    if len(answers) < 4:
        return float(same > 0)
    # Of the subsets that leave one annotator out, `same` leave out one with this answer.
    others = len(answers) - same
    return (same * min((same - 1) / 3, 1) + others * min(same / 3, 1)) / len(answers)
