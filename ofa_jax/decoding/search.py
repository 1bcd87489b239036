"""The loop that writes answers, compiled as one program with the encoder in it."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from ofa_jax.decoding import beam, sampling
from ofa_jax.decoding.config import DecodingConfig, DynamicParams
from ofa_jax.decoding.constraints import Constraints, Prefix
from ofa_jax.decoding.hypotheses import PAD, DecodeState, Hypotheses
from ofa_jax.decoding.trie import Trie
from ofa_jax.model import OFA, EncoderOutput, layout

Batch = Mapping[str, Any]


def make_decoder(
    model: OFA, config: DecodingConfig, trie: Trie | None = None
) -> Callable[..., Hypotheses]:
    """A function that answers batches.

    Args:
      model: whose answers are wanted.
      config: how to search for them.
      trie: of the answers allowed; None for all.

    Returns:
      decode(variables, batch, rng=None) -> Hypotheses, see `ofa_jax.decoding`; rng is a
      `jax.random.key`, needed for samples. Decoders whose settings differ only in lengths,
      penalties or temperature share a compiled program.

    Raises:
      ValueError: for settings that do not fit each other or the model; the function, for a batch
        that does not fit them.
    """
    config.check(model.config)
    check_trie(trie, model)
    if trie is not None and config.constraint_range is not None:
        raise ValueError(
            "a decoder takes a trie or a DecodingConfig.constraint_range, not both; "
            "leave out of the trie what is out of the range."
        )

    def decode(variables: Any, batch: Batch, rng: jax.Array | None = None) -> Hypotheses:
        batch = read_by_decoders(batch)
        longest = config.longest(batch["encoder_input_tokens"].shape[1], model.config)
        check_prefix(batch, longest, model)
        if config.method == "sample" and rng is None:
            raise ValueError(
                "DecodingConfig.method is 'sample'; give the decoder a key, e.g. "
                "decode(variables, batch, jax.random.key(0))."
            )
        return _program(
            variables,
            batch,
            rng,
            trie,
            config.dynamic_params,
            model=model,
            config=config.static_config,
        )

    return decode


@functools.partial(jax.jit, static_argnames=("model", "config"))
def _program(variables, batch, rng, trie, numbers, *, model, config) -> Hypotheses:
    variables, plain_config = layout.ensure_plain(variables, model.config)
    model = model.clone(config=plain_config)
    encoded = model.apply(variables, batch, method="encode")
    longest = config.longest(batch["encoder_input_tokens"].shape[1], model.config)
    return generate(
        model,
        variables,
        encoded,
        config,
        numbers,
        longest,
        trie,
        batch.get("decoder_prefix_tokens"),
        batch.get("decoder_code_mask"),
        rng,
    )


def generate(
    model: OFA,
    variables: Any,
    encoded: EncoderOutput,
    config: DecodingConfig,
    numbers: DynamicParams,
    longest: int,
    trie: Trie | None = None,
    prefix_tokens: jax.Array | None = None,
    is_image_code: jax.Array | None = None,
    rng: jax.Array | None = None,
) -> Hypotheses:
    """Writes answers to what the encoder has read; for use within a compiled program.

    Args:
      model, variables: the model.
      encoded: of its `encode`.
      config, numbers: settings.
      longest: answer, in tokens without eos.
      trie: of allowed answers, or None.
      prefix_tokens: int32 [B, P], see `ofa_jax.decoding`.
      is_image_code: bool [B], rows that write image codes.
      rng: for samples.

    Returns:
      Hypotheses, the best first; samples in the order of drawing.
    """
    batch_size, beams, length = encoded.hidden.shape[0], config.beam_size, longest + 1
    prefix = None if prefix_tokens is None else Prefix.of(prefix_tokens)
    constraints = Constraints(numbers, trie, prefix, config)
    cache = model.apply(variables, encoded, length, beams, is_image_code, method="start_cache")
    is_beam = config.method == "beam"
    totals = (beam if is_beam else sampling).start(batch_size, beams)
    finished = Hypotheses.none(batch_size, beams, length) if is_beam else None

    def goes_on(state):
        growing, finished = state
        running = beam.running(growing, finished) if is_beam else sampling.running(growing)
        return (growing.step < length) & running.any()

    def step(state):
        growing, finished = state
        logits, cache = model.apply(
            variables, growing.newest, growing.cache, growing.step, method="decode_step"
        )
        growing = growing.replace(cache=cache)
        log_probs = constraints.log_probs(logits, growing)
        if is_beam:
            choice, finished = beam.select(log_probs, growing, finished, numbers)
        else:
            choice = sampling.select(log_probs, growing, config, rng)
        if beams == 1:
            choice = choice.replace(parents=None)  # nothing to reorder
        return growing.extend(choice, constraints.nodes_after(growing, choice)), finished

    growing, finished = jax.lax.while_loop(
        goes_on, step, (DecodeState.start(totals, cache, trie), finished)
    )
    return finished.best_first() if is_beam else sampling.results(growing, numbers)


# --------------------------------------------------------------------------- what callers give


def read_by_decoders(batch: Batch) -> dict[str, Any]:
    """The arrays that generation depends on; others would only make it compile again."""
    own = ("decoder_code_mask", "decoder_prefix_tokens")
    return {
        name: array for name, array in batch.items() if name.startswith("encoder_") or name in own
    }


def check_trie(trie: Trie | None, model: OFA) -> None:
    """Raises ValueError for a trie of another vocabulary."""
    if trie is not None and trie.vocab_size != model.config.vocab_size:
        raise ValueError(
            f"the trie was made for {trie.vocab_size} tokens, OFAConfig.vocab_size is "
            f"{model.config.vocab_size}; make it with the model's vocabulary."
        )


def check_prefix(batch: Batch, longest: int, model: OFA) -> None:
    """Raises ValueError for a forced prefix that cannot be written.

    Ids are looked at only where they have values: not on other hosts.
    """
    tokens = batch.get("decoder_prefix_tokens")
    if tokens is None:
        return
    size = batch["encoder_input_tokens"].shape[0]
    if tokens.ndim != 2 or tokens.shape[0] != size or not tokens.shape[1]:
        raise ValueError(
            f"decoder_prefix_tokens is {list(tokens.shape)}; give [{size}, P], padded at the end."
        )
    if tokens.shape[1] > longest:
        raise ValueError(
            f"decoder_prefix_tokens is {tokens.shape[1]} tokens long, the answer at "
            f"most {longest}; raise DecodingConfig.max_length, which counts the "
            "prefix."
        )
    if not getattr(tokens, "is_fully_addressable", True):
        return
    values = np.asarray(tokens)
    if values.min() < 0 or values.max() >= model.config.vocab_size:
        raise ValueError(
            f"decoder_prefix_tokens reaches from {values.min()} to {values.max()}, "
            f"OFAConfig.vocab_size is {model.config.vocab_size}."
        )
    if ((values[:, :-1] == PAD) & (values[:, 1:] != PAD)).any():
        raise ValueError("decoder_prefix_tokens has padding before a token; pad at the end.")
