"""The published sizes, and errors for invalid configurations."""

import jax
import numpy as np
import pytest

from ofa_jax.model import OFA, OFAConfig

BATCH = {
    "encoder_input_tokens": np.zeros((1, 2), np.int32),
    "decoder_input_tokens": np.zeros((1, 2), np.int32),
}


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ("tiny", 33_488_336),
        ("medium", 92_892_000),
        ("base", 182_238_536),
        ("large", 472_977_152),
        ("huge", 929_486_848),
    ],
)
def test_parameter_counts_match_the_published_models(size, count):
    model = OFA(getattr(OFAConfig, size)())
    variables = jax.eval_shape(model.init, jax.random.key(0), BATCH)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count


def test_auto_is_the_attention_of_a_platform():
    config = OFAConfig.base(attention_implementation="auto", dtype="bfloat16")

    def on(platform, **overrides):
        return config.replace(**overrides).on_platform(platform).attention_implementation

    assert [on(platform) for platform in ("tpu", "gpu", "cuda", "cpu")] == ["fused"] * 3 + ["bias"]
    # What cuDNN does not take; the TPU kernel does.
    for overrides in ({"dtype": "float32"}, {"attention_dropout_rate": 0.1}, {"num_heads": 6}):
        assert (on("tpu", **overrides), on("gpu", **overrides)) == ("fused", "bias")
    assert on("cpu", attention_implementation="columns") == "columns"
    assert config.attention_implementation == "auto"


def test_auto_computes_on_a_cpu_what_biases_do():
    config = OFAConfig.scenes(vocab_size=10, width=16, ffn_width=16)
    variables = jax.eval_shape(OFA(config).init, jax.random.key(0), BATCH)
    auto, bias, columns = (
        str(
            jax.make_jaxpr(OFA(config.replace(attention_implementation=name)).apply)(
                variables, BATCH
            )
        )
        for name in ("auto", "bias", "columns")
    )
    assert auto == bias != columns


def test_presets_take_overrides_and_are_hashable():
    config = OFAConfig.scenes(vocab_size=500, resnet_layers=[1, 2, 1])
    assert (config.vocab_size, config.resnet_layers) == (500, (1, 2, 1))
    assert hash(config) == hash(config.replace())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"width": 100, "num_heads": 3}, "multiple of the number of heads"),
        ({"vocab_size": 1}, "pad_id"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"resnet_layers": (3, 4)}, "a list of 3 whole numbers"),
        ({"code_image_size": 100}, "multiple of 8"),
        ({"code_image_size": 1024}, "image_bucket_size"),
        ({"token_bucket_size": 255}, "even"),
        ({"activation": "swish"}, "one of gelu, relu"),
        ({"dtype": "float16"}, "one of float32, bfloat16"),
        ({"dropout_rate": 1.0}, "dropout_rate"),
    ],
)
def test_invalid_configurations_raise_clear_errors(overrides, message):
    with pytest.raises(ValueError, match=message):
        OFAConfig(**overrides)
