"""Meshes, shardings and batches, and training that does not depend on the mesh.

Eight devices are simulated in a subprocess, because their number is fixed when JAX starts.
"""

import json
import types

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from simulated_devices import run_on_eight_devices

from ofa_jax.sharding import DEFAULT_AXIS_RULES, Partitioner

# The vocabulary of 61 is prime: over `tensor` it is padded, as in pretrain.gin.
# The ResNet compiles slowly, so only one device and the mesh with all axes train on images; the
# other meshes train on text.
MESHES = {
    "one": ("Partitioner(data=1, devices=tuple(jax.devices()[:1]))", 1, ["pairs"]),
    "one, text": ("Partitioner(data=1, devices=tuple(jax.devices()[:1]))", 1, ["text"]),
    "data": ("Partitioner()", 1, ["text"]),
    "fsdp": ("Partitioner(data=1, fsdp=-1)", 1, ["text"]),
    "gathered": ("Partitioner(data=2, fsdp=4, gather_params_once=True)", 1, ["text"]),
    "data, logits in blocks": ("Partitioner()", 1, ["text"]),
    "gathered, logits in blocks": (
        "Partitioner(data=2, fsdp=4, gather_params_once=True)",
        1,
        ["text"],
    ),
    "tensor": ("Partitioner(data=4, tensor=2)", 2, ["text"]),
    "all": ("Partitioner(data=-1, fsdp=2, tensor=2)", 2, ["pairs"]),
}
REFERENCE_MESH = {
    "data": "one, text",
    "fsdp": "one, text",
    "gathered": "one, text",
    "data, logits in blocks": "one, text",
    "gathered, logits in blocks": "one, text",
    "tensor": "one, text",
    "all": "one",
}
"""Mesh -> the mesh whose results it must reproduce."""

PROGRAM = """
import json, sys
import jax, numpy as np
from small_model import SMALL
from small_run import GROUPS, make_parts, stream_batch
from ofa_jax.model import OFA
from ofa_jax.sharding import Partitioner, abstract_state, create_state
from ofa_jax.training.losses import LossConfig
from ofa_jax.training.optimizer import OptimizerConfig, make_optimizer
from ofa_jax.training.step import jit_train_step

batch = {"pairs": stream_batch(0, 32, size=8), "text": stream_batch(1, 0, size=8)}
results = {}
for name, (make, vocab_multiple, streams) in json.loads(sys.argv[1]).items():
    partitioner = eval(make)
    config = SMALL.replace(
        vocab_size=61, vocab_multiple=vocab_multiple, dropout_rate=0.1)
    abstract, new_state, train_step, _ = make_parts(
        config, LossConfig(label_smoothing=0.1, logits_in_blocks="in blocks" in name),
        partitioner=partitioner,
        groups={stream: GROUPS[stream] for stream in streams})
    result, state = results.setdefault(name, {}), new_state()
    if name == "fsdp":
        model = OFA(config)
        optimizer = make_optimizer(OptimizerConfig(1e-2, total_steps=100, warmup=0))
        single = Partitioner(data=1, devices=tuple(jax.devices()[:1]))
        expected = create_state(model, optimizer, abstract_state(model, optimizer, single), 0)
        with partitioner.mesh_context():
            created = create_state(model, optimizer, abstract, 0)
        result["same initial state"] = all(
            np.array_equal(a, b) and a.sharding.is_equivalent_to(like.sharding, a.ndim)
            for a, b, like in zip(
                *map(jax.tree.leaves, (created, expected, abstract)), strict=True))
    with partitioner.mesh_context():
        step = jit_train_step(train_step, abstract)
        global_batch = {k: partitioner.put_batch(batch[k]) for k in streams}
        shards = global_batch[streams[0]]["task_ids"].addressable_shards
        rows = sorted((s.index[0].start or 0, s.data.tolist()) for s in shards)
        losses = []
        for _ in range(3):
            state, metrics = step(state, global_batch)
            losses.append(float(metrics.loss))
    if partitioner.gather_params_once:
        with partitioner.mesh_context():
            gather_params = partitioner.make_gather_params(abstract.params, "bfloat16")
            gathered = jax.jit(gather_params)(state.params)
        kernels, others = [], []
        for (path, new), old in zip(
                jax.tree_util.tree_leaves_with_path(gathered), jax.tree.leaves(state.params),
                strict=True):
            if path[-1].key == "kernel" and not old.sharding.is_fully_replicated:
                kernels.append(new.dtype == "bfloat16" and new.sharding.is_fully_replicated)
            else:
                others.append(new.dtype == old.dtype)
        result["gathered"] = {
            "sharded kernels are whole in bfloat16": len(kernels) > 10 and all(kernels),
            "others are unchanged": len(others) > 10 and all(others)}
    embedding = state.params["token_embedding"]["embedding"]
    result |= {
        "losses": losses, "nll": np.asarray(metrics.tasks.nll).tolist(), "rows": rows,
        "shard": embedding.addressable_shards[0].data.shape,
        "replicated": [
            jax.tree_util.keystr(path) for path, x in jax.tree_util.tree_leaves_with_path(state)
            if x.size >= 16 * 32 and x.sharding.is_fully_replicated],
        "padding rows": np.abs(np.asarray(embedding)[61:]).max(initial=0).item(),
        "sharding kept": all(a.sharding.is_equivalent_to(b.sharding, a.ndim) for a, b in zip(
            jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True)),
        "compiled": step._cache_size(),
    }
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results():
    return run_on_eight_devices(PROGRAM, json.dumps(MESHES))


@pytest.mark.parametrize("mesh", REFERENCE_MESH)
def test_training_agrees_across_meshes(results, mesh):
    """Float32 sums in another order differ by 1e-5 relative, a few times over three steps."""
    for name in ("losses", "nll"):
        np.testing.assert_allclose(
            results[mesh][name], results[REFERENCE_MESH[mesh]][name], rtol=5e-5, err_msg=name
        )


def test_a_device_of_another_type_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="Partitioner.devices has a list; give devices of JAX"):
        Partitioner(devices=([],))


def test_initial_state_does_not_depend_on_the_mesh(results):
    assert results["fsdp"]["same initial state"]


def test_gather_params_once_gathers_only_kernels(results):
    assert results["gathered"]["gathered"] == {
        "sharded kernels are whole in bfloat16": True,
        "others are unchanged": True,
    }
    assert "gathered" not in results["fsdp"]


def test_vocabulary_padding_rows_stay_zero(results):
    assert results["all"]["padding rows"] == results["tensor"]["padding rows"] == 0


def test_parameters_keep_the_shardings_of_the_rules(results):
    assert all(result["sharding kept"] and result["compiled"] == 1 for result in results.values())
    # 61 rows, or 62 with padding, over tensor; 16 columns over fsdp.
    assert results["data"]["shard"] == [61, 16]
    assert results["fsdp"]["shard"] == [61, 2]
    assert results["tensor"]["shard"] == [31, 16]
    assert results["all"]["shard"] == [31, 8]


def test_large_arrays_and_their_moments_are_sharded_on_a_mesh_with_all_axes(results):
    """Position tables are exempt: they are small, and every device reads all of them."""
    replicated = results["all"]["replicated"]
    assert not [name for name in replicated if "position" not in name], replicated
    large = [name for name in results["one"]["replicated"] if "position" not in name]
    assert any(".params" in name for name in large) and any(".mu" in name for name in large)


RESNETS = """
import json, sys
import jax, numpy as np
from small_model import SMALL
from ofa_jax.model.resnet import ResNet
from ofa_jax.sharding import Partitioner

def flops(partitioner, size):
    # FLOPs of one device for the forward pass.
    resnet, images = ResNet(SMALL), np.zeros((size, 64, 64, 3), np.float32)
    with partitioner.mesh_context():
        variables = jax.eval_shape(lambda: resnet.init(jax.random.key(0), images, False))
        compiled = jax.jit(lambda v, x: resnet.apply(v, x, False)).lower(
            variables, partitioner.put_batch({"x": images})["x"]).compile()
    return compiled.cost_analysis()["flops"]

whole = flops(Partitioner(data=1, devices=tuple(jax.devices()[:1])), 8)
no_rule = Partitioner(tensor=2, logical_axis_rules=(("activation_batch", ("data", "fsdp")),))
print(json.dumps({
    "eight images": flops(Partitioner(tensor=2), 8) / whole,
    "four images": flops(Partitioner(tensor=2), 4) / whole,
    "no rule": flops(no_rule, 8) / whole}))
"""


def test_resnet_splits_images_over_tensor_devices():
    """Each device computes one of eight images; otherwise pairs of devices repeat the work."""
    shares = run_on_eight_devices(RESNETS)
    assert shares["eight images"] == pytest.approx(1 / 8, rel=0.01)
    assert shares["four images"] == pytest.approx(1 / 8, rel=0.01)
    assert shares["no rule"] == pytest.approx(1 / 4, rel=0.01)


def test_batches_are_split_over_data_and_fsdp_and_replicated_over_tensor(results):
    ids = [k % 2 for k in range(8)]
    assert results["one"]["rows"] == [[0, ids]]
    assert results["data"]["rows"] == [[k, [ids[k]]] for k in range(8)]
    expected = [[2 * k, ids[2 * k : 2 * k + 2]] for k in range(4)]
    assert results["tensor"]["rows"] == sorted(expected * 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(data=3), "does not fit the 1 devices here: the product of the axes must be 1"),
        (dict(data=-1, fsdp=-1), "-1 for at most one axis"),
        (dict(tensor=0), "give positive sizes"),
        (dict(slices=2), "slices is 2, which does not divide the 1 devices"),
        (
            dict(logical_axis_rules=(("embed", "model"),)),
            "maps 'embed' to 'model', but the mesh has the axes data, fsdp, tensor",
        ),
    ],
)
def test_invalid_meshes_raise_clear_errors(options, message):
    with pytest.raises(ValueError, match=".*") as raised:
        Partitioner(devices=tuple(jax.devices()[:1]), **options)
    assert message in str(raised.value)


class _Chip(types.SimpleNamespace):
    """A fake TPU device with the attributes that JAX reads."""

    def __hash__(self):
        return self.id

    def __eq__(self, other):
        return self is other


def test_slices_multiply_the_data_axis_and_other_axes_stay_within_a_slice():
    """Two slices of 4x2 chips, given in reverse order."""
    chips = [
        _Chip(
            id=k,
            process_index=k // 4,
            platform="tpu",
            device_kind="TPU v5 lite",
            coords=(k % 4, k % 8 // 4, 0),
            core_on_chip=0,
            slice_index=k // 8,
            client=None,
        )
        for k in range(16)
    ]
    partitioner = Partitioner(data=2, fsdp=2, tensor=2, slices=2, devices=tuple(chips[::-1]))
    mesh = partitioner.mesh
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "tensor": 2}
    slices = [{chip.slice_index for chip in row.flat} for row in mesh.devices]
    assert slices in ([{0}, {0}, {1}, {1}], [{1}, {1}, {0}, {0}])
    assert len(set(mesh.devices.flat)) == 16


class _FakeMesh:
    """A mesh of 4 data shards x 2 tensor devices that belong to two hosts."""

    shape = {"data": 4, "fsdp": 1, "tensor": 2}

    def __init__(self, hosts):
        device = lambda host: type("Device", (), {"process_index": host})()  # noqa: E731
        self.devices = np.array([device(h) for h in hosts], object).reshape(4, 1, 2)


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        ([0, 0, 0, 0, 1, 1, 1, 1], (0, 1)),
        ([1, 1, 0, 0, 1, 1, 0, 0], (1, 3)),  # hosts do not follow the data axis
        ([0, 1, 0, 1, 0, 1, 0, 1], (0, 1, 2, 3)),  # every shard is on both hosts
    ],
)
def test_data_shards_follow_device_positions_on_the_mesh(hosts, expected, monkeypatch):
    partitioner = Partitioner()
    object.__setattr__(partitioner, "mesh", _FakeMesh(hosts))
    assert partitioner.data_shards == expected
    assert partitioner.num_data_shards == 4


def test_uneven_axes_stay_whole_with_a_warning(caplog):
    partitioner = Partitioner(devices=tuple(jax.devices()[:1]))
    object.__setattr__(partitioner, "mesh", _FakeMesh([0] * 8))
    spec = partitioner._drop_uneven_axes(PartitionSpec("tensor", "data"), (59457, 8))
    assert spec == PartitionSpec(None, "data")
    assert "59457" in caplog.text


def test_default_rules_name_documented_axes():
    from ofa_jax import model

    for logical, _ in DEFAULT_AXIS_RULES:
        name = logical.removeprefix("activation_")
        assert name in model.__doc__, logical
