"""What a decoder is asked for: one frozen dataclass."""

import dataclasses
from typing import Any

import flax
import jax
import numpy as np

from ofa_jax.model import OFAConfig
from ofa_jax.model.checks import check_length
from ofa_jax.tokenizers.vocabulary import SPECIAL_SYMBOLS


@dataclasses.dataclass(frozen=True)
class DecodingConfig:
    """How answers are searched. The defaults are those of captioning without its n-gram rule.

    Lengths do not count the eos that ends every answer, but do count a forced prefix.

    Attributes:
      method: "beam", or "sample" for independent random answers.
      beam_size: hypotheses of each example: beams (1 is greedy search), or samples.
      max_length: longest answer in tokens; then eos is forced.
      max_length_per_source_token: lets the longest answer grow by so much for every token of the
        batch's instructions, padding included.
      min_length: no eos before so many tokens (a forced prefix may hold one).
      exact_length: write `max_length` tokens, none of them special: images of codes.
      length_penalty: scores are divided by `(length + 1) ** length_penalty`; more favours longer
        answers.
      normalize_scores: False leaves scores the sums of log-probabilities.
      temperature: logits are divided by it.
      top_k: sample among so many most probable tokens; 0 for all.
      top_p: sample among the fewest most probable tokens that reach this probability (nucleus
        sampling, Holtzman et al. 2020), after `top_k`; 1 for all.
      no_repeat_ngram_size: no sequence of so many tokens, bos included, comes twice; 0 for no rule.
      unk_penalty: taken from the log-probability of <unk>.
      constraint_range: (first, behind last) id that may be written, besides the four special
        symbols: the codes, the bins.
      renormalize: whether the probabilities of what the trie or the range allows sum to one. False
        (zero-shot in the original) leaves them as they are without those.
    """

    method: str = "beam"
    beam_size: int = 5
    max_length: int = 16
    max_length_per_source_token: float = 0.0
    min_length: int = 1
    exact_length: bool = False
    length_penalty: float = 1.0
    normalize_scores: bool = True
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    no_repeat_ngram_size: int = 0
    unk_penalty: float = 0.0
    constraint_range: tuple[int, int] | None = None
    renormalize: bool = True

    def __post_init__(self):
        if self.method not in ("beam", "sample"):
            raise ValueError(
                f"DecodingConfig.method is {self.method!r}; use 'beam' (greedy is "
                "beam_size = 1) or 'sample'."
            )
        for name, least in (
            ("beam_size", 1),
            ("max_length", 0),
            ("min_length", 0),
            ("top_k", 0),
            ("max_length_per_source_token", 0),
            ("no_repeat_ngram_size", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(
                    f"DecodingConfig.{name} is {getattr(self, name)}; it must be at least {least}."
                )
        if self.temperature <= 0:
            raise ValueError(
                f"DecodingConfig.temperature is {self.temperature}; it must be "
                "positive. For the most probable token use method = 'beam' with "
                "beam_size = 1."
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(
                f"DecodingConfig.top_p is {self.top_p}; a probability above 0 and at "
                "most 1 is wanted."
            )
        if self.method == "beam" and (self.top_k or self.top_p < 1):
            raise ValueError(
                "DecodingConfig.top_k and top_p are for sampling; set method = "
                "'sample', or leave them at 0 and 1."
            )
        if self.constraint_range is not None:
            # gin hands lists over; a tuple keeps the config hashable.
            object.__setattr__(self, "constraint_range", tuple(self.constraint_range))
            if len(self.constraint_range) != 2 or not (
                len(SPECIAL_SYMBOLS) <= self.constraint_range[0] < self.constraint_range[1]
            ):
                raise ValueError(
                    f"DecodingConfig.constraint_range is {self.constraint_range}; give the first "
                    f"id and the one behind the last, e.g. ({len(SPECIAL_SYMBOLS)}, 100). Special "
                    "symbols are always allowed."
                )

    def check(self, model: OFAConfig) -> None:
        """Raises ValueError where a model cannot do what is asked."""
        if self.method == "beam" and 2 * self.beam_size >= model.vocab_size:
            raise ValueError(
                f"DecodingConfig.beam_size {self.beam_size} needs more than "
                f"{2 * self.beam_size} tokens; the vocabulary has "
                f"{model.vocab_size}."
            )
        if self.top_k > model.vocab_size:
            raise ValueError(
                f"DecodingConfig.top_k is {self.top_k}; the vocabulary has only "
                f"{model.vocab_size} tokens."
            )
        if self.constraint_range is not None and self.constraint_range[1] > model.vocab_size:
            raise ValueError(
                f"DecodingConfig.constraint_range {self.constraint_range} leaves the "
                f"vocabulary of {model.vocab_size} tokens."
            )

    def longest(self, source_length: int, model: OFAConfig) -> int:
        """Longest answer, in tokens, to instructions of so many.

        Raises:
          ValueError: if the model has no positions for it, or if it is below `min_length`.
        """
        longest = int(self.max_length_per_source_token * source_length + self.max_length)
        check_length(
            longest + 1,
            "the answer with its eos",
            model.max_target_positions,
            "reduce DecodingConfig.max_length",
        )
        if longest < self.min_length:
            raise ValueError(
                f"DecodingConfig.min_length {self.min_length} is more than the "
                f"longest answer, {longest} tokens."
            )
        return longest

    def replace(self, **overrides: Any) -> "DecodingConfig":
        """The same configuration with some fields changed."""
        return dataclasses.replace(self, **overrides)

    @property
    def dynamic_params(self) -> "DynamicParams":
        """What may change without compiling anew."""
        # Dividing by length ** 0 is not dividing.
        penalty = self.length_penalty if self.normalize_scores else 0.0
        return DynamicParams(
            np.int32(self.min_length),
            *(np.float32(x) for x in (penalty, self.temperature, self.unk_penalty)),
        )

    @property
    def static_config(self) -> "DecodingConfig":
        """The same for all configurations that share a compiled program."""
        return self.replace(
            min_length=0,
            length_penalty=0.0,
            normalize_scores=False,
            temperature=1.0,
            unk_penalty=0.0,
        )


@flax.struct.dataclass
class DynamicParams:
    """Settings that a compiled program takes as arguments, see `DecodingConfig`: scalars."""

    min_length: jax.Array
    length_penalty: jax.Array
    temperature: jax.Array
    unk_penalty: jax.Array
