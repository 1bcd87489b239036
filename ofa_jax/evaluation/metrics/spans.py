"""Text infilling: the share of masked spans that are filled exactly."""

from collections.abc import Sequence

from ofa_jax.evaluation.metrics import inputs

MASK = "<mask>"


def extract_spans(masked: str, text: str) -> list[str] | None:
    """Returns the text at each mask; None if the rest of the text differs from the masked text.

    Where several splits are possible, earlier masks take as few characters as possible.

    >>> extract_spans("the <mask> fox<mask>", "the quick brown fox jumps")
    ['quick brown', 'jumps']
    """
    first, *others = [" ".join(part.split()) for part in masked.split(MASK)]
    rest = " ".join(text.split())
    if not rest.startswith(first):
        return None
    rest = rest[len(first) :]
    if not others:
        return None if rest else []
    # The leftmost place of each part leaves the most text to the parts after it, so if any split is
    # possible, this one is. (A regular expression would try all splits: exponentially many.)
    *inner, last = others
    spans = []
    for part in inner:
        before, found, rest = rest.partition(part) if part else ("", "", rest)
        if part and not found:
            return None
        spans.append(before.strip())
    if not rest.endswith(last):
        return None
    return [*spans, rest[: len(rest) - len(last)].strip()]


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
