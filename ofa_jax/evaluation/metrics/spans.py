"""Text infilling: which of the masked spans were filled just so."""

import re
from collections.abc import Sequence

from ofa_jax.evaluation.metrics import inputs

MASK = "<mask>"


def fillings(masked: str, text: str) -> list[str] | None:
    """What stands at each mask in a text; None if the text is not the masked one, filled.

    Where several fillings fit, earlier masks take as little as they can.

    >>> fillings("the <mask> fox<mask>", "the quick brown fox jumps")
    ['quick brown', 'jumps']
    """
    known = [re.escape(" ".join(part.split())) for part in masked.split(MASK)]
    pattern = r"\s*(.*?)\s*".join(known)
    found = re.fullmatch(rf"\s*{pattern}\s*", " ".join(text.split()), re.DOTALL)
    return None if found is None else list(found.groups())


def exact_spans(
    masked: Sequence[str], references: Sequence[str], answers: Sequence[str | None]
) -> dict[str, float]:
    """ "exact_spans": how many of all masked spans are filled as in the reference.

    An answer that has changed what was not masked has none of its spans right. Spans are told apart
    by the text around them, the same way on both sides.

    Args:
      masked: texts with `<mask>` for each span.
      references: the texts.
      answers: as the model completes them.
    """
    inputs.check_pairs("exact_spans", references, answers)
    right = total = 0
    for text, reference, answer in zip(masked, references, answers, strict=True):
        wanted = fillings(text, reference)
        if not wanted:
            continue
        given = fillings(text, inputs.text(answer)) or [None] * len(wanted)
        right += sum(a == b for a, b in zip(given, wanted, strict=True))
        total += len(wanted)
    return {"exact_spans": right / total if total else 0.0}
