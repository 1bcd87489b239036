"""The decoding loop, compiled together with the encoder as one program."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray

from ofa_jax.decoding import beam, sampling
from ofa_jax.decoding.config import DecodingConfig, DynamicParams
from ofa_jax.decoding.constraints import Constraints, ForcedPrefix
from ofa_jax.decoding.hypotheses import PAD, DecodeState, Hypotheses
from ofa_jax.decoding.model_methods import decode_step, encode, start_cache
from ofa_jax.decoding.trie import Trie
from ofa_jax.model import OFA, EncoderOutput, ModelInputs, layout


def make_decoder(
    model: OFA, config: DecodingConfig, trie: Trie | None = None
) -> Callable[..., Hypotheses]:
    """Builds a function that generates outputs for a batch.

    Args:
      model: the model.
      config: how to search.
      trie: allowed outputs; None for all.

    Returns:
      decode(variables, batch, rng=None) -> Hypotheses, see `ofa_jax.decoding`; rng is a
      `jax.random.key`, needed for sampling. Decoders whose settings differ only in lengths,
      penalties or temperature share a compiled program.

    Raises:
      ValueError: if the settings do not fit each other or the model; `decode` raises it for a
        batch that does not fit them.
    """
    config.check(model.config)
    check_trie(trie, model)
    if trie is not None and config.constraint_range is not None:
        raise ValueError(
            "a decoder takes a trie or a DecodingConfig.constraint_range, not both; "
            "leave out of the trie what is out of the range."
        )

    def decode(variables: Any, batch: ModelInputs, rng: PRNGKeyArray | None = None) -> Hypotheses:
        """Generates outputs for a batch, see `make_decoder`."""
        batch = select_decoder_inputs(batch)
        source_length = batch["encoder_input_tokens"].shape[1]
        check_prefix(batch, config.max_output_length(source_length, model.config), model)
        check_guidance(batch, config)
        if config.method == "sample" and rng is None:
            raise ValueError(
                "DecodingConfig.method is 'sample'; give the decoder a key, e.g. "
                "decode(variables, batch, jax.random.key(0))."
            )
        return _encode_and_generate(
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
def _encode_and_generate(
    variables: Any,
    batch: ModelInputs,
    rng: PRNGKeyArray | None,
    trie: Trie | None,
    dynamic_params: DynamicParams,
    *,
    model: OFA,
    config: DecodingConfig,
) -> Hypotheses:
    """Encodes a batch and generates outputs for it, in the plain layout of parameters."""
    variables, plain_config = layout.ensure_plain(variables, model.config)
    model = model.clone(config=plain_config)
    is_image_code = batch.get("decoder_code_mask")
    encoder_inputs = {name: x for name, x in batch.items() if name.startswith("encoder_")}
    if config.is_guided:
        encoder_inputs = _with_and_without(encoder_inputs, batch[_GUIDANCE])
        is_image_code = None if is_image_code is None else jnp.repeat(is_image_code, 2)
    if rng is not None and "decoder_seeds" in batch:
        rng = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(rng, batch["decoder_seeds"])
    encoded = encode(model, variables, encoder_inputs)
    source_length = batch["encoder_input_tokens"].shape[1]
    return generate(
        model,
        variables,
        encoded,
        config,
        dynamic_params,
        config.max_output_length(source_length, model.config),
        trie,
        batch.get("decoder_prefix_tokens"),
        is_image_code,
        rng,
    )


def _with_and_without(
    encoder_inputs: dict[str, Array], guidance_tokens: Int[Array, "batch length"]
) -> dict[str, Array]:
    """Returns two rows for each example: with its instruction, and with that of guidance.

    The rows of an example are neighbours, so a batch that is sharded over its rows stays so.
    """
    rows = {name: jnp.repeat(array, 2, axis=0) for name, array in encoder_inputs.items()}
    tokens = jnp.stack([encoder_inputs["encoder_input_tokens"], guidance_tokens], axis=1)
    rows["encoder_input_tokens"] = tokens.reshape(-1, tokens.shape[-1])
    return rows


def generate(
    model: OFA,
    variables: Any,
    encoded: EncoderOutput,
    config: DecodingConfig,
    dynamic_params: DynamicParams,
    max_output_length: int,
    trie: Trie | None = None,
    prefix_tokens: Int[Array, "batch prefix"] | None = None,
    is_image_code: Bool[Array, " batch"] | None = None,
    rng: PRNGKeyArray | None = None,
) -> Hypotheses:
    """Generates outputs for encoded examples; for use within a compiled program.

    Args:
      model: the model.
      variables: its variables, in the plain layout.
      encoded: result of its `encode`; under guidance two rows for each example, the second one
        without its caption.
      config: settings that are part of the program.
      dynamic_params: settings that are arguments of the program.
      max_output_length: tokens of the longest output, without eos.
      trie: allowed outputs, or None.
      prefix_tokens: forced tokens, see `ofa_jax.decoding`.
      is_image_code: which rows of `encoded` generate image codes.
      rng: key for sampling, or one for each example.

    Returns:
      Hypotheses, best first; samples in the order in which they were drawn.
    """
    batch_size, beams, length = encoded.hidden.shape[0], config.beam_size, max_output_length + 1
    batch_size //= 2 if config.is_guided else 1
    prefix = None if prefix_tokens is None else ForcedPrefix.from_padded(prefix_tokens)
    constraints = Constraints(dynamic_params, trie, prefix, config)
    cache = start_cache(model, variables, encoded, length, beams, is_image_code)
    if config.method == "beam":
        totals = beam.initial_totals(batch_size, beams)
        finished = Hypotheses.empty(batch_size, beams, length)
    else:
        totals, finished = sampling.initial_totals(batch_size, beams), None
    state, finished = jax.lax.while_loop(
        lambda carry: _is_running(carry, length),
        lambda carry: _add_token(carry, model, variables, constraints, rng),
        (DecodeState.start(totals, cache, trie), finished),
    )
    if finished is None:
        return sampling.finish(state, dynamic_params)
    return finished.sorted_by_score()


_Carry = tuple[DecodeState, Hypotheses | None]
"""Carry of the decoding loop: unfinished and, in a beam search, finished hypotheses."""


def _is_running(carry: _Carry, length: int) -> Bool[Array, ""]:
    """Returns whether any example is not done."""
    state, finished = carry
    if finished is None:
        running = sampling.is_running(state)
    else:
        running = beam.is_running(state, finished)
    return (state.step < length) & running.any()


def _add_token(
    carry: _Carry,
    model: OFA,
    variables: Any,
    constraints: Constraints,
    rng: PRNGKeyArray | None,
) -> _Carry:
    """Adds a token to every unfinished hypothesis."""
    state, finished = carry
    last_tokens, is_guided = state.last_tokens, constraints.config.is_guided
    if is_guided:
        last_tokens = jnp.repeat(last_tokens, 2, axis=0)
    logits, cache = decode_step(model, variables, last_tokens, state.cache, state.step)
    if is_guided:
        logits = guide(logits, constraints.dynamic_params.guidance_scale)
    state = state.replace(cache=cache)
    log_probs = constraints.log_probs(logits, state)
    if finished is None:
        assert rng is not None
        continuation = sampling.select(log_probs, state, constraints.config, rng)
    else:
        continuation, finished = beam.select(log_probs, state, finished, constraints.dynamic_params)
    if constraints.config.beam_size == 1:
        continuation = continuation.replace(parents=None)  # nothing to reorder
    nodes = constraints.next_nodes(state, continuation)
    return state.extend(continuation, nodes), finished


def guide(
    logits: Float[Array, "rows beams vocab"], scale: Float[ArrayLike, ""]
) -> Float[Array, "batch beams vocab"]:
    """Returns the logits u + s (c - u) of guidance (Ho and Salimans 2022, eq. 6, with s = 1 + w).

    Args:
      logits: two rows for each example: with its caption (c) and without (u).
      scale: s.
    """
    pairs = logits.reshape(-1, 2, *logits.shape[1:])
    return pairs[:, 1] + scale * (pairs[:, 0] - pairs[:, 1])


# ---------------------------------------------------------------------------- checks of inputs

_GUIDANCE = "guidance_input_tokens"


def select_decoder_inputs(batch: ModelInputs) -> dict[str, Any]:
    """Selects the arrays that generation depends on; others would only cause recompilation."""
    own = ("decoder_code_mask", "decoder_prefix_tokens", "decoder_seeds", _GUIDANCE)
    return {
        name: array for name, array in batch.items() if name.startswith("encoder_") or name in own
    }


def check_trie(trie: Trie | None, model: OFA) -> None:
    """Raises ValueError if a trie has another vocabulary than the model."""
    if trie is not None and trie.vocab_size != model.config.vocab_size:
        raise ValueError(
            f"the trie was made for {trie.vocab_size} tokens, OFAConfig.vocab_size is "
            f"{model.config.vocab_size}; make it with the model's vocabulary."
        )


def check_guidance(batch: ModelInputs, config: DecodingConfig) -> None:
    """Raises ValueError if guidance lacks its instruction, or that has another shape."""
    if not config.is_guided:
        return
    like = batch["encoder_input_tokens"].shape
    if _GUIDANCE not in batch:
        raise ValueError(
            f"DecodingConfig.guidance_scale is {config.guidance_scale}, but the batch has no "
            f"{_GUIDANCE}: only tasks that generate images from captions have one; leave the scale "
            "at 1."
        )
    if batch[_GUIDANCE].shape != like:
        raise ValueError(
            f"{_GUIDANCE} is {list(batch[_GUIDANCE].shape)}; give {list(like)}, as "
            "encoder_input_tokens."
        )


def check_prefix(batch: ModelInputs, max_output_length: int, model: OFA) -> None:
    """Raises ValueError if a forced prefix cannot be generated.

    The ids are checked only if their values are known here, not if they are on other hosts.
    """
    tokens = batch.get("decoder_prefix_tokens")
    if tokens is None:
        return
    batch_size = batch["encoder_input_tokens"].shape[0]
    if tokens.ndim != 2 or tokens.shape[0] != batch_size or not tokens.shape[1]:
        raise ValueError(
            f"decoder_prefix_tokens is {list(tokens.shape)}; give [{batch_size}, P], padded at the "
            "end."
        )
    if tokens.shape[1] > max_output_length:
        raise ValueError(
            f"decoder_prefix_tokens is {tokens.shape[1]} tokens long, the output at most "
            f"{max_output_length}; raise DecodingConfig.max_length, which counts the prefix."
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
