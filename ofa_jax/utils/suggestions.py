"""Suggests the nearest right name in messages about a wrong one."""

import difflib
from collections.abc import Iterable


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns ` Did you mean X?` for the closest of `names`, or "" if none is close."""
    folded = {known.casefold(): known for known in sorted(set(names))}
    close = difflib.get_close_matches(str(name).casefold(), list(folded), n=1, cutoff=0.6)
    return f" Did you mean {folded[close[0]]}?" if close else ""


def refuse_unknown(where: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raises ValueError for unknown names; `where` begins the message."""
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(
            f"{where} names {', '.join(unknown)}; known are {', '.join(sorted(known))}."
        )
