"""The mesh axes and the medium of a collective, and the bottleneck of a step."""

import types

import jax
import numpy as np
import pytest

from ofa_jax.planning import cost
from ofa_jax.planning.hlo import Program
from ofa_jax.utils.hardware import CHIPS, parse_topology

V5E = CHIPS["v5e"]


def mesh(shape, slices=1):
    """Devices of v5e in a line of rows of four, slice after slice."""
    count = int(np.prod(shape))
    devices = np.empty(count, object)
    for k in range(count):
        place = k % (count // slices)
        devices[k] = types.SimpleNamespace(
            coords=(place % 4, place // 4, 0), slice_index=k // (count // slices)
        )
    names = ("data", "fsdp", "tensor")
    return types.SimpleNamespace(
        shape=dict(zip(names, shape, strict=True)),
        axis_names=names,
        devices=devices.reshape(shape),
        size=count,
    )


def collective(groups, on, kind="all-gather", operand="f32[1,1024]", result="f32[4,1024]"):
    text = (
        f"ENTRY %main (p: {operand}) -> {result} {{\n  %p = {operand} parameter(0)\n"
        f"  ROOT %x = {result} {kind}(%p), {groups}, dimensions={{0}}\n}}\n"
    )
    (found,) = cost.collective_costs(Program(text), on, V5E)
    return found


@pytest.mark.parametrize(
    ("groups", "axes", "links"),
    [
        ("replica_groups=[4,4]<=[16]", "tensor", 0.25),  # a row: one of two dimensions
        ("replica_groups=[4,4]<=[4,4]T(1,0)", "data", 0.25),
        ("replica_groups=[1,16]<=[16]", "data+tensor", 0.5),
    ],
)
def test_a_collective_has_the_links_of_the_dimensions_of_its_axes(groups, axes, links):
    """Four chips in a line do not form a ring, and send half of what their links could."""
    found = collective(groups, mesh((4, 1, 4)))
    size = 16 if "+" in axes else 4
    assert (found.axes, found.count, found.bytes) == (axes, 1, 4 * 4096)
    assert found.wire_bytes == 4 * 4096 * (size - 1) / size
    assert found.seconds == pytest.approx(found.wire_bytes / (links * 200e9))
    assert not found.crosses_slices


def test_a_whole_side_of_a_pod_is_a_ring():
    column = collective("replica_groups=[4,16]<=[16,4]T(1,0)", mesh((16, 1, 4)))
    # 16 chips one below the other in rows of four.
    assert column.axes == "data"
    assert column.seconds == pytest.approx(column.wire_bytes / (0.5 * 200e9))


def test_between_slices_each_chip_sends_its_part_over_the_network():
    found = collective(
        "replica_groups=[1,16]<=[16]", mesh((16, 1, 1), slices=2), "all-reduce", "f32[4,1024]"
    )
    assert found.crosses_slices and found.axes == "data"
    assert found.wire_bytes == 4 * 4096 * 2 * 15 / 16 / 8
    assert found.seconds == pytest.approx(found.wire_bytes / 3.125e9)


def test_a_permutation_runs_along_the_axis_of_its_pairs():
    found = collective(
        "source_target_pairs={{0,0},{1,2},{2,1}}",
        mesh((4, 1, 4)),
        "collective-permute",
        "f32[4,1024]",
    )
    assert (found.axes, found.wire_bytes) == ("tensor", 4 * 4096)


def test_the_longest_time_is_the_bottleneck_and_bounds_the_rest():
    sent = [
        cost.CollectiveCost("all-gather", "fsdp", 1, 8e9, 8e9, 0.04, False),
        cost.CollectiveCost("all-reduce", "data", 1, 8e9, 8e9, 0.03, True),
    ]
    line = cost.roofline(19.7e12, 40.95e9, sent, V5E, 4, 39.4e12, 64)
    assert (line.compute, line.memory) == (pytest.approx(0.1), pytest.approx(0.05))
    assert (line.interconnect, line.network, line.bottleneck) == (0.04, 0.03, "compute")
    assert line.examples_per_second == pytest.approx(640)
    # Half of the operations of the chips are those of the model.
    assert line.mfu == pytest.approx(0.5)
    assert cost.roofline(1e12, 819e9, sent, V5E, 4, 1e12, 1).bottleneck == "memory"


def test_topologies_are_named_by_chip_and_shape():
    assert parse_topology("v5p:4x4x8") == (CHIPS["v5p"], "4x4x8")
    with pytest.raises(ValueError, match="known chips are v3.*Did you mean v5e"):
        parse_topology("v5ee:4x4")
    with pytest.raises(ValueError, match="write e.g. v5e:4x4"):
        parse_topology("v5e")
    with pytest.raises(ValueError, match="write e.g. h100:8"):
        parse_topology("h100")


def test_memory_is_split_by_kind_and_the_rest_is_activations():
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    array = jax.ShapeDtypeStruct((3, 4), np.float32, sharding=here)
    assert cost.memory(500.0, {"parameters": [array], "average": None}, array) == {
        "parameters": 48,
        "average": 0,
        "batch": 48,
        "activations": 404,
        "peak": 500,
    }


STEP = """
%ahead (q: f32[64]) -> f32[16] {
  %q = f32[64] parameter(0)
  ROOT %part = f32[16]{0:S(1)} slice(%q), slice={[0:16]}
}

ENTRY %main (p: f32[64], w: f32[16]) -> f32[16] {
  %p = f32[64] parameter(0)
  %w = f32[16] parameter(1)
  %begun = ((f32[64]), f32[16]{0:S(1)}, s32[]) async-start(%p), calls=%ahead
  %there = f32[16]{0:S(1)} async-done(%begun)
  %y = f32[16] add(%there, %w), metadata={op_name="jit(train_step)/jvp(OFA.score)/encoder/\
encoder._images/resnet/while/body/stage_1_blocks.step/stage_1_blocks/norm_1/add"}
  %g = f32[16] multiply(%y, %y), metadata={op_name="jit(train_step)/transpose(jvp(OFA.score))/\
OFA._decode/OFA._logits/mul"}
  ROOT %u = f32[16] subtract(%g, %w), metadata={op_name="jit(train_step)/sub"}
}
"""


CARRIED = (
    """HloModule jit_f, is_scheduled=true

ENTRY %main (g: f32[512,1024]) -> f32[512,1024] {
  %g = f32[512,1024]{1,0} parameter(0)
  %mine = f32[32,1024]{1,0} reduce-scatter(%g), channel_id=3, replica_groups=[2,16]<=[32], """
    """dimensions={0}, to_apply=%add
  %after-all = token[] after-all()
  %send = (f32[32,1024]{1,0}, u32[], token[]) send(%mine, %after-all), channel_id=2, """
    """is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %send-done = token[] send-done(%send), channel_id=2, is_host_transfer=true
  %recv = (f32[32,1024]{1,0}, u32[], token[]) recv(%after-all), channel_id=1, """
    """is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv-done = (f32[32,1024]{1,0}, token[]) recv-done(%recv), channel_id=1, is_host_transfer=true
  %all = f32[32,1024]{1,0} get-tuple-element(%recv-done), index=0
  ROOT %sum = f32[512,1024]{1,0} all-gather(%all), channel_id=4, replica_groups=[2,16]<=[32], """
    """dimensions={0}
}
"""
)


def test_transfers_between_slices_are_collectives_over_the_network():
    """As XLA writes it for two slices of 16 chips: each chip sends its 16th of a sum."""
    program = Program(CARRIED)
    between, *within = cost.collective_costs(program, mesh((32, 1, 1), slices=2), V5E)
    part = 32 * 1024 * 4
    assert between == cost.CollectiveCost(
        "all-reduce", "data", 1, part, part, part / V5E.network, crosses_slices=True
    )
    assert {(e.kind, e.crosses_slices) for e in within} == {
        ("reduce-scatter", False),
        ("all-gather", False),
    }
    (three, *_) = cost.collective_costs(program, mesh((48, 1, 1), slices=3), V5E)
    assert three.wire_bytes == pytest.approx(4 / 3 * part)
    # Sent, received, and by the two collectives within the slice.
    assert program.hbm_bytes() == 2 * part + 2 * (16 + 1) * part


def test_memory_traffic_is_split_by_part_of_the_step_and_fetches_count_for_their_reader():
    array = 16 * 4
    assert cost.traffic(Program(STEP)) == {
        # What was fetched lies in VMEM: the fetch reads, and the sum reads and writes one each.
        "encoder/resnet/stage_1_blocks": 3 * array,
        "decode/logits, backward": 3 * array,
        "loss and optimiser": 3 * array,
    }
    assert Program(STEP).hbm_bytes() == 9 * array


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("", "not named"),
        ("jit(train_step)/reduce_sum", "loss and optimiser"),
        (
            "jit(train_step)/transpose(jvp(OFA.score))/OFA._embed/jit(_take)/scatter-add",
            "embed, backward",
        ),
        (
            "jit(train_step)/jvp(OFA.score)/encoder/while/body/closed_call/layers.step/layers/"
            "self_attention/...qhd,...hdk->...hqk/dot_general",
            "encoder/layers",
        ),
    ],
)
def test_parts_are_named_by_modules(source, part):
    assert cost.part_of_step(source, depth=2) == part
