"""From an instruction as a person writes it to the ids that training would have made of it.

    which region does the text "a red apple" describe?          quotes get their spaces
    what color is the car in the region? region: {region}       a box goes where it is wanted
    what is the complete text of "the <mask> of the house"?     <mask>, <bin_12>, <code_7> are ids

What is put into a known instruction is cleaned as its task cleans it, a question as questions are.
A model reads every instruction, trained on or not, in this one form.
"""

import dataclasses
import re
import string
from collections.abc import Callable

import numpy as np

from ofa_jax.preprocessing import prompts
from ofa_jax.preprocessing.text import clean_caption, clean_question
from ofa_jax.tokenizers.vocabulary import OFAVocabulary

REGION = "{region}"
"""Where in an instruction its region goes; behind `region:` at the end where it is not written."""

_TEXT_TO_IMAGE = "what is the complete image? caption:"
_SYMBOLS = re.compile(r"(<bin_\d+>|<code_\d+>|<mask>|\{region\})")
_QUOTED = re.compile(r'"([^"]*)"')


@dataclasses.dataclass(frozen=True)
class _Known:
    """An instruction of training with the texts that go into it.

    Attributes:
      template: with names in braces.
      clean: of the texts.
    """

    template: str
    clean: Callable[[str], str]

    def fill(self, instruction: str) -> str | None:
        """The instruction as training writes it; None if it is another one."""
        parts = list(string.Formatter().parse(self.template.strip()))
        pattern = "".join(
            re.escape(text.strip()) + (rf"\s*(?P<{name}>.*?)\s*" if name else "")
            for text, name, _, _ in parts
        )
        found = re.fullmatch(pattern, instruction, re.DOTALL)
        if found is None:
            return None
        return self.template.format(**{k: self.clean(v) for k, v in found.groupdict().items()})


_KNOWN = (
    _Known(prompts.VISUAL_GROUNDING, clean_caption),
    _Known(prompts.MATCHING_CAPTION, clean_caption),
    _Known(prompts.MATCHING_ANSWER, clean_question),
    _Known(prompts.ENTAILMENT, clean_caption),
)


def encode(
    vocabulary: OFAVocabulary, instruction: str, region: np.ndarray | None = None
) -> list[str | np.ndarray]:
    """An instruction as `objectives.make_example` takes it.

    Args:
      vocabulary: has ids for symbols.
      instruction: see the module's text.
      region: int32 [4], the ids of a box that the instruction is about.

    Returns:
      Texts and ids, one after the other.

    Raises:
      ValueError: it is empty; it wants a region and there is none; it has a bin or a code that
        this vocabulary does not have.
    """
    if not instruction.strip():
        raise ValueError("The instruction is empty: say what is wanted.")
    wording = _lower(instruction.strip())
    if region is None and REGION in wording:
        raise ValueError(f"The instruction has {REGION}, but no region is given: give its box.")
    if region is not None and REGION not in wording:
        wording = wording.removesuffix("region:").rstrip() + f" region: {REGION}"

    # Bins and masks take the place of words, with the space in front of those.
    pieces = _SYMBOLS.split(_cleaned(wording))
    parts: list[str | np.ndarray] = []
    for piece, is_symbol in zip(pieces, _alternating(len(pieces)), strict=True):
        if piece == REGION:
            parts.append(np.asarray(region, np.int32))
        elif is_symbol:
            parts.append(_symbol(vocabulary, piece))
        elif parts:
            parts.append(_trimmed(piece))
        else:
            first = piece.rstrip() if len(pieces) > 1 else piece
            # Two spaces in front, as it was trained.
            known = prompts.GROUNDED_CAPTIONING
            parts.append(known if first.strip() == known.strip() else first)
    return [part for part in parts if len(part)]


def is_infilling(instruction: str) -> bool:
    """Whether the middle of the image is asked for, as codes."""
    return instruction.strip().lower() == prompts.IMAGE_INFILLING.strip()


def is_text_to_image(instruction: str) -> bool:
    """Whether a whole image is asked for, as codes."""
    return instruction.strip().lower().startswith(_TEXT_TO_IMAGE)


def is_detection(instruction: str) -> bool:
    """Whether all objects are asked for."""
    return instruction.strip().lower() == prompts.OBJECT_DETECTION.strip()


def is_text_infilling(instruction: str) -> bool:
    """Whether a text with holes is to be completed."""
    before, _ = prompts.TEXT_INFILLING
    return instruction.strip().lower().startswith(before.strip(' "'))


def is_grounding(instruction: str) -> bool:
    """Whether the box of a text is asked for."""
    return _KNOWN[0].fill(instruction.strip().lower()) is not None


def _lower(instruction: str) -> str:
    """Captions that ask for an image are read as they are."""
    if not is_text_to_image(instruction):
        return instruction.lower()
    return f"{_TEXT_TO_IMAGE} {' '.join(instruction[len(_TEXT_TO_IMAGE) :].split())}"


def _cleaned(wording: str) -> str:
    """With the space in front that begins every instruction."""
    if wording.startswith(_TEXT_TO_IMAGE):
        return f" {wording}"
    for known in _KNOWN:
        if (filled := known.fill(wording)) is not None:
            return filled
    if wording.count('"') % 2 == 0 and '"' in wording:
        quote = lambda found: f'" {" ".join(found[1].split())} "'  # noqa: E731
        return f" {_QUOTED.sub(quote, wording)}"
    return f" {clean_question(wording)}"


def _alternating(count: int) -> list[bool]:
    """re.split puts what was split at on the odd places."""
    return [place % 2 == 1 for place in range(count)]


def _trimmed(piece: str) -> str:
    """Text behind a symbol: one space in front of a word."""
    text = piece.strip()
    return f" {text}" if text else ""


def _symbol(vocabulary: OFAVocabulary, symbol: str) -> np.ndarray:
    (index,) = vocabulary.encode_symbols(symbol)
    if index == vocabulary.unk_id:
        raise ValueError(
            f"The instruction has {symbol}, which this vocabulary of {vocabulary.num_codes} codes "
            f"and {vocabulary.num_bins} bins does not have."
        )
    return np.array([index], np.int32)
