"""Wrong names, and the nearest right one, for the sentence that says what is wrong."""

import difflib
from collections.abc import Iterable


def nearest(name: str, names: Iterable[str]) -> str:
    """` Did you mean X?` for the closest of `names`, or an empty string when none is close."""
    names = sorted(set(names))
    folded = {known.casefold(): known for known in names}
    close = difflib.get_close_matches(name.casefold(), list(folded), n=1, cutoff=0.6)
    return f" Did you mean {folded[close[0]]}?" if close else ""


def refuse_unknown(where: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raises ValueError for names that are not known; `where` begins the sentence."""
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(
            f"{where} names {', '.join(unknown)}; known are {', '.join(sorted(known))}."
        )
