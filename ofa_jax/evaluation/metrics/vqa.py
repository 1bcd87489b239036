"""VQA accuracy (Antol et al. 2015) with the answer normalisation of the official evaluation.

An answer is worth min(people who gave it / 3, 1), averaged over all choices of nine of the ten
people. Answers are compared after both were normalised; where all ten people agree, the official
evaluation compares them as they are, and so does this.
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

# Words that get their apostrophe back; each is known by its spellings that lack just one. Those
# that the official table lacks (such as "lets" and "shed") are another word, or were forgotten.
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
    table = {
        word[:place] + word[place + 1 :]: word
        for word in _CONTRACTIONS.split()
        for place, letter in enumerate(word)
        if letter == "'"
    }
    # The official table has this one the wrong way round.
    return table | {"somebody'd": "somebodyd"}


_SPELLINGS = _spellings()


def normalize_answer(answer: str) -> str:
    """The official normalisation: punctuation, number words, articles, contractions, lower case.

    >>> normalize_answer("Two dogs, and the cat.")
    '2 dogs and cat'
    """
    text = answer = _one_line(answer)
    has_digit_groups = _DIGIT_GROUPS.search(answer)
    for mark in _PUNCTUATION:
        at_a_space = f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if at_a_space or has_digit_groups else " ")
    words = [_NUMBERS.get(word, word) for word in _PERIOD.sub("", text).lower().split()]
    return " ".join(_SPELLINGS.get(word, word) for word in words if word not in _ARTICLES)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def vqa_accuracy(
    references: Sequence[Mapping[str, Any]], answers: Sequence[str | None]
) -> dict[str, float]:
    """ "accuracy", and "accuracy/<type>" where questions have a type.

    Args:
      references: {"answers": list[str]; optional "confidences": list[float]; optional "type": str}.
        With confidences an answer is worth that of the reference that it equals, letter by letter,
        as the original OFA validates; without, the official accuracy over the people's answers.
        With less than four of them, an answer that one gave is worth 1.
      answers: the model's.
    """
    inputs.check_pairs("vqa_accuracy", references, answers)
    inputs.check_references("vqa_accuracy", [own["answers"] for own in references])
    by_type: dict[str, list[float]] = defaultdict(list)
    scores = []
    for own, answer in zip(references, answers, strict=True):
        scores.append(_score(own, inputs.text(answer)))
        if own.get("type"):
            by_type[own["type"]].append(scores[-1])
    return {"accuracy": math.fsum(scores) / len(scores)} | {
        f"accuracy/{kind}": math.fsum(by_type[kind]) / len(by_type[kind])
        for kind in sorted(by_type)
    }


def _score(reference: Mapping[str, Any], answer: str) -> float:
    people, confidences = reference["answers"], reference.get("confidences")
    if confidences is not None:
        return dict(zip(people, confidences, strict=True)).get(answer, 0.0)
    people, answer = [_one_line(person) for person in people], _one_line(answer)
    if len(set(people)) > 1:
        people, answer = [normalize_answer(person) for person in people], normalize_answer(answer)
    same = sum(person.lower() == answer.lower() for person in people)
    if len(people) < 4:
        return float(same > 0)
    # Of the choices that leave one person out, `same` leave out one who gave this answer.
    others = len(people) - same
    return (same * min((same - 1) / 3, 1) + others * min(same / 3, 1)) / len(people)
