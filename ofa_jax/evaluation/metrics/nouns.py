"""Which things a caption names, against those that are in the scene."""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ofa_jax.evaluation.metrics import inputs
from ofa_jax.scenes.nouns import all_nouns, plural


def noun_f1(
    references: Sequence[Mapping[str, Any]], answers: Sequence[str | None]
) -> dict[str, float]:
    """ "noun_f1", "noun_precision" and "noun_recall" over all named things of all examples.

    A thing counts once, however often it is named or there: whether the caption says that there is
    a dog, not how many. A name of the table that is not in the scene is a mistake.

    Args:
      references: {"nouns": names of what is in the scene, in the singular; repetitions do not
        matter}; other keys are not looked at.
      answers: captions.
    """
    inputs.check_pairs("noun_f1", references, answers)
    true = [{name.lower() for name in own["nouns"]} for own in references]
    finder = NounFinder(set().union(*true))
    named = [finder.find(inputs.text(answer)) for answer in answers]
    right = sum(len(own & wanted) for own, wanted in zip(named, true, strict=True))
    precision = right / max(sum(map(len, named)), 1)
    recall = right / max(sum(map(len, true)), 1)
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return {"noun_f1": f1, "noun_precision": precision, "noun_recall": recall}


class NounFinder:
    """Finds the nouns of the table in texts, singular or plural, the longest first.

    >>> sorted(NounFinder().find("two mice and an owl beside a mouse trap"))
    ['mouse', 'mouse trap', 'owl']
    """

    def __init__(self, others: Iterable[str] = ()):
        """
        Args:
          others: names beside those of the table.
        """
        self._names = dict(_table())
        for name in others:
            if name not in self._names:
                self._names |= {plural(name): name, name: name}
        longest_first = sorted(self._names, key=len, reverse=True)
        self._pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")

    def find(self, text: str) -> set[str]:
        """Their names in the singular."""
        return {self._names[found] for found in self._pattern.findall(text.lower())}


@functools.cache
def _table() -> dict[str, str]:
    """Singular or plural -> singular."""
    names = {noun.plural: noun.name for noun in all_nouns()}
    return names | {noun.name: noun.name for noun in all_nouns()}
