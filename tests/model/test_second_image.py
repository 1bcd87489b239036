"""Two images per example.

The reference implementation cannot run this (its type table lacks the third row that it looks up),
so there are no golden numbers, and properties are tested instead.
"""

import functools

import flax
import jax
import numpy as np
import pytest
from official_model import random_variables
from small_model import SMALL, random_batch

from ofa_jax.interop import to_fairseq
from ofa_jax.model import OFA

CONFIG = SMALL.replace(second_image=True)
# For sums of about ten float32 terms of size 5 to 10 in another order.
SAME = dict(rtol=0, atol=5e-5)


variables = functools.cache(lambda: random_variables(CONFIG))


def two_images():
    batch = random_batch()
    second = random_batch(5, pixels=32)["encoder_images"]
    return batch | {"encoder_second_images": second}


jitted = jax.jit(OFA(CONFIG).apply)


def apply(batch, changed=None):
    return jitted(changed or variables(), batch)


def test_second_image_changes_logits_and_single_images_are_unaffected():
    batch = two_images()
    one = random_batch()
    assert np.abs(apply(batch) - apply(one)).max() > 1e-2
    less = flax.traverse_util.flatten_dict(dict(variables()))
    del less[("params", "encoder", "second_image_type")]
    plain = jax.jit(OFA(SMALL).apply)(flax.traverse_util.unflatten_dict(less), one)
    np.testing.assert_array_equal(apply(one), plain)


def test_images_with_equal_types_can_be_swapped():
    """There is no relative position between images: only their types distinguish them."""
    flat = flax.traverse_util.flatten_dict(dict(variables()))
    types = flat[("params", "encoder", "type_embedding", "embedding")]

    def of_type(vector):
        return flax.traverse_util.unflatten_dict(
            flat | {("params", "encoder", "second_image_type"): vector}
        )

    # Scaled like the random ResNet's features, next to which a type of size 1 would have no effect.
    equal, different = of_type(types[1]), of_type(1e4 * types[1])
    batch = two_images()
    swapped = batch | {
        "encoder_images": batch["encoder_second_images"],
        "encoder_second_images": batch["encoder_images"],
    }
    np.testing.assert_allclose(apply(batch, equal), apply(swapped, equal), **SAME)
    assert np.abs(apply(batch, different) - apply(swapped, different)).max() > 1e-2


def test_patches_of_both_images_can_be_sampled():
    batch = two_images()
    all_patches = {
        "encoder_patch_indices": np.stack([np.roll(np.arange(9), k) for k in range(3)]),
        "encoder_second_patch_indices": np.stack([np.roll(np.arange(4), k) for k in range(3)]),
    }
    all_patches = {name: array.astype(np.int32) for name, array in all_patches.items()}
    whole = apply(batch)
    np.testing.assert_allclose(apply(batch | all_patches), whole, **SAME)
    for name, array in all_patches.items():
        np.testing.assert_allclose(apply(batch | {name: array}), whole, **SAME)
        assert np.abs(apply(batch | {name: array[:, :2]}) - whole).max() > 1e-3


def test_image_mask_hides_both_images():
    batch = two_images() | {"encoder_image_mask": np.array([True, False, True])}
    text = {name: x for name, x in random_batch().items() if name != "encoder_images"}
    np.testing.assert_allclose(apply(batch)[1], apply(text)[1], **SAME)


def test_invalid_second_images_raise_clear_errors():
    with pytest.raises(ValueError, match="set OFAConfig.second_image"):
        OFA(SMALL).init(jax.random.key(0), two_images())
    bad = two_images() | {"encoder_second_images": np.zeros((2, 32, 32, 3), np.uint8)}
    with pytest.raises(ValueError, match="encoder_second_images is .* give"):
        OFA(CONFIG).init(jax.random.key(0), bad)
    with pytest.raises(ValueError, match="second_image needs type_embedding"):
        CONFIG.replace(type_embedding=False)
    with pytest.raises(ValueError, match="no place for what OFAConfig.second_image"):
        to_fairseq(variables(), CONFIG)
