"""A small official VQGAN, in a file as its training writes it."""

import numpy as np
import pytest

from ofa_jax.interop import torch_file, vqgan_file


@pytest.fixture(scope="session")
def vqgan_state(golden):
    with np.load(golden / "vqgan" / "state_dict_f16.npz") as arrays:
        return {name: arrays[name].astype(np.float32) for name in arrays.files}


@pytest.fixture(scope="session")
def vqgan_path(vqgan_state, tmp_path_factory):
    path = tmp_path_factory.mktemp("vqgan") / "last.ckpt"
    others = {"loss.discriminator.main.0.weight": np.zeros((2, 2), np.float32)}
    torch_file.save(path, {"state_dict": vqgan_state | others})
    return path


@pytest.fixture(scope="session")
def vqgan(vqgan_path):
    return vqgan_file.read(vqgan_path)
