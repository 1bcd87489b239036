"""The reader of HLO on programs whose costs are known, and on all notations that XLA prints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ofa_jax.planning.hlo import Program
from ofa_jax.planning.hlo_text import groups_of


def shape(*dims, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(dims, dtype)


def program_of(function, *arguments, compiled=False):
    lowered = jax.jit(function).lower(*arguments)
    return Program(lowered.compile().as_text() if compiled else lowered.as_text(dialect="hlo"))


@pytest.mark.parametrize("compiled", [False, True])
def test_a_loops_body_is_counted_as_often_as_it_runs(compiled):
    def loop(x, kernels):
        return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0]

    # Long enough that XLA does not unroll it, and large enough to stay a dot.
    program = program_of(loop, shape(64, 128), shape(9, 128, 128), compiled=compiled)
    assert program.flops() == 9 * 2 * 64 * 128 * 128 or compiled and program.flops() == 0
    assert 9 in program.times.values()


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"),
    [(1, (1, 1), 1, 1), (2, (1, 1), 1, 1), (2, (0, 3), 2, 1), (1, (2, 0), 1, 4)],
)
def test_convolutions_are_counted_as_xla_counts_them(stride, padding, dilation, groups):
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            (padding, padding),
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    arguments = shape(2, 9, 12, 8), shape(3, 3, 8 // groups, 16)
    lowered = jax.jit(convolve).lower(*arguments)
    program = Program(lowered.as_text(dialect="hlo"))
    assert program.flops() == lowered.cost_analysis()["flops"] > 0
    if groups == 1:
        # Its gradients are convolutions with dilated inputs, of the same number of products.
        gradient = jax.jit(lambda *a: jax.vjp(convolve, *a)[1](convolve(*a))).lower(*arguments)
        assert Program(gradient.as_text(dialect="hlo")).flops() == pytest.approx(
            3 * program.flops()
        )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("replica_groups={{0,1},{2,3}}", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("replica_groups=[2,4]<=[4,2]T(1,0), x", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ("replica_groups=mesh['a'=2,'b'=1,'c'=2] {'a','c'}", [[0, 1, 2, 3]]),
        ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
        ("replica_groups={}", None),
    ],
)
def test_groups_of_devices_in_every_notation(text, expected):
    groups = groups_of(text)
    assert (None if groups is None else groups.tolist()) == expected


# Lines as libtpu prints them: layouts with memory spaces, an asynchronous gather in two parts.
TPU = (
    """HloModule jit_f, is_scheduled=true

%body (p: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %p = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %all-reduce.1 = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} all-reduce(%x), channel_id=3, """
    """replica_groups=[4,2]<=[8], to_apply=%add, metadata={op_name="jit(f)/while/body/dot_general"}
  ROOT %t = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) tuple(%i, %all-reduce.1)
}

%cond (p.1: (s32[], bf16[8,128])) -> pred[] {
  %p.1 = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %c = s32[]{:T(128)} constant(6)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %c), direction=LT
}

%start (a: bf16[1,128]) -> bf16[8,128] {
  %a = bf16[1,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %gather.1 = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} all-gather(%a), channel_id=7, """
    """replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
}

ENTRY %main (q: bf16[1,128]) -> bf16[8,128] {
  %q = bf16[1,128]{1,0:T(8,128)(2,1)} parameter(0)
  %fusion.1 = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} fusion(%q), kind=kCustom, calls=%start
  %fusion.2 = bf16[8,128]{1,0:T(8,128)(2,1)} fusion(%q), kind=kCustom, calls=%start
  %zero = s32[]{:T(128)} constant(0)
  %tuple = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) tuple(%zero, %fusion.2)
  %loop = (s32[]{:T(128)}, /*index=1*/bf16[8,128]{1,0:T(8,128)(2,1)}) while(%tuple), """
    """condition=%cond, body=%body
  ROOT %out = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%loop), index=1
}
"""
)


def test_collectives_and_memory_traffic_of_a_tpu_program():
    program = Program(TPU)
    gather, reduce = sorted(program.collectives(), key=lambda c: c.kind)
    assert (gather.kind, gather.bytes, gather.wire_bytes) == ("all-gather", 2048, 1792)
    assert (reduce.kind, reduce.times, reduce.wire_bytes) == ("all-reduce", 6, 2048)
    assert reduce.source == "jit(f)/while/body/dot_general"
    np.testing.assert_array_equal(reduce.groups, np.arange(8).reshape(4, 2))
    # Two fusions read 256 bytes each and one writes 2048 to HBM; the reduction, six times, reads
    # 2048 from there, and the comparisons move four bytes and one.
    assert program.hbm_bytes() == 2 * 256 + 2048 + 6 * (2048 + 4 + 4 + 1)


# A slice and a copy that are fetched into VMEM during other work; and a gather that starts before a
# loop and overlaps with its four rounds, whose fusions pass its arrays along.
ASYNCHRONOUS = (
    """HloModule jit_f, is_scheduled=true

%fetch (a: bf16[64,128]) -> bf16[8,128] {
  %a = bf16[64,128]{1,0} parameter(0)
  ROOT %slice.1 = bf16[8,128]{1,0:S(1)} slice(%a), slice={[0:8], [0:128]}
}

%beside (q: bf16[1,128], r: bf16[8,128], x: bf16[64,128]) -> (bf16[1,128], bf16[8,128], f32[64]) {
  %q = bf16[1,128]{1,0} parameter(0)
  %r = bf16[8,128]{1,0} parameter(1)
  %x = bf16[64,128]{1,0} parameter(2)
  %gather = bf16[8,128]{1,0} all-gather(%q), channel_id=5, replica_groups=[1,8]<=[8], dimensions={0}
  %zero = f32[] constant(0)
  %sum = f32[64]{0} reduce(%x, %zero), dimensions={1}, to_apply=%add
  ROOT %t = (bf16[1,128]{1,0}, bf16[8,128]{1,0}, f32[64]{0}) tuple(%q, %gather, %sum)
}

%body (p: (s32[], bf16[1,128], bf16[8,128], bf16[64,128])) -> (s32[], bf16[1,128]) {
  %p = (s32[], bf16[1,128], bf16[8,128], bf16[64,128]) parameter(0)
  %q = bf16[1,128]{1,0} get-tuple-element(%p), index=1
  %r = bf16[8,128]{1,0} get-tuple-element(%p), index=2
  %x = bf16[64,128]{1,0} get-tuple-element(%p), index=3
  ROOT %f = (bf16[1,128]{1,0}, bf16[8,128]{1,0}, f32[64]{0}) fusion(%q, %r, %x), calls=%beside
}

%cond (p: (s32[], bf16[1,128], bf16[8,128], bf16[64,128])) -> pred[] {
  ROOT %p = (s32[], bf16[1,128], bf16[8,128], bf16[64,128]) parameter(0)
}

ENTRY %main (x: bf16[64,128], q: bf16[1,128]) -> f32[64] {
  %x = bf16[64,128]{1,0} parameter(0)
  %q = bf16[1,128]{1,0} parameter(1)
  %s = ((bf16[64,128]{1,0}), bf16[8,128]{1,0:S(1)}, s32[]{:S(2)}) async-start(%x), calls=%fetch
  %d = bf16[8,128]{1,0:S(1)} async-done(%s)
  %c = (bf16[1,128]{1,0:S(1)}, bf16[1,128]{1,0}, u32[]{:S(2)}) copy-start(%q)
  %e = bf16[1,128]{1,0:S(1)} copy-done(%c)
  %begun = bf16[8,128]{1,0} all-gather(%q), channel_id=5, replica_groups=[1,8]<=[8], dimensions={0}
  %t = (s32[], bf16[1,128], bf16[8,128], bf16[64,128]) tuple(%x, %q, %begun, %x)
  ROOT %w = (s32[], bf16[1,128]) while(%t), condition=%cond, body=%body, """
    """backend_config={"known_trip_count":{"n":"4"}}
}
"""
)


SCATTERED = (
    """
%all-reduce-scatter.4.clone (a: bf16[64,32]) -> bf16[64,4] {
  %a = bf16[64,32]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.9 = bf16[64,32]{1,0:T(8,128)(2,1)} all-reduce(%a), channel_id=1, """
    """replica_groups=[1,8]<=[8], to_apply=%add
  %zero = s32[]{:T(128)} constant(0)
  %place = s32[]{:T(128)} constant(4)
  ROOT %part = bf16[64,4]{1,0:T(8,128)(2,1)} dynamic-slice(%all-reduce.9, %zero, %place), """
    """dynamic_slice_sizes={64,4}
}

ENTRY %main (q: bf16[64,32]) -> bf16[64,4] {
  %q = bf16[64,32]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %out = bf16[64,4]{1,0:T(8,128)(2,1)} fusion(%q), kind=kCustom, """
    """calls=%all-reduce-scatter.4.clone
}
"""
)


def test_a_reduce_scatter_sends_half_of_an_all_reduce():
    program, whole = Program(SCATTERED), 64 * 32 * 2
    (found,) = program.collectives()
    assert (found.kind, found.bytes, found.wire_bytes) == ("reduce-scatter", whole, whole * 7 / 8)
    assert program.hbm_bytes() == whole + whole / 8


def test_asynchronous_work_is_counted_once():
    program = Program(ASYNCHRONOUS)
    (gather,) = program.collectives()
    assert (gather.times, gather.wire_bytes) == (1, 7 / 8 * 2048)
    # The fetched slice 2048, the copied row 256, the gather's row 256 and result 2048; in each of
    # four rounds 16,384 are read and summed to 256.
    assert program.hbm_bytes() == 2048 + 256 + (256 + 2048) + 4 * (16384 + 256)


# As XLA prints calls of cuBLAS and cuDNN: results with their workspaces, and the numbers of the
# convolution that a gradient belongs to.
GPU = (
    """HloModule jit_f, is_scheduled=true

ENTRY %main (x: bf16[8,16,16,4], k: bf16[6,3,3,4], a: bf16[64,32]) -> bf16[64,128] {
  %x = bf16[8,16,16,4]{3,2,1,0:S(1)} parameter(0)
  %k = bf16[6,3,3,4]{3,2,1,0} parameter(1)
  %a = bf16[64,32]{1,0} parameter(2)
  %b = bf16[32,128]{1,0} parameter(3)
  %conv = (bf16[8,8,8,6]{3,2,1,0}, u8[4096]{0}) custom-call(%x, %k), WINDOW, """
    """custom_call_target="__cudnn$convForward"
  %y = bf16[8,8,8,6]{3,2,1,0} get-tuple-element(%conv), index=0
  %back = (bf16[8,16,16,4]{3,2,1,0}, u8[4096]{0}) custom-call(%y, %k), WINDOW, """
    """custom_call_target="__cudnn$convBackwardInput"
  %kernel = (bf16[6,3,3,4]{3,2,1,0}, u8[4096]{0}) custom-call(%x, %y), WINDOW, """
    """custom_call_target="__cudnn$convBackwardFilter"
  %room = bf16[999,999]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  %norm = (bf16[8,8,8,6]{3,2,1,0}, u8[4096]{0}) custom-call(%y), custom_call_target="__cudnn$norm"
  %gemm = (bf16[64,128]{1,0}, s8[4194304]{0}) custom-call(%a, %b), """
    """custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"alpha_real":1,"""
    """"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"lhs_batch_dimensions":[]}}}
  ROOT %out = bf16[64,128]{1,0} get-tuple-element(%gemm), index=0
}
""".replace("WINDOW", "window={size=3x3 stride=2x2 pad=0_1x0_1}, dim_labels=b01f_o01i->b01f")
)


def test_products_in_library_calls_of_gpus_are_counted():
    program = Program(GPU, on_chip_memory=False)
    # Padded by one on one side, of 8 x 3 pairs of an output and a tap 23 see a value.
    convolution, product = 2 * 8 * 23 * 23 * 4 * 6, 2 * 64 * 32 * 128
    counted = {i.name: flops for flops, i in program.products()}
    assert counted == {
        "conv": convolution,
        "back": convolution,
        "kernel": convolution,
        "gemm": product,
    }
    assert program.uncounted_calls() == {"__cudnn$norm"}
    x, y, k, a, b, out = 2 * 8 * 256 * 4, 2 * 8 * 64 * 6, 2 * 6 * 9 * 4, 4096, 8192, 16384
    # Space 1 is no VMEM here, and workspaces are nobody's data.
    assert program.hbm_bytes() == 3 * (x + y + k) + 2 * y + a + b + out


# As XLA prints calls of a Pallas kernel, with and without a cost estimate, and of cuDNN's attention
# and its gradients: bias and softmax statistics, and a workspace that is nobody's data.
KERNELS = (
    """HloModule jit_f, is_scheduled=true

%body (p: (s32[], bf16[2,4,6,8])) -> (s32[], bf16[2,4,6,8]) {
  %p = (s32[], bf16[2,4,6,8]{3,2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = bf16[2,4,6,8]{3,2,1,0} get-tuple-element(%p), index=1
  %kinds = s32[2]{0:S(1)} constant({0, 1})
  %k = bf16[2,4,6,8]{3,2,1,0} custom-call(%kinds, %x), KERNEL, ESTIMATE
  ROOT %t = (s32[], bf16[2,4,6,8]{3,2,1,0}) tuple(%i, %k)
}

%cond (p: (s32[], bf16[2,4,6,8])) -> pred[] {
  ROOT %p = (s32[], bf16[2,4,6,8]{3,2,1,0}) parameter(0)
}

ENTRY %main (x: bf16[2,4,6,8]) -> f32[4,6,6] {
  %x = bf16[2,4,6,8]{3,2,1,0} parameter(0)
  %b = bf16[1,4,6,6]{3,2,1,0} parameter(1)
  %zero = s32[] constant(0)
  %other = f32[4,6,6]{2,1,0} custom-call(%x), KERNEL
  %t = (s32[], bf16[2,4,6,8]{3,2,1,0}) tuple(%zero, %x)
  %w = (s32[], bf16[2,4,6,8]{3,2,1,0}) while(%t), condition=%cond, body=%body, TRIPS
  %f = (bf16[2,4,6,8]{3,1,2,0}, f32[2,4,6]{2,1,0}, u8[16]{0}) custom-call(%x, %x, %x, %b), CUDNN"
  %s = f32[2,4,6]{2,1,0} get-tuple-element(%f), index=1
  %g = (bf16[2,4,6,8]{3,1,2,0}, bf16[2,4,6,8]{3,1,2,0}, bf16[2,4,6,8]{3,1,2,0}, """
    """bf16[1,4,6,6]{3,2,1,0}, u8[16]{0}) custom-call(%x, %x, %x, %s, %x, %b, %x), CUDNNBackward"
  ROOT %out = f32[4,6,6]{2,1,0} copy(%other)
}
""".replace("KERNEL", 'custom_call_target="tpu_custom_call"')
    .replace("TRIPS", 'backend_config={"known_trip_count":{"n":"3"}}')
    .replace(
        "ESTIMATE",
        'backend_config={"custom_call_config":{"body":"TUzvUg==","cost_estimate":{"flops":"1000",'
        '"transcendentals":"9","bytes_accessed":"77"}}}',
    )
    .replace(
        "CUDNN",
        'backend_config={"cudnn_fmha_backend_config":{"intermediate_tensor_shape":{"element_type":'
        '"BF16","dimensions":["2","4","6","6"]},"dropout_rate":0}}, '
        'custom_call_target="__cudnn$fmhaScaleBiasSoftmax',
    )
)


def test_kernels_and_fused_attention_are_counted():
    program = Program(KERNELS)
    product = 2 * 2 * 4 * 6 * 6 * 8
    counted = {i.name: flops for flops, i in program.products()}
    assert counted == {"k": 3 * 1000, "f": 2 * product, "g": 5 * product}
    assert program.uncounted_calls() == {"tpu_custom_call"}
    x, bias, statistics, result = 2 * 2 * 4 * 6 * 8, 2 * 4 * 6 * 6, 4 * 2 * 4 * 6, 4 * 4 * 6 * 6
    moved = {"k": 3 * 2 * x, "f": 3 * x + bias + x + statistics}  # what is on the chip is free
    moved["g"] = 5 * x + statistics + bias + 3 * x + bias
    moved["other and its copy"] = x + result + 2 * result
    assert program.hbm_bytes() == sum(moved.values())


def test_loops_of_unknown_length_run_as_often_as_the_caller_states():
    def loop(x, kernel):
        return jax.lax.while_loop(lambda x: x.sum() < 5, lambda x: jnp.tanh(x @ kernel), x)

    lowered = jax.jit(loop).lower(shape(8, 16), shape(16, 16))
    assert Program(lowered.as_text(dialect="hlo"), trip_count=7).flops() == 7 * 2 * 8 * 16 * 16


# As XLA prints a loop whose first round stands before it ("loop peeling").
PEELED = """
%body (p: (s32[], f32[8,16], f32[16,16])) -> (s32[], f32[8,16], f32[16,16]) {
  %p = (s32[]{:T(128)}, f32[8,16]{1,0}, f32[16,16]{1,0}) parameter(0)
  %x = f32[8,16]{1,0} get-tuple-element(%p), index=1
  %k = f32[16,16]{1,0} get-tuple-element(%p), index=2
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i, %one)
  %dot = f32[8,16]{1,0} dot(%x, %k), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %t = (s32[]{:T(128)}, f32[8,16]{1,0}, f32[16,16]{1,0}) tuple(%next, %dot, %k)
}

%cond (p: (s32[], f32[8,16], f32[16,16])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
  %p = (s32[]{:T(128)}, f32[8,16]{1,0}, f32[16,16]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

ENTRY %main (x: f32[8,16], k: f32[16,16]) -> (s32[], f32[8,16], f32[16,16]) {
  %x = f32[8,16]{1,0} parameter(0)
  %k = f32[16,16]{1,0} parameter(1)
  %first = f32[8,16]{1,0} dot(%x, %k), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %one = s32[]{:T(128)} constant(BEGIN)
  %begin = s32[]{:T(128)} copy(%one)
  %t = (s32[]{:T(128)}, f32[8,16]{1,0}, f32[16,16]{1,0}) tuple(%begin, %first, %k)
  ROOT %w = (s32[]{:T(128)}, f32[8,16]{1,0}, f32[16,16]{1,0}) while(%t), condition=%cond, body=%body
}
"""


@pytest.mark.parametrize("begin", [0, 1, 3])
def test_a_loop_runs_from_where_its_counter_begins(begin):
    product = 2 * 8 * 16 * 16
    assert Program(PEELED.replace("BEGIN", str(begin))).flops() == (1 + 5 - begin) * product


def test_text_that_is_not_a_program_is_reported():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        Program("nothing")
