"""Official names and shapes, one to one, and conversion in both directions."""

import json

import flax.linen as nn
import jax
import numpy as np
import official_model
import pytest

from ofa_jax.interop import config_from_fairseq, from_fairseq, to_fairseq
from ofa_jax.model import OFA, OFAConfig

BATCH = {
    "encoder_input_tokens": np.zeros((1, 2), np.int32),
    "decoder_input_tokens": np.zeros((1, 2), np.int32),
}


@pytest.fixture(scope="module")
def tiny(golden):
    """Returns (args, vocabulary size, state dict) of the small official model."""
    return official_model.read_tiny(golden)


def random_variables(config):
    shapes = nn.meta.unbox(jax.eval_shape(OFA(config).init, jax.random.key(0), BATCH))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), shapes)


@pytest.mark.parametrize("size", ["tiny", "medium", "base", "large", "huge"])
def test_published_sizes_have_the_official_names_shapes_and_types(golden, size):
    """Zeros in place of weights (broadcast: no memory) through `to_fairseq`'s own entries."""
    arch = json.loads((golden / "resnet" / "ofa_archs.json").read_text())[f"ofa_{size}"]
    config = config_from_fairseq(arch["args"], arch["args"]["vocab_size"])
    off = dict(dropout_rate=0.0, encoder_drop_path_rate=0.0, decoder_drop_path_rate=0.0)
    assert config == getattr(OFAConfig, size)(**off)
    from ofa_jax.interop import fairseq, tensor_layout

    shapes = nn.meta.unbox(jax.eval_shape(OFA(config).init, jax.random.key(0), BATCH))
    entries = list(tensor_layout.tensor_entries(config))
    ours = {"/".join(e.path): e.shape for e in entries}
    assert ours == {
        "/".join(k.key for k in path): x.shape
        for path, x in jax.tree_util.tree_leaves_with_path(shapes)
    }
    official = {e.key: [list(e.official_shape), "float32"] for e in entries}
    assert len(official) == len(entries)
    official |= {key: official[fairseq._EMBEDDING] for key in fairseq._TIED}
    official |= {k: [list(x.shape), str(x.dtype)] for k, x in fairseq._buffers(config).items()}
    assert official == arch["state_dict"]


def test_the_official_state_dict_survives_the_round_trip(tiny):
    args, vocab_size, state_dict = tiny
    config = config_from_fairseq(args, vocab_size)
    back = to_fairseq(from_fairseq(state_dict, config), config)
    assert state_dict.keys() <= back.keys()
    for key, array in state_dict.items():
        np.testing.assert_array_equal(back[key], array.astype(np.float32), err_msg=key)
    for key in ("decoder.embed_tokens.weight", "decoder.output_projection.weight"):
        np.testing.assert_array_equal(back[key], back["encoder.embed_tokens.weight"])


def test_integer_buffers_are_the_official_ones(tiny, golden):
    args, vocab_size, state_dict = tiny
    config = config_from_fairseq(args, vocab_size)
    back = to_fairseq(from_fairseq(state_dict, config), config)
    tables = np.load(golden / "positions" / "positions.npz")
    for side in ("encoder", "decoder"):
        np.testing.assert_array_equal(back[f"{side}.token_rp_bucket"], tables["token_bucket_256"])
        np.testing.assert_array_equal(back[f"{side}.image_rp_bucket"], tables["image_bucket_42"])
    np.testing.assert_array_equal(
        back["decoder.image_position_idx"], tables["decoder_image_position_idx"]
    )


VARIANTS = [
    dict(
        encoder_embed_dim=96,
        encoder_attention_heads=6,
        encoder_layers=3,
        decoder_layers=2,
        resnet_type="resnet50",
        scale_resids=True,
    ),
    dict(scale_attn=False, scale_fc=False, scale_heads=False, add_type_embedding=False),
    dict(
        patch_layernorm_embedding=False,
        code_layernorm_embedding=False,
        layernorm_embedding=False,
        code_image_size=64,
        image_bucket_size=8,
        token_bucket_size=32,
    ),
]


@pytest.mark.parametrize("changes", VARIANTS)
def test_variants_round_trip_from_either_side(tiny, changes):
    args, vocab_size, _ = tiny
    width, heads = (
        changes.get(f"encoder_{k}", args[f"encoder_{k}"]) for k in ("embed_dim", "attention_heads")
    )
    args = (
        args
        | changes
        | dict(
            decoder_embed_dim=width,
            decoder_input_dim=width,
            decoder_output_dim=width,
            decoder_attention_heads=heads,
        )
    )
    config = config_from_fairseq(args, vocab_size)
    variables = random_variables(config)
    state_dict = to_fairseq(variables, config)
    jax.tree.map(np.testing.assert_array_equal, from_fairseq(state_dict, config), variables)
    again = to_fairseq(from_fairseq(state_dict, config), config)
    assert again.keys() == state_dict.keys()
    for key, array in state_dict.items():
        np.testing.assert_array_equal(again[key], array, err_msg=key)
    assert ("encoder.layers.0.w_resid" in state_dict) == bool(args["scale_resids"])


@pytest.mark.parametrize(
    "change",
    [
        {"encoder_normalize_before": False},
        {"share_all_embeddings": False},
        {"decoder_embed_dim": 32},
        {"encoder_prompt": True},
        {"resnet_type": "resnet42"},
        {"layernorm_embedding": False},
    ],
)
def test_unsupported_options_are_refused_by_name(tiny, change):
    args, vocab_size, _ = tiny
    with pytest.raises(ValueError, match=next(iter(change))):
        config_from_fairseq(args | change, vocab_size)


def test_a_state_dict_that_does_not_fit_is_refused_by_name(tiny):
    args, vocab_size, state_dict = tiny
    config = config_from_fairseq(args, vocab_size)
    less = {k: v for k, v in state_dict.items() if k != "encoder.layer_norm.bias"}
    with pytest.raises(ValueError, match=r"missing: encoder\.layer_norm\.bias"):
        from_fairseq(less, config)
    with pytest.raises(ValueError, match="not expected: mystery"):
        from_fairseq(state_dict | {"mystery": np.zeros(1)}, config)
    with pytest.raises(ValueError, match="vocabulary of 401 ids, and the model one of 400"):
        from_fairseq(state_dict, config.replace(vocab_size=400))
    untied = state_dict | {"decoder.embed_tokens.weight": np.zeros((401, 64))}
    with pytest.raises(ValueError, match="shares one embedding"):
        from_fairseq(untied, config)
    with pytest.raises(ValueError, match="batch_stats"):
        to_fairseq({"params": from_fairseq(state_dict, config)["params"]}, config)
