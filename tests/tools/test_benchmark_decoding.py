"""The measurements and the output of `python -m tools.benchmark_decoding`."""

import json

import pytest

from tools import benchmark_decoding

SMALL = ["--size=scenes", "--batch=1", "--beam=2", "--tokens=2", "--patches=4", "--repeats=1"]


def test_encoder_and_outputs_of_the_requested_length_are_timed(capsys):
    benchmark_decoding.main([*SMALL, "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["encoder"] > 0 and result["decoder"] > 0
    assert result["per_token"] == pytest.approx(result["decoder"] / 3)
    benchmark_decoding.main(SMALL)
    text = capsys.readouterr().out
    assert "encoder, ResNet included" in text and "decoder, 2 tokens and eos" in text


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--patches=577", "not a square number; try 576"),
        ("--tokens=1024", "1025 tokens long, the model has 1024 positions"),
        ("--beam=0", "beam_size is 0"),
    ],
)
def test_unmeasurable_options_are_reported_in_one_sentence(capsys, option, sentence):
    with pytest.raises(SystemExit):
        benchmark_decoding.main([*SMALL, option])
    assert sentence in " ".join(capsys.readouterr().err.split())
