"""Compares examples with the golden ones in golden/preprocess/fixed.json."""

import numpy as np

from ofa_jax.data.features import Stream, to_features

# The objective of a pair's first golden example; the second one is that of matching.
MAIN = {
    "caption": "image_captioning",
    "qa": "visual_question_answering",
    "visual_grounding": "visual_grounding",
}


def assert_matches_golden(example, expected, vocabulary):
    """Compares source, target, decoder input and weight, as features of the model."""
    lengths = {"inputs": len(example["inputs"]), "targets": len(example["targets"])}
    size = example["image"].shape[0] if "image" in example else None
    stream = Stream("golden", "golden", 1, lengths, size, code_targets=True)
    features = to_features(example, stream, 0, np.random.default_rng(0))
    assert example["inputs"].tolist() == expected["source"], expected["source_text"]
    assert features["decoder_target_tokens"].tolist() == expected["target"]
    assert features["decoder_input_tokens"].tolist() == expected["prev_output_tokens"]
    scored = np.array(expected["target"]) != vocabulary.pad_id
    np.testing.assert_array_equal(
        features["decoder_loss_weights"], scored * np.float32(expected["conf"][0])
    )
    assert bool(features["decoder_code_mask"]) == expected.get("code_mask", [False])[0]
    assert ("image" in example) == expected["patch_mask"][0]
