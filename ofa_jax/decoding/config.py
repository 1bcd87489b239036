"""Settings of a decoder."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

import flax
import numpy as np
from jaxtyping import ArrayLike, Float, Int

from ofa_jax.model import OFAConfig
from ofa_jax.model.checks import check_length
from ofa_jax.tokenizers.id_layout import SPECIAL_SYMBOLS
from ofa_jax.utils import options
from ofa_jax.utils.option_checks import checked


@checked
@dataclasses.dataclass(frozen=True)
class DecodingConfig:
    """How outputs are generated. The defaults suit captioning, apart from its n-gram rule.

    Lengths do not count the eos that ends every output, but do count a forced prefix.

    Attributes:
      method: "beam", or "sample" for independent samples.
      beam_size: hypotheses per example: beams (1 is greedy search), or samples.
      max_length: tokens of the longest output; then eos is forced.
      max_length_per_source_token: increases the longest output by this much for every token of the
        batch's instructions, including padding.
      min_length: eos is forbidden before this many tokens, except in a forced prefix.
      exact_length: generate exactly `max_length` tokens and no special symbols (images of codes).
      length_penalty: scores are divided by `(length + 1) ** length_penalty`; larger values favour
        longer outputs.
      normalize_scores: False leaves scores as sums of log-probabilities.
      temperature: divisor of the logits.
      top_k: sample among this many most probable tokens; 0 for all.
      top_p: sample among the fewest most probable tokens that reach this probability (nucleus
        sampling, Holtzman et al. 2020), after `top_k`; 1 for all.
      guidance_scale: s of classifier-free guidance (Ho and Salimans 2022): the logits become
        u + s (c - u), where c follows from the instruction and u from one without its caption, see
        `ofa_jax.decoding`. 1 is no guidance; more follows the caption more closely.
      no_repeat_ngram_size: no n-gram of this many tokens, including bos, occurs twice; 0 for none.
      unk_penalty: subtracted from the log-probability of <unk>.
      constraint_range: (first, end) of the ids that may be generated besides the four special
        symbols: the image codes or the location bins.
      renormalize: whether the probabilities of the tokens that the trie or the range allows sum to
        one. False (zero-shot in the reference implementation) keeps their original probabilities.
    """

    method: Annotated[
        str,
        options.OneOf(("beam", "sample")),
        options.Help("For greedy search use method = 'beam' with beam_size = 1."),
    ] = "beam"
    beam_size: options.Count = 5
    max_length: options.Natural = 16
    max_length_per_source_token: options.NonNegative = 0.0
    min_length: options.Natural = 1
    exact_length: bool = False
    length_penalty: float = 1.0
    normalize_scores: bool = True
    temperature: Annotated[
        options.Positive,
        options.Help("For the most probable token use method = 'beam' with beam_size = 1."),
    ] = 1.0
    top_k: options.Natural = 0
    top_p: Annotated[float, options.Above(0), options.AtMost(1)] = 1.0
    guidance_scale: options.NonNegative = 1.0
    no_repeat_ngram_size: options.Natural = 0
    unk_penalty: float = 0.0
    constraint_range: tuple[options.TokenId, options.TokenId] | None = None
    renormalize: bool = True

    def __post_init__(self) -> None:
        self._check_sampling()
        if self.constraint_range is not None:
            # gin passes lists; a tuple keeps the config hashable.
            first, end = _check_range(self.constraint_range)
            object.__setattr__(self, "constraint_range", (first, end))

    def _check_sampling(self) -> None:
        """Raises ValueError for sampling options that are unused."""
        if self.method == "beam" and (self.top_k or self.top_p < 1):
            raise ValueError(
                "DecodingConfig.top_k and top_p are for sampling; set method = "
                "'sample', or leave them at 0 and 1."
            )

    def check(self, model: OFAConfig) -> None:
        """Raises ValueError if a model's vocabulary is too small for these settings."""
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
                f"DecodingConfig.constraint_range {self.constraint_range} exceeds the "
                f"vocabulary of {model.vocab_size} tokens."
            )

    def max_output_length(self, source_length: int, model: OFAConfig) -> int:
        """Returns the number of tokens of the longest output, without eos.

        Args:
          source_length: number of tokens of the instructions, including padding.
          model: configuration of the model.

        Raises:
          ValueError: if the model lacks positions for it, or if it is below `min_length`.
        """
        length = int(self.max_length_per_source_token * source_length + self.max_length)
        check_length(
            length + 1,
            "the output with its eos",
            model.max_target_positions,
            "reduce DecodingConfig.max_length",
        )
        if length < self.min_length:
            raise ValueError(
                f"DecodingConfig.min_length {self.min_length} is more than the "
                f"longest output, {length} tokens."
            )
        return length

    def replace(self, **overrides: Any) -> "DecodingConfig":
        """Returns a copy with some fields changed."""
        return dataclasses.replace(self, **overrides)

    @property
    def dynamic_params(self) -> "DynamicParams":
        """Settings that may change without recompilation."""
        # Division by length ** 0 leaves scores unnormalised.
        penalty = self.length_penalty if self.normalize_scores else 0.0
        return DynamicParams(
            min_length=np.int32(self.min_length),
            length_penalty=np.float32(penalty),
            temperature=np.float32(self.temperature),
            unk_penalty=np.float32(self.unk_penalty),
            guidance_scale=np.float32(self.guidance_scale),
        )

    @property
    def static_config(self) -> "DecodingConfig":
        """A configuration that is equal for all configurations that share a compiled program."""
        return self.replace(
            min_length=0,
            length_penalty=0.0,
            normalize_scores=False,
            temperature=1.0,
            unk_penalty=0.0,
            guidance_scale=2.0 if self.is_guided else 1.0,
        )

    @property
    def is_guided(self) -> bool:
        """Whether each example is decoded with and without its caption."""
        return self.guidance_scale != 1

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON; without `guidance_scale`, as earlier versions, if it is 1."""
        fields = dataclasses.asdict(self)
        if not self.is_guided:
            del fields["guidance_scale"]
        return fields


class DynamicParams(flax.struct.PyTreeNode):
    """Settings of `DecodingConfig` that are arguments of compiled programs."""

    min_length: Int[ArrayLike, ""]
    length_penalty: Float[ArrayLike, ""]
    temperature: Float[ArrayLike, ""]
    unk_penalty: Float[ArrayLike, ""]
    guidance_scale: Float[ArrayLike, ""] = 1.0


def _check_range(constraint_range: Sequence[int]) -> Sequence[int]:
    """Raises ValueError unless a range has two ids in order, after the special symbols."""
    if not len(SPECIAL_SYMBOLS) <= constraint_range[0] < constraint_range[1]:
        raise ValueError(
            f"DecodingConfig.constraint_range is {constraint_range}; give the first id and the one "
            f"after the last, e.g. ({len(SPECIAL_SYMBOLS)}, 100). Special symbols are always "
            "allowed."
        )
    return constraint_range
