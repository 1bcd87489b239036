"""Our Hugging Face layout in the model that defines it: the OFA of the package `modelscope`.

Needs the extra `peer` (torch, transformers, modelscope) on top of the project's; skipped
without.
"""

import json

import numpy as np
import pytest

from ofa_jax.interop import files
from tools import reference_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def loaded(official, tmp_path_factory):
    """Loads our weights into the peer's model, which must know every name."""
    if absent := reference_model.missing():
        pytest.skip(f"the extra `peer` is not installed: {', '.join(absent)}")
    import torch

    folder = tmp_path_factory.mktemp("peer")
    files.write(folder, official.variables, official.config, layout="huggingface")
    described = json.loads((folder / "config.json").read_text())
    config = reference_model.module("configuration_ofa").OFAConfig(**described)
    model = reference_model.module("modeling_ofa").OFAModel(config)
    held = torch.load(folder / "pytorch_model.bin", weights_only=True)
    missing, unexpected = model.load_state_dict(held, strict=False)
    assert not unexpected
    # Versions of the format are not kept in this layout.
    assert [key for key in missing if "version" not in key] == []
    return model.eval()


@pytest.mark.parametrize("name", ["a", "c", "d"])
def test_the_peer_scores_a_model_that_we_wrote_as_the_official_one(loaded, official, name):
    """float32, 1e-4 absolute on logits of size 15, as in the golden tests of the model."""
    import torch

    case, _ = official.case(name)
    tensor = lambda key: torch.from_numpy(case[key]) if key in case else None  # noqa: E731
    with torch.no_grad():
        output = loaded(
            input_ids=tensor("in_src_tokens"),
            patch_images=tensor("in_patch_images"),
            patch_masks=tensor("in_patch_masks"),
            decoder_input_ids=tensor("in_prev_output_tokens"),
            code_masks=tensor("in_code_masks"),
            return_dict=True,
        )
    np.testing.assert_allclose(output.logits.numpy(), case["logits"], rtol=0, atol=1e-4)
