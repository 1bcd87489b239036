"""The programs of an export: functions of flat dicts of arrays, lowered to StableHLO.

    encoder        encoder_* inputs -> hidden, mask, position_embeddings
    decoder_start  the encoder's outputs -> cache/*
    decoder_step   tokens, position, cache/* -> logits, cache/*
    greedy         encoder_* inputs -> tokens, scores: the most probable token at each step
    generate       encoder_* inputs -> tokens, scores: as the decoding settings say

Every program takes all parameters as its first argument, so that they are stored once. Nothing but
dicts of arrays goes in or out: what reads a program back needs none of this project's classes.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from ofa_jax.data.features import Stream, empty_features, stack
from ofa_jax.decoding import DecodingConfig, Trie, make_decoder
from ofa_jax.decoding.model_methods import decode_step, encode, start_cache
from ofa_jax.decoding.search import select_decoder_inputs
from ofa_jax.model import OFA, DecoderCache, EncoderOutput
from ofa_jax.tokenizers.vocabulary import OFAVocabulary

PLATFORMS = ("cpu", "cuda", "tpu")
"""What a program can be lowered for."""

Arrays = Mapping[str, Any]
"""Arrays, or their shapes, by name."""

BATCH = "batch"
"""Name of the number of rows where an export leaves it open."""
_CACHE = "cache"
_ENCODED = ("hidden", "mask", "position_embeddings")


@dataclasses.dataclass(frozen=True)
class Program:
    """A program before it is lowered.

    Attributes:
      function: (parameters, inputs) -> outputs.
      inputs: shapes and dtypes.
      description: one sentence, for the manifest.
    """

    function: Callable[[Arrays, Arrays], dict[str, jax.Array]]
    inputs: dict[str, jax.ShapeDtypeStruct]
    description: str


def shapes_of(arrays: Arrays) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes and dtypes of arrays."""
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in arrays.items()}


def request_shapes(
    batch_size: int | None, source_length: int, image_size: int | None, has_codes: bool
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the inputs that a `Predictor` makes of requests.

    Args:
      batch_size: rows; None leaves their number open (`BATCH`).
      source_length: tokens of an instruction, with bos, eos and padding.
      image_size: pixels a side; None without images.
      has_codes: whether the outputs are image codes.
    """
    lengths = {"inputs": source_length, "targets": 1}
    stream = Stream("requests", "export", 1, lengths, image_size=image_size, code_targets=has_codes)
    row = select_decoder_inputs(stack([empty_features(stream, 0)]))
    rows = export.symbolic_shape(BATCH)[0] if batch_size is None else batch_size
    return {name: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype) for name, x in row.items()}


def flatten_variables(variables: Any) -> dict[str, Any]:
    """Returns the variables of a model by their paths, such as `params/decoder/...`."""
    return flax.traverse_util.flatten_dict(dict(variables), sep="/")


def _unflatten(parameters: Arrays) -> dict[str, Any]:
    return flax.traverse_util.unflatten_dict(dict(parameters), sep="/")


def build_programs(
    model: OFA,
    parameters: Arrays,
    requests: Mapping[str, jax.ShapeDtypeStruct],
    decoding: DecodingConfig,
    trie: Trie | None = None,
    unconditional: np.ndarray | None = None,
) -> dict[str, Program]:
    """Builds all programs of an export.

    Args:
      model: in the plain layout, see `model.layout`.
      parameters: see `flatten_variables`, or their shapes.
      requests: see `request_shapes`.
      decoding: of `generate`.
      trie: the outputs allowed; None for all.
      unconditional: ids of the instruction without its caption, int32 [source length]; None
        without guidance.

    Returns:
      Programs by name; `greedy` is left out where `generate` is the same.
    """
    greedy = decoding.replace(method="beam", beam_size=1, top_k=0, top_p=1.0)
    programs = _steps(model, parameters, requests, decoding)
    if greedy != decoding:
        programs["greedy"] = _generation(model, requests, greedy, trie, unconditional)
    programs["generate"] = _generation(model, requests, decoding, trie, unconditional)
    return programs


def _steps(
    model: OFA,
    parameters: Arrays,
    requests: Mapping[str, jax.ShapeDtypeStruct],
    decoding: DecodingConfig,
) -> dict[str, Program]:
    """Builds the encoder, and the decoder that adds one token to one output per row."""
    length = 1 + decoding.max_output_length(requests["encoder_input_tokens"].shape[1], model.config)
    code_mask = {name: x for name, x in requests.items() if name == "decoder_code_mask"}
    structure: list[Any] = []  # of the cache, filled in when decoder_start is traced

    def encoder(parameters: Arrays, inputs: Arrays) -> dict[str, jax.Array]:
        encoded = encode(model, _unflatten(parameters), inputs)
        return {name: getattr(encoded, name) for name in _ENCODED}

    def decoder_start(parameters: Arrays, inputs: Arrays) -> dict[str, jax.Array]:
        encoded = EncoderOutput(**{name: inputs[name] for name in _ENCODED})
        is_code = inputs.get("decoder_code_mask")
        cache = start_cache(model, _unflatten(parameters), encoded, length, 1, is_code)
        structure[:] = [jax.tree.structure(cache)]
        return _flatten_cache(cache)

    def decoder_step(parameters: Arrays, inputs: Arrays) -> dict[str, jax.Array]:
        leaves = [x for name, x in sorted(inputs.items()) if name.startswith(f"{_CACHE}/")]
        cache = jax.tree.unflatten(structure[0], leaves)
        tokens = inputs["tokens"][:, None]
        variables = _unflatten(parameters)
        logits, cache = decode_step(model, variables, tokens, cache, inputs["position"])
        return {"logits": logits[:, 0], **_flatten_cache(cache)}

    encoder_inputs = {name: x for name, x in requests.items() if name.startswith("encoder_")}
    encoded = jax.eval_shape(encoder, shapes_of(parameters), encoder_inputs)
    start_inputs = shapes_of(encoded) | code_mask
    cache = jax.eval_shape(decoder_start, shapes_of(parameters), start_inputs)
    batch_size = encoded["mask"].shape[0]
    step_inputs = {
        "tokens": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
        "position": jax.ShapeDtypeStruct((), jnp.int32),
    }
    return {
        "encoder": Program(encoder, encoder_inputs, "Encodes images and instructions."),
        "decoder_start": Program(
            decoder_start,
            start_inputs,
            f"Makes the cache of {length} positions from what the encoder returned.",
        ),
        "decoder_step": Program(
            decoder_step,
            step_inputs | shapes_of(cache),
            "Takes the last token of each row (0 at position 0) and the number of tokens before "
            "it; returns the logits of the next token, and the cache for the next step.",
        ),
    }


def _flatten_cache(cache: DecoderCache) -> dict[str, jax.Array]:
    """Returns the arrays of a cache by name; the names sort in the order of the arrays."""
    leaves = jax.tree.leaves(cache)
    return {f"{_CACHE}/{number:04d}": leaf for number, leaf in enumerate(leaves)}


def _generation(
    model: OFA,
    requests: Mapping[str, jax.ShapeDtypeStruct],
    decoding: DecodingConfig,
    trie: Trie | None,
    unconditional: np.ndarray | None,
) -> Program:
    """Builds the program that decodes requests from their encoding to their last token."""
    decode = make_decoder(model, decoding, trie)
    batch_size = requests["encoder_input_tokens"].shape[0]
    inputs, samples = dict(requests), decoding.method == "sample"
    if samples:
        inputs["seed"] = jax.ShapeDtypeStruct((), jnp.uint32)
        inputs["decoder_seeds"] = jax.ShapeDtypeStruct((batch_size,), jnp.uint32)

    def generate(parameters: Arrays, inputs: Arrays) -> dict[str, jax.Array]:
        batch = dict(inputs)
        key = jax.random.key(batch.pop("seed")) if samples else None
        if decoding.is_guided:
            assert unconditional is not None
            like = batch["encoder_input_tokens"].shape
            batch["guidance_input_tokens"] = jnp.broadcast_to(unconditional, like)
        found = decode(_unflatten(parameters), batch, key)
        return {"tokens": found.tokens, "scores": found.scores}

    if samples:
        how = f"Draws {decoding.beam_size} samples for each row from `seed` and `decoder_seeds`"
    elif decoding.beam_size == 1:
        how = "Takes the most probable token at each step"
    else:
        how = f"Searches with {decoding.beam_size} beams"
    description = (
        f"{how}; returns tokens [rows, outputs, length], ended by {OFAVocabulary.eos_id} and "
        f"padded with {OFAVocabulary.pad_id}, and their scores [rows, outputs], the best first"
    )
    return Program(generate, inputs, f"{description}{' or as drawn' if samples else ''}.")


def lower(
    program: Program, parameters: Arrays, platforms: Sequence[str] = PLATFORMS
) -> export.Exported:
    """Lowers a program to StableHLO; compiles nothing.

    Args:
      program: what to lower.
      parameters: see `flatten_variables`, or their shapes.
      platforms: some of `PLATFORMS`, whether or not they are here.
    """
    lowered = export.export(jax.jit(program.function), platforms=tuple(platforms))
    return lowered(shapes_of(parameters), program.inputs)
