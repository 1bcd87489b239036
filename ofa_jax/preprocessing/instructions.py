"""Converts instructions as users write them to the ids that training produces for them.

    which region does the text "a red apple" describe?          spaces are added inside the quotes
    what color is the car in the region? region: {region}       {region} is replaced by a box
    what is the complete text of "the <mask> of the house"?     <mask>, <bin_12>, <code_7> are ids

Texts within a known instruction are cleaned as the task of that instruction cleans them; any other
instruction is cleaned as a question. So every instruction, whether it occurs in training or not,
reaches the model in the same form. `recognise_task` returns the task of a known instruction.
"""

import dataclasses
import functools
import re
import string
from collections.abc import Callable

import numpy as np
from jaxtyping import Int32

from ofa_jax.preprocessing import prompts
from ofa_jax.preprocessing.text import clean_caption, clean_question
from ofa_jax.tokenizers.vocabulary import OFAVocabulary

REGION = "{region}"
"""The position of the region in an instruction; after `region:` at the end if it is not written."""

_TEXT_TO_IMAGE = "what is the complete image? caption:"
_SYMBOLS = re.compile(r"(<bin_\d+>|<code_\d+>|<mask>|\{region\})")
_QUOTED = re.compile(r'"([^"]*)"')


@dataclasses.dataclass(frozen=True)
class _KnownInstruction:
    """An instruction of training into which texts are inserted.

    Attributes:
      task: the task that the instruction belongs to.
      template: the instruction with names in braces.
      clean: the function that cleans each text.
    """

    task: str
    template: str
    clean: Callable[[str], str]

    def normalise(self, instruction: str) -> str | None:
        """Returns the instruction as in training; None if it does not match the template."""
        # Without regular expressions, whose time would grow with the cube of a run of blanks.
        literals, names = _split_template(self.template)
        first, *between, last = literals
        if (
            len(instruction) < len(first) + len(last)
            or not instruction.startswith(first)
            or not instruction.endswith(last)
        ):
            return None
        rest, texts = instruction[len(first) : len(instruction) - len(last)], []
        for literal in between:
            text, found, rest = rest.partition(literal)
            if not found:
                return None
            texts.append(text)
        cleaned = [self.clean(text.strip()) for text in (*texts, rest)]
        return self.template.format(**dict(zip(names, cleaned, strict=True)))


@functools.cache
def _split_template(template: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the texts around the names in braces, trimmed, and the names."""
    parts = list(string.Formatter().parse(template.strip()))
    names = tuple(name for _, name, _, _ in parts if name)
    literals = tuple(text.strip() for text, _, _, _ in parts)
    return (literals if len(literals) > len(names) else (*literals, "")), names


_KNOWN_INSTRUCTIONS = (
    _KnownInstruction("visual_grounding", prompts.VISUAL_GROUNDING, clean_caption),
    _KnownInstruction("image_text_matching", prompts.MATCHING_CAPTION, clean_caption),
    _KnownInstruction("image_text_matching", prompts.MATCHING_ANSWER, clean_question),
    _KnownInstruction("snli_ve", prompts.ENTAILMENT, clean_caption),
)
_CONSTANT_INSTRUCTIONS = {
    prompts.IMAGE_CAPTIONING.strip(): "image_captioning",
    prompts.OBJECT_DETECTION.strip(): "object_detection",
    prompts.IMAGE_INFILLING.strip(): "image_infilling",
}
_FIRST_WORDS = {
    _TEXT_TO_IMAGE: "text_to_image",
    prompts.TEXT_INFILLING[0].strip(' "'): "text_infilling",
    prompts.GROUNDED_CAPTIONING.strip().removesuffix(" region:"): "grounded_captioning",
}


def recognise_task(instruction: str) -> str | None:
    """Returns the task whose instruction this is; None for any other instruction.

    >>> recognise_task('Which region does the text "a red apple" describe?')
    'visual_grounding'
    """
    wording = instruction.strip().lower()
    if (task := _CONSTANT_INSTRUCTIONS.get(wording)) is not None:
        return task
    for words, task in _FIRST_WORDS.items():
        if wording.startswith(words):
            return task
    for known in _KNOWN_INSTRUCTIONS:
        if known.normalise(wording) is not None:
            return known.task
    return None


def encode(
    vocabulary: OFAVocabulary, instruction: str, region: Int32[np.ndarray, "4"] | None = None
) -> list[str | np.ndarray]:
    """Converts an instruction to the parts that `examples.make_example` takes.

    Args:
      vocabulary: has the ids of symbols.
      instruction: see the module's docstring.
      region: the ids of the box that the instruction refers to.

    Returns:
      Texts and ids, in order.

    Raises:
      ValueError: the instruction or the text inside it is empty once it is cleaned, it refers to a
        region that is not given, or contains a bin or a code that the vocabulary does not have.
    """
    if not instruction.strip():
        raise ValueError("The instruction is empty: write what the model should do.")
    wording = _lower(instruction.strip())
    if region is None and REGION in wording:
        raise ValueError(f"The instruction has {REGION}, but no region is given: give its box.")
    if region is not None and REGION not in wording:
        wording = wording.removesuffix("region:").rstrip() + f" region: {REGION}"

    # Bins and masks take the position of a word and of the space in front of it.
    pieces = _SYMBOLS.split(_clean(wording))
    parts: list[str | np.ndarray] = []
    for number, piece in enumerate(pieces):
        is_symbol = number % 2 == 1  # re.split returns the separators at the odd positions
        if piece == REGION:
            parts.append(np.asarray(region, np.int32))
        elif is_symbol:
            parts.append(_encode_symbol(vocabulary, piece))
        elif parts:
            parts.append(_with_one_leading_space(piece))
        else:
            first = piece.rstrip() if len(pieces) > 1 else piece
            # The instruction of grounded captioning has two leading spaces in training.
            known = prompts.GROUNDED_CAPTIONING
            parts.append(known if first.strip() == known.strip() else first)
    parts = [part for part in parts if len(part)]
    if not any(isinstance(part, np.ndarray) or part.strip() for part in parts):
        raise ValueError(
            f"The instruction {instruction.strip()[:40]!r} is empty once it is cleaned: write what "
            "the model should do."
        )
    return parts


def _lower(instruction: str) -> str:
    """Lower-cases an instruction, except for the caption of text-to-image generation."""
    if not instruction.lower().startswith(_TEXT_TO_IMAGE):
        return instruction.lower()
    return f"{_TEXT_TO_IMAGE} {' '.join(instruction[len(_TEXT_TO_IMAGE) :].split())}"


def _clean(wording: str) -> str:
    """Cleans the texts within an instruction, and adds the leading space of every instruction."""
    if wording.startswith(_TEXT_TO_IMAGE):
        return f" {wording}"
    for known in _KNOWN_INSTRUCTIONS:
        if (normalised := known.normalise(wording)) is not None:
            if '"  "' in normalised:  # cleaned texts have no two blanks side by side
                raise ValueError(
                    "The text inside the quotes of the instruction is empty once it is cleaned: "
                    "write what it is about."
                )
            return normalised
    if wording.count('"') % 2 == 0 and '"' in wording:
        quoted = _QUOTED.sub(lambda found: f'" {" ".join(found[1].split())} "', wording)
        return f" {quoted}"
    return f" {clean_question(wording)}"


def _with_one_leading_space(piece: str) -> str:
    """Trims the text after a symbol and puts one space in front of it."""
    text = piece.strip()
    return f" {text}" if text else ""


def _encode_symbol(vocabulary: OFAVocabulary, symbol: str) -> Int32[np.ndarray, "1"]:
    """Returns the id of a symbol. Raises ValueError if the vocabulary does not have it."""
    (index,) = vocabulary.encode_symbols(symbol)
    if index == vocabulary.unk_id:
        raise ValueError(
            f"The instruction has {symbol}, which this vocabulary of {vocabulary.num_codes} codes "
            f"and {vocabulary.num_bins} bins does not have."
        )
    return np.array([index], np.int32)
