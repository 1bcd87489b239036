"""Meshes, and that training on any of them is the same.

Eight devices are simulated in a process of their own, for the number is fixed when JAX starts.
"""

import json
import types

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from simulated_devices import results_of

from ofa_jax.sharding.partitioner import STANDARD_RULES, Partitioner

# The vocabulary of 61 divides over nothing: over `tensor` it is padded, as that of pretrain.gin is.
# The ResNet compiles slowly, so images are seen by one device and by the mesh that has all axes,
# and the text that is with them is enough there.
MESHES = {
    "one": ("Partitioner(data=1, devices=tuple(jax.devices()[:1]))", 1, ["pairs"]),
    "one, text": ("Partitioner(data=1, devices=tuple(jax.devices()[:1]))", 1, ["text"]),
    "data": ("Partitioner()", 1, ["text"]),
    "fsdp": ("Partitioner(data=1, fsdp=-1)", 1, ["text"]),
    "gathered": ("Partitioner(data=2, fsdp=4, gather_params_once=True)", 1, ["text"]),
    "tensor": ("Partitioner(data=4, tensor=2)", 2, ["text"]),
    "all": ("Partitioner(data=-1, fsdp=2, tensor=2)", 2, ["pairs"]),
}
LIKE = {
    "data": "one, text",
    "fsdp": "one, text",
    "gathered": "one, text",
    "tensor": "one, text",
    "all": "one",
}
"""Mesh -> what it must agree with."""
PROGRAM = """
import json, sys
import jax, numpy as np
from small_model import SMALL
from small_run import GROUPS, make_parts, stream_batch
from ofa_jax.model import OFA
from ofa_jax.sharding.partitioner import Partitioner
from ofa_jax.sharding import train_state as states
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
        config, LossConfig(label_smoothing=0.1), partitioner=partitioner,
        groups={stream: GROUPS[stream] for stream in streams})
    result, state = results.setdefault(name, {}), new_state()
    if name == "fsdp":
        model = OFA(config)
        optimizer = make_optimizer(OptimizerConfig(1e-2, total_steps=100, warmup=0))
        single = Partitioner(data=1, devices=tuple(jax.devices()[:1]))
        alone = states.create_state(
            model, optimizer, states.abstract_state(model, optimizer, single), 0)
        with partitioner.mesh_context():
            born = states.create_state(model, optimizer, abstract, 0)
        result["born alike"] = all(
            np.array_equal(a, b) and a.sharding.is_equivalent_to(like.sharding, a.ndim)
            for a, b, like in zip(*map(jax.tree.leaves, (born, alone, abstract)), strict=True))
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
            held = jax.jit(partitioner.gathering(abstract.params, "bfloat16"))(state.params)
        weights, others = [], []
        for (path, new), old in zip(
                jax.tree_util.tree_leaves_with_path(held), jax.tree.leaves(state.params),
                strict=True):
            if path[-1].key == "kernel" and not old.sharding.is_fully_replicated:
                weights.append(new.dtype == "bfloat16" and new.sharding.is_fully_replicated)
            else:
                others.append(new.dtype == old.dtype)
        result["gathered"] = {
            "weights whole in bfloat16": len(weights) > 10 and all(weights),
            "others as they are": len(others) > 10 and all(others)}
    embedding = state.params["token_embedding"]["embedding"]
    result |= {
        "losses": losses, "nll": np.asarray(metrics.tasks.nll).tolist(), "rows": rows,
        "shard": embedding.addressable_shards[0].data.shape,
        "whole": [
            jax.tree_util.keystr(path) for path, x in jax.tree_util.tree_leaves_with_path(state)
            if x.size >= 16 * 32 and x.sharding.is_fully_replicated],
        "added rows": np.abs(np.asarray(embedding)[61:]).max(initial=0).item(),
        "stays": all(a.sharding.is_equivalent_to(b.sharding, a.ndim) for a, b in zip(
            jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True)),
        "compiled": step._cache_size(),
    }
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results():
    return results_of(PROGRAM, json.dumps(MESHES))


@pytest.mark.parametrize("mesh", LIKE)
def test_every_mesh_trains_alike(results, mesh):
    """float32 sums in another order: 1e-5 relative, a few times over three steps."""
    for what in ("losses", "nll"):
        np.testing.assert_allclose(
            results[mesh][what], results[LIKE[mesh]][what], rtol=5e-5, err_msg=what
        )


def test_a_state_is_born_on_a_mesh_with_the_values_of_one_device(results):
    assert results["fsdp"]["born alike"]


def test_weights_are_gathered_once_and_what_is_looked_up_in_is_not(results):
    assert results["gathered"]["gathered"] == {
        "weights whole in bfloat16": True,
        "others as they are": True,
    }
    assert "gathered" not in results["fsdp"]


def test_rows_that_pad_the_vocabulary_stay_nothing(results):
    assert results["all"]["added rows"] == results["tensor"]["added rows"] == 0


def test_parameters_are_split_as_the_rules_say_and_stay_so(results):
    assert all(result["stays"] and result["compiled"] == 1 for result in results.values())
    # 61 rows, 62 where they are padded, over tensor; 16 columns over fsdp.
    assert results["data"]["shard"] == [61, 16]
    assert results["fsdp"]["shard"] == [61, 2]
    assert results["tensor"]["shard"] == [31, 16]
    assert results["all"]["shard"] == [31, 8]


def test_every_large_array_and_its_moments_are_split_where_all_axes_are(results):
    """Feed-forward, heads, embedding, kernels; tables of positions are small and read by all."""
    whole = results["all"]["whole"]
    assert not [name for name in whole if "position" not in name], whole
    large = [name for name in results["one"]["whole"] if "position" not in name]
    assert any(".params" in name for name in large) and any(".mu" in name for name in large)


RESNETS = """
import json, sys
import jax, numpy as np
from small_model import SMALL
from ofa_jax.model.resnet import ResNet
from ofa_jax.sharding.partitioner import Partitioner

def flops(partitioner, size):
    # Of one device, forward.
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


def test_devices_along_tensor_share_the_images():
    """Of eight every device has one; four, and eight without the rule, are shared by four pairs."""
    shares = results_of(RESNETS)
    assert shares["eight images"] == pytest.approx(1 / 8, rel=0.01)
    assert shares["four images"] == pytest.approx(1 / 8, rel=0.01)
    assert shares["no rule"] == pytest.approx(1 / 4, rel=0.01)


def test_a_batch_is_split_over_data_and_fsdp_and_repeated_over_tensor(results):
    ids = [k % 2 for k in range(8)]
    assert results["one"]["rows"] == [[0, ids]]
    assert results["data"]["rows"] == [[k, [ids[k]]] for k in range(8)]
    expected = [[2 * k, ids[2 * k : 2 * k + 2]] for k in range(4)]
    assert results["tensor"]["rows"] == sorted(expected * 2)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (dict(data=3), "does not fit the 1 devices here: the product of the axes must be 1"),
        (dict(data=-1, fsdp=-1), "-1 for at most one axis"),
        (dict(tensor=0), "give positive sizes"),
        (dict(slices=2), "slices is 2, which does not divide the 1 devices"),
        (
            dict(logical_axis_rules=(("embed", "model"),)),
            "sends 'embed' to 'model', but the mesh has the axes data, fsdp, tensor",
        ),
    ],
)
def test_what_does_not_fit_is_said_in_a_sentence(options, sentence):
    with pytest.raises(ValueError, match=".*") as raised:
        Partitioner(devices=tuple(jax.devices()[:1]), **options)
    assert sentence in str(raised.value)


class _Chip(types.SimpleNamespace):
    """What JAX says of a TPU chip."""

    def __hash__(self):
        return self.id

    def __eq__(self, other):
        return self is other


def test_slices_multiply_the_data_axis_and_no_other_axis_leaves_a_slice():
    """Two slices of 4x2 chips, named in the wrong order."""
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


class _Devices:
    """A mesh that exists only as numbers: 4 data shards x 2 tensor, devices of two hosts."""

    shape = {"data": 4, "fsdp": 1, "tensor": 2}

    def __init__(self, hosts):
        device = lambda host: type("Device", (), {"process_index": host})()  # noqa: E731
        self.devices = np.array([device(h) for h in hosts], object).reshape(4, 1, 2)


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        ([0, 0, 0, 0, 1, 1, 1, 1], (0, 1)),
        ([1, 1, 0, 0, 1, 1, 0, 0], (1, 3)),  # hosts do not follow the data axis
        ([0, 1, 0, 1, 0, 1, 0, 1], (0, 1, 2, 3)),  # every part is on both hosts
    ],
)
def test_a_host_loads_what_its_devices_need_by_position_on_the_mesh(hosts, expected, monkeypatch):
    partitioner = Partitioner()
    object.__setattr__(partitioner, "mesh", _Devices(hosts))
    assert partitioner.data_shards == expected
    assert partitioner.num_data_shards == 4


def test_an_axis_that_does_not_divide_stays_whole_and_is_logged(caplog):
    partitioner = Partitioner(devices=tuple(jax.devices()[:1]))
    object.__setattr__(partitioner, "mesh", _Devices([0] * 8))
    spec = partitioner._dividing(PartitionSpec("tensor", "data"), (59457, 8))
    assert spec == PartitionSpec(None, "data")
    assert "59457" in caplog.text


def test_the_rules_name_axes_that_the_model_has():
    from ofa_jax import model

    for logical, _ in STANDARD_RULES:
        name = logical.removeprefix("activation_")
        assert name in model.__doc__, logical
