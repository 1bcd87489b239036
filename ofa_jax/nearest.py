"""The nearest right name to a wrong one, for the sentence that says what is wrong."""

import difflib
from collections.abc import Iterable


def nearest(name: str, names: Iterable[str]) -> str:
    """` Did you mean X?` for the closest of `names`, or an empty string when none is close."""
    names = sorted(set(names))
    folded = {known.casefold(): known for known in names}
    close = difflib.get_close_matches(name.casefold(), list(folded), n=1, cutoff=0.6)
    return f" Did you mean {folded[close[0]]}?" if close else ""
