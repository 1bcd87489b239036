"""The collectives of a training step on eight devices: weights and gradients, never logits.

The program is compiled, not run, in a process of its own with eight simulated devices. Sizes are
chosen so that an array tells by its size what it is.
"""

import json

import pytest
from simulated_devices import run_on_eight_devices

pytestmark = pytest.mark.slow  # four programs for eight devices are compiled

MESHES = {
    "data": dict(),
    "fsdp": dict(data=1, fsdp=-1),
    "tensor": dict(data=2, tensor=4),
    "fsdp_tensor": dict(data=1, fsdp=4, tensor=2),
}
PROGRAM = """
import json, sys
import jax, numpy as np
from small_model import SMALL
from small_run import make_parts
from ofa_jax.sharding import Partitioner
from ofa_jax.planning.hlo import Program
from ofa_jax.training.step import jit_train_step

B, S, T, V = 32, 24, 20, 1000
CONFIG = SMALL.replace(vocab_size=V, vocab_multiple=64, encoder_layers=2, decoder_layers=2,
                       num_heads=4, scan_layers=True)
results = {}
for name, mesh in json.loads(sys.argv[1]).items():
    partitioner = Partitioner(**mesh)
    abstract, _, train_step, _ = make_parts(
        CONFIG, partitioner=partitioner, groups={"text": "others"})
    shape = lambda dims, dtype: jax.ShapeDtypeStruct(
        dims, dtype, sharding=partitioner.batch_sharding)
    batch = {"encoder_input_tokens": shape((B, S), np.int32),
             "decoder_input_tokens": shape((B, T), np.int32),
             "decoder_target_tokens": shape((B, T), np.int32),
             "decoder_loss_weights": shape((B, T), np.float32), "task_ids": shape((B,), np.int32)}
    with partitioner.mesh_context():
        compiled = jit_train_step(train_step, abstract).lower(abstract, {"text": batch}).compile()
    embedding = abstract.params["token_embedding"]["embedding"]
    program = Program(compiled.as_text())
    results[name] = {
        "embedding": embedding.sharding.shard_shape(embedding.shape),
        "whole": [
            [jax.tree_util.keystr(path), list(x.shape)]
            for path, x in jax.tree_util.tree_leaves_with_path(abstract)
            if x.size >= 16 * 32 and x.sharding.is_fully_replicated],
        "collectives": [
            [c.kind, [list(a.shape) for a in c.arrays if a.dtype.startswith("f")], c.source]
            for c in program.collectives()],
    }
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results():
    return run_on_eight_devices(PROGRAM, json.dumps(MESHES))


BATCH, SOURCE, TARGET, ROWS, WIDTH = 32, 24, 20, 1024, 16


@pytest.mark.parametrize("mesh", MESHES)
def test_no_device_gathers_logits_or_activations(results, mesh):
    """Whatever is gathered is weights: nothing has an axis as long as a row of tokens or logits.

    Sums over the tensor axis of [b, T, d] and of per-token numbers belong there; of the logits
    only their maximum, their sum and the one that is picked are communicated.
    """
    assert results[mesh]["collectives"]
    for kind, shapes, source in results[mesh]["collectives"]:
        for shape in shapes:
            where = f"{kind} {shape} {source}"
            tokens = {SOURCE, TARGET} & set(shape)
            if kind in ("all-gather", "all-to-all"):
                assert not tokens or len(shape) < 3, where
            logits = TARGET in shape and any(n % (ROWS // 8) == 0 and n for n in shape)
            assert not logits, where


@pytest.mark.parametrize(
    ("mesh", "rows", "columns"),
    [("data", 1024, 16), ("fsdp", 1024, 2), ("tensor", 256, 16), ("fsdp_tensor", 512, 4)],
)
def test_the_shared_embedding_is_split(results, mesh, rows, columns):
    assert results[mesh]["embedding"] == [rows, columns]


def test_every_large_array_of_the_state_is_split_on_the_mesh_for_large_models(results):
    """Tables of positions are small and read by all; batch statistics likewise."""
    whole = [name for name, _ in results["fsdp_tensor"]["whole"]]
    assert not [name for name in whole if "position" not in name], whole


def test_data_parallelism_communicates_gradients_alone(results):
    assert {kind for kind, *_ in results["data"]["collectives"]} <= {"all-reduce"}
