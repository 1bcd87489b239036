"""Text infilling: the share of masked spans that are filled exactly."""

import re
from collections.abc import Sequence

from ofa_jax.evaluation.metrics import inputs

MASK = "<mask>"


def extract_spans(masked: str, text: str) -> list[str] | None:
    """Returns the text at each mask; None if the rest of the text differs from the masked text.

    Where several splits are possible, earlier masks take as few characters as possible.

    >>> extract_spans("the <mask> fox<mask>", "the quick brown fox jumps")
    ['quick brown', 'jumps']
    """
    unmasked = [re.escape(" ".join(part.split())) for part in masked.split(MASK)]
    pattern = r"\s*(.*?)\s*".join(unmasked)
    match = re.fullmatch(rf"\s*{pattern}\s*", " ".join(text.split()), re.DOTALL)
    return None if match is None else list(match.groups())


def exact_spans(
    masked: Sequence[str], references: Sequence[str], predictions: Sequence[str | None]
) -> dict[str, float]:
    """Computes "exact_spans", the share of all masked spans that are filled as in the reference.

    A prediction that changes the unmasked text has no correct span. Spans are found by the text
    around them, in the same way in references and predictions.

    Args:
      masked: texts with `<mask>` for each span.
      references: the complete texts.
      predictions: the texts as completed by the model.
    """
    inputs.check_pairs("exact_spans", references, predictions)
    correct = total = 0
    for text, reference, prediction in zip(masked, references, predictions, strict=True):
        true = extract_spans(text, reference)
        if not true:
            continue
        predicted = extract_spans(text, inputs.text(prediction))
        if predicted is not None:
            correct += sum(a == b for a, b in zip(predicted, true, strict=True))
        total += len(true)
    return {"exact_spans": correct / total if total else 0.0}
