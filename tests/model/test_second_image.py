"""Two images in one example. The original has the code, but its type table lacks the third row
that it looks up: there are no numbers of it, so the properties are tested."""

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
# Sums of some ten float32 terms of size 5 to 10 in another order.
SAME = dict(rtol=0, atol=5e-5)


variables = functools.cache(lambda: random_variables(CONFIG))


def two_images():
    batch = random_batch()
    second = random_batch(5, pixels=32)["encoder_images"]
    return batch | {"encoder_second_images": second}


jitted = jax.jit(OFA(CONFIG).apply)


def apply(batch, changed=None):
    return jitted(changed or variables(), batch)


def test_the_second_image_is_seen_and_one_alone_is_as_without_the_option():
    batch = two_images()
    one = random_batch()
    assert np.abs(apply(batch) - apply(one)).max() > 1e-2
    less = flax.traverse_util.flatten_dict(dict(variables()))
    del less[("params", "encoder", "second_image_type")]
    plain = jax.jit(OFA(SMALL).apply)(flax.traverse_util.unflatten_dict(less), one)
    np.testing.assert_array_equal(apply(one), plain)


def test_images_of_equal_type_can_be_swapped():
    """Between images there is no relative position: only their types tell them apart."""
    flat = flax.traverse_util.flatten_dict(dict(variables()))
    types = flat[("params", "encoder", "type_embedding", "embedding")]

    def of_type(vector):
        return flax.traverse_util.unflatten_dict(
            flat | {("params", "encoder", "second_image_type"): vector}
        )

    # As large as the random ResNet's features, which would drown a type of size 1.
    alike, apart = of_type(types[1]), of_type(1e4 * types[1])
    batch = two_images()
    swapped = batch | {
        "encoder_images": batch["encoder_second_images"],
        "encoder_second_images": batch["encoder_images"],
    }
    np.testing.assert_allclose(apply(batch, alike), apply(swapped, alike), **SAME)
    assert np.abs(apply(batch, apart) - apply(swapped, apart)).max() > 1e-2


def test_patches_of_either_image_can_be_sampled():
    batch = two_images()
    every = {
        "encoder_patch_indices": np.stack([np.roll(np.arange(9), k) for k in range(3)]),
        "encoder_second_patch_indices": np.stack([np.roll(np.arange(4), k) for k in range(3)]),
    }
    every = {name: array.astype(np.int32) for name, array in every.items()}
    whole = apply(batch)
    np.testing.assert_allclose(apply(batch | every), whole, **SAME)
    for name, array in every.items():
        np.testing.assert_allclose(apply(batch | {name: array}), whole, **SAME)
        assert np.abs(apply(batch | {name: array[:, :2]}) - whole).max() > 1e-3


def test_the_image_mask_hides_both():
    batch = two_images() | {"encoder_image_mask": np.array([True, False, True])}
    text = {name: x for name, x in random_batch().items() if name != "encoder_images"}
    np.testing.assert_allclose(apply(batch)[1], apply(text)[1], **SAME)


def test_it_must_be_asked_for_and_fit():
    with pytest.raises(ValueError, match="set OFAConfig.second_image"):
        OFA(SMALL).init(jax.random.key(0), two_images())
    bad = two_images() | {"encoder_second_images": np.zeros((2, 32, 32, 3), np.uint8)}
    with pytest.raises(ValueError, match="encoder_second_images is .* give"):
        OFA(CONFIG).init(jax.random.key(0), bad)
    with pytest.raises(ValueError, match="second_image needs type_embedding"):
        CONFIG.replace(type_embedding=False)
    with pytest.raises(ValueError, match="no place for what OFAConfig.second_image"):
        to_fairseq(variables(), CONFIG)
