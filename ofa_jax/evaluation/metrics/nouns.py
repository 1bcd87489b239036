"""Agreement of the nouns in a caption with the objects in the scene."""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ofa_jax.evaluation.metrics import inputs
from ofa_jax.scenes.nouns import all_nouns, plural


def usable_nouns(reference: Any) -> dict[str, Any]:
    """Returns a reference without blank nouns; a scene without objects has none."""
    return {**reference, "nouns": inputs.texts(reference["nouns"]) or []}


@inputs.accepts(usable_nouns)
def noun_f1(
    references: Sequence[Mapping[str, Any]], predictions: Sequence[str | None]
) -> dict[str, float]:
    """Computes "noun_f1", "noun_precision" and "noun_recall" over the nouns of all examples.

    A noun counts once per example, however often it is mentioned and however many objects there
    are. A noun of the table whose object is not in the scene is a false positive.

    Args:
      references: {"nouns": singular names of the objects in the scene; repetitions do not matter};
        other keys are ignored.
      predictions: captions.
    """
    inputs.check_pairs("noun_f1", references, predictions)
    true = [{name.lower() for name in reference["nouns"]} for reference in references]
    finder = NounFinder(set().union(*true))
    predicted = [finder.find(inputs.text(prediction)) for prediction in predictions]
    correct = sum(len(found & nouns) for found, nouns in zip(predicted, true, strict=True))
    precision = correct / max(sum(map(len, predicted)), 1)
    recall = correct / max(sum(map(len, true)), 1)
    f1 = 2 * precision * recall / (precision + recall) if correct else 0.0
    return {"noun_f1": f1, "noun_precision": precision, "noun_recall": recall}


class NounFinder:
    """Finds the nouns of the table in texts, singular or plural, the longest first.

    >>> sorted(NounFinder().find("two mice and an owl beside a mouse trap"))
    ['mouse', 'mouse trap', 'owl']
    """

    def __init__(self, extra_nouns: Iterable[str] = ()):
        """Compiles the search pattern.

        Args:
          extra_nouns: names in addition to those of the table.
        """
        self._names = dict(_table())
        for name in extra_nouns:
            if name not in self._names:
                self._names |= {plural(name): name, name: name}
        longest_first = sorted(self._names, key=len, reverse=True)
        self._pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")

    def find(self, text: str) -> set[str]:
        """Returns the singular names of all nouns in a text."""
        return {self._names[match] for match in self._pattern.findall(text.lower())}


@functools.cache
def _table() -> dict[str, str]:
    """Maps singular and plural names to singular ones."""
    names = {noun.plural: noun.name for noun in all_nouns()}
    return names | {noun.name: noun.name for noun in all_nouns()}
