"""Several wordings of an instruction, each with a weight.

    {"visual_grounding": {' which region does the text " {phrase} " describe?': 3,
                          ' where is " {phrase} "?': 1}}

The keys are those of `prompts.INSTRUCTIONS`; a wording has the same names in braces as the
published one. An instruction that is not named keeps the published wording. The wording is drawn
from a generator of its own: all other draws of an example stay as they are without this option.
"""

import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ofa_jax.preprocessing import prompts
from ofa_jax.utils import options
from ofa_jax.utils.option_checks import checked
from ofa_jax.utils.suggestions import refuse_unknown

Wordings = Mapping[options.Name, options.Weights]
"""Name of an instruction -> wording -> weight."""


@checked
def several_wordings(published: options.Share = 0.5) -> dict[str, dict[str, float]]:
    """Returns the published wording of every instruction and some others, `TRAINED_WORDINGS`.

    Args:
      published: the share of the published wording; the others have the rest in equal parts.
    """
    return {
        name: {prompts.INSTRUCTIONS[name]: published}
        | {wording: (1 - published) / len(others) for wording in others}
        for name, others in prompts.TRAINED_WORDINGS.items()
    }


def equally(wordings: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
    """Returns wordings of equal weights, such as those of `prompts.UNSEEN_WORDINGS`."""
    return {name: dict.fromkeys(own, 1.0) for name, own in wordings.items()}


def check_wordings(option: str, wordings: Mapping[str, Mapping[str, float]]) -> None:
    """Raises ValueError if wordings cannot be used.

    Args:
      option: its name, for messages.
      wordings: see the module's docstring.
    """
    refuse_unknown(option, wordings, prompts.INSTRUCTIONS)
    for name, own in wordings.items():
        expected = _fields(prompts.INSTRUCTIONS[name])
        for wording in own:
            try:
                found = _fields(wording)
            except ValueError as error:
                raise ValueError(f"{option} of {name}: {wording!r} is wrong ({error}).") from error
            if found != expected:
                names = " and ".join(f"{{{field}}}" for field in sorted(expected)) or "no braces"
                raise ValueError(
                    f"{option} of {name}: the wording {wording!r} must have {names}, each once, as "
                    "the published one."
                )
        if own and not any(own.values()):
            raise ValueError(f"{option} of {name}: every weight is 0; give one wording a weight.")


def sample_wording(
    name: str, wordings: Mapping[str, Mapping[str, float]], rng: np.random.Generator
) -> str:
    """Returns the template of an instruction, with names in braces.

    Args:
      name: a key of `prompts.INSTRUCTIONS`.
      wordings: see the module's docstring; without the instruction, it has the published wording.
      rng: of the example; its state does not change.
    """
    own = {wording: weight for wording, weight in wordings.get(name, {}).items() if weight}
    if not own:
        return prompts.INSTRUCTIONS[name]
    chosen = next(iter(own))
    if len(own) > 1:
        (child,) = rng.spawn(1)
        weights = np.array(list(own.values()), np.float64)
        chosen = list(own)[int(child.choice(len(own), p=weights / weights.sum()))]
    return _as_template(name, chosen)


def fill(template: str, field: str, ids: np.ndarray) -> list[str | np.ndarray]:
    """Returns the parts of an instruction with ids in the place of a field.

    The ids also take the place of the space in front of them, as in `instructions.encode`.
    """
    before, after = template.split(f"{{{field}}}")
    parts: list[str | np.ndarray] = [before.rstrip(" "), ids, after]
    return [part for part in parts if len(part)]


def _as_template(name: str, wording: str) -> str:
    """Returns a wording as it is encoded: the published one as it is, others after one space."""
    published, trimmed = prompts.INSTRUCTIONS[name], wording.strip()
    return published if trimmed == published.strip() else f" {trimmed}"


def _fields(template: str) -> list[str]:
    """Returns the names in braces, sorted. Raises ValueError if the braces are wrong."""
    found: list[Any] = list(string.Formatter().parse(template))
    if any(specification or conversion for _, _, specification, conversion in found):
        raise ValueError("only names may stand in braces")
    return sorted(field for _, field, _, _ in found if field is not None)
