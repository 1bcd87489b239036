"""The fused kernel in interpret mode against products: values, and gradients of all that it takes.

Both compute the same sums of float32 products in another order. With n terms in a sum, unit
roundoff u = 2^-24 and S the largest sum of magnitudes in a score, scores differ by at most
2 n u S, a weight by the factor exp(4 n u S) (its numerator and its denominator), and what weights
are multiplied with by as much again: 8 n u S of the largest number covers both passes.
"""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ofa_jax.model import (
    attention_blocks,
    attention_cudnn,
    attention_fused,
    attention_kernel,
    attention_terms,
)
from ofa_jax.model.attention_random import keeps
from ofa_jax.model.attention_terms import (
    AttentionMask,
    PositionFactors,
    SampledPatches,
    ScoreTerms,
    WeightDropout,
)
from ofa_jax.model.layers import ATTENDED

BUCKET = 6
HEADS, WIDTH = 2, 8


def normal(rng, *shape):
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


@dataclasses.dataclass
class Case:
    """Sizes and options of an attention.

    Attributes:
      queries, keys: lengths without the prefix; `keys` None for self-attention.
      images: (start, sampled patches, grid) of each image.
      kinds: 0 without a relative bias.
      shared: whether all examples have the same positions.
      block, key_block: queries and keys of a program; None for what the kernel chooses.
    """

    queries: int
    keys: int | None = None
    batch: int = 3
    images: tuple = ()
    kinds: int = 1
    shared: bool = False
    causal: bool = False
    prefix: int = 0
    rate: float = 0.0
    block: int | None = None
    key_block: int | None = None
    scaled: bool = True

    def arguments(self, dtype=jnp.float32):
        """Returns random arguments of `attend`."""
        rng, batch = np.random.default_rng(0), self.batch
        keys = self.queries if self.keys is None else self.keys
        factors = PositionFactors(
            normal(rng, 1 if self.shared else batch, self.queries, HEADS, WIDTH).astype(dtype),
            normal(rng, 1 if self.shared else batch, keys, HEADS, WIDTH).astype(dtype),
        )
        table = normal(rng, (2 * BUCKET - 1) ** 2 + 3, HEADS)
        patches = tuple(
            SampledPatches(
                table,
                jnp.asarray([rng.permutation(grid[0] * grid[1])[:n] for _ in range(batch)]),
                grid,
                start,
                BUCKET,
            )
            for start, n, grid in self.images
        )
        relative = normal(rng, self.kinds, HEADS, self.queries, keys) if self.kinds else None
        kinds = jnp.arange(batch) % 2 if self.kinds == 2 else None
        mask = np.array(rng.random((batch, keys)) < 0.7)
        mask[:, 0], mask[-1] = True, False  # nothing of the last example is visible
        total = keys + self.prefix
        return (
            normal(rng, batch, self.queries, HEADS, WIDTH).astype(dtype),
            normal(rng, batch, total, HEADS, WIDTH).astype(dtype),
            normal(rng, batch, total, HEADS, WIDTH).astype(dtype),
            ScoreTerms(factors, relative, kinds, patches, self.prefix),
            AttentionMask(jnp.asarray(mask), self.causal),
            WeightDropout(jax.random.key(5), self.rate) if self.rate else None,
            normal(rng, HEADS) if self.scaled else None,
        )


CASES = {
    "sampled patches and text": Case(9, images=((0, 5, (3, 4)),)),
    "two images, a prefix": Case(11, images=((0, 3, (2, 5)), (3, 4, (4, 2))), prefix=2),
    "text and code rows": Case(7, kinds=2, causal=True, shared=False),
    "text alone, the same positions": Case(5, shared=True, causal=True, prefix=3, scaled=False),
    "cross-attention": Case(6, 13, kinds=0),
    "one query, one key": Case(1, 1, kinds=0, shared=True),
    "several blocks of queries": Case(21, 10, block=8, kinds=2, batch=2, causal=True, shared=True),
    "patches in several blocks": Case(20, batch=2, block=8, images=((2, 9, (5, 3)),)),
    "dropout": Case(6, rate=0.4, block=4),
}
BLOCKS = {
    "patches and text": Case(20, batch=2, block=8, key_block=8, images=((2, 9, (5, 3)),)),
    "two images, a prefix, dropout": Case(
        21,
        batch=2,
        block=8,
        key_block=16,
        images=((0, 7, (2, 5)), (7, 6, (4, 2))),
        prefix=2,
        rate=0.4,
        shared=True,
    ),
    "text and code rows, dropout": Case(
        19, kinds=2, causal=True, prefix=3, rate=0.3, block=8, key_block=8
    ),
    "cross-attention": Case(6, 21, kinds=0, key_block=8, scaled=False),
    "whole blocks": Case(16, 24, batch=2, block=8, key_block=8, shared=True),
}
CASES |= {f"blocks of keys: {name}": case for name, case in BLOCKS.items()}


def value_and_slopes(function, leaves, tree):
    """Returns the result of a function of a tree, and the gradients of its floating leaves."""
    floating = [jnp.issubdtype(x.dtype, jnp.floating) for x in leaves]

    def attend(floats):
        given = iter(floats)
        joined = [next(given) if f else x for x, f in zip(leaves, floating, strict=True)]
        return function(*tree.unflatten(joined))

    mixed, pull = jax.vjp(attend, [x for x, f in zip(leaves, floating, strict=True) if f])
    weights = normal(np.random.default_rng(1), *mixed.shape).astype(mixed.dtype)
    return mixed, pull(weights)[0]


def run(function, arguments):
    """Compiles and runs `value_and_slopes`."""
    leaves, tree = jax.tree.flatten(arguments)
    return jax.jit(lambda leaves: value_and_slopes(function, leaves, tree))(leaves)


def by_kernel(case, arguments):
    """Returns the kernel in interpret mode, with the case's block of queries."""
    spec = attention_fused.kernel_spec(*arguments)
    block, key_block = case.block or spec.block, case.key_block or spec.key_block
    images = [
        dataclasses.replace(x, queries=case.block or x.queries, keys=case.key_block or x.keys)
        for x in spec.images
    ]
    spec = dataclasses.replace(
        spec, block=block, key_block=key_block, images=tuple(images), interpret=True
    )
    return functools.partial(attention_fused.attend_by_kernel, spec)


def largest_score(arguments):
    """Returns the largest sum of magnitudes of a score: products, and relative biases."""
    query, key, _, terms, *_ = arguments
    content = jnp.einsum("bqhd,bkhd->bhqk", abs(query), abs(key)).max()
    position = terms.positions.replace(
        query=abs(terms.positions.query), key=abs(terms.positions.key)
    )
    tables = [abs(image.table).max() for image in terms.patches]
    relative = 0 if terms.relative is None else abs(terms.relative).max()
    return float(content + position.bias().max() + relative + sum(tables))


@pytest.mark.parametrize("name", CASES)
def test_kernel_equals_products(name):
    case = CASES[name]
    arguments = case.arguments()
    mixed, slopes = run(by_kernel(case, arguments), arguments)
    expected, expected_slopes = run(attention_terms.attend, arguments)
    terms = 2 * WIDTH + case.queries + arguments[1].shape[1]
    tolerance = 8 * terms * 2**-24 * largest_score(arguments)
    assert tolerance < 2e-3
    assert len(slopes) == len(expected_slopes) > 4
    for ours, theirs in zip([mixed, *slopes], [expected, *expected_slopes], strict=True):
        bound = tolerance * max(float(abs(theirs).max()), 1)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=bound)


@pytest.mark.parametrize("name", ["sampled patches and text", "blocks of keys: patches and text"])
def test_bfloat16_kernel_stays_as_close_to_exact_products_as_bfloat16_products(name):
    """Both round queries, keys, weights and results to 8 bits; twice their error is allowed."""
    case = CASES[name]
    exact = case.arguments(jnp.float32)
    arguments = case.arguments(jnp.bfloat16)
    expected, expected_slopes = run(attention_terms.attend, exact)
    results = {}
    for name, function in (
        ("kernel", by_kernel(case, arguments)),
        ("products", attention_terms.attend),
    ):
        mixed, slopes = run(function, arguments)
        results[name] = [
            np.sqrt(np.mean((np.asarray(ours, np.float32) - theirs) ** 2) / np.mean(theirs**2))
            for ours, theirs in zip([mixed, *slopes], [expected, *expected_slopes], strict=True)
        ]
    assert max(results["products"]) < 0.06
    for kernel, products in zip(results["kernel"], results["products"], strict=True):
        assert kernel < 2 * products + 2**-9


@pytest.mark.parametrize("probability", [0.9, 0.35])
def test_kernel_draws_the_bits_of_jax(probability):
    key = jax.random.key(7)
    expected = jax.random.bernoulli(key, probability, (40, 9))
    rows, columns = (jnp.asarray(x, jnp.int32) for x in np.indices((40, 9)))
    words = tuple(jax.random.key_data(key))
    np.testing.assert_array_equal(keeps(words, rows, columns, 9, probability), expected)


def test_counters_beyond_32_bits_equal_those_of_jax():
    from jax.extend.random import threefry2x32_p

    words = jnp.asarray([3, 2**31 + 5], jnp.uint32)
    rows = np.array([2**26, 2**27 - 1, 2**31 - 1], np.int64)
    index = rows * 300 + 299
    assert index.max() >= 2**32
    counters = [jnp.asarray(part, jnp.uint32) for part in (index >> 32, index & 0xFFFFFFFF)]
    bits0, bits1 = threefry2x32_p.bind(words[0], words[1], *counters)
    expected = np.asarray((bits0 ^ bits1) >> 9) < 0.5 * 2**23
    got = keeps((words[0], words[1]), jnp.asarray(rows, jnp.int32), jnp.full(3, 299), 300, 0.5)
    np.testing.assert_array_equal(got, expected)


# Queries, keys, relative biases, and grids of sampled patches, as the model has them.
SHAPES = {
    "pairs of pretraining": (300, 300, 1, [(24, 24)]),
    "targets of pretraining": (264, 264, 2, []),
    "384 px, all patches, and text": (576 + 80, 576 + 80, 1, []),
    "480 px, all patches, and text": (900 + 81, 900 + 81, 1, []),
    "512 px, all patches, and text": (1024 + 80, 1024 + 80, 1, []),
    "512 px, sampled patches": (1024 + 80, 1024 + 80, 1, [(32, 32)]),
    "two images of 384 px": (2 * 576 + 40, 2 * 576 + 40, 1, [(24, 24), (24, 24)]),
    "the longest target and its codes": (1025, 1025, 2, []),
    "a long target and 512 px": (1025, 1104, 0, []),
    "the longest input": (2 * 900 + 1024, 2 * 900 + 1024, 1, []),
}


@pytest.mark.parametrize("name", SHAPES)
def test_blocks_of_all_lengths_fit_vmem(name):
    queries, keys, *others = SHAPES[name]
    blocks = attention_blocks.choose_blocks(queries, keys, *others)
    needed = attention_blocks.vmem_bytes(blocks, queries, keys, *others)
    assert needed <= attention_blocks.VMEM_BUDGET
    assert blocks.queries == queries or blocks.queries % 128 == 0
    assert blocks.keys == keys or blocks.keys % 128 == 0
    # The largest arrays one by one: five or six of scores, and the relative bias of one block of
    # keys with its gradient, each of them twice.
    kinds, pairs = others[0], blocks.queries * blocks.keys
    assert 4 * (5 * pairs + 4 * kinds * queries * blocks.keys) < needed


def test_pretraining_computes_all_keys_at_once():
    """Shapes of gin_configs/runs/pretrain.gin: one kernel for all gradients."""
    for queries, keys, kinds, grids in [
        (300, 300, 1, [(24, 24)]),
        (272, 272, 1, []),
        (288, 288, 1, []),
        (264, 264, 2, []),
        (264, 288, 0, []),
        (32, 300, 0, []),
    ]:
        blocks = attention_blocks.choose_blocks(queries, keys, kinds, grids)
        assert blocks == (queries, keys)


def test_shapes_that_do_not_fit_vmem_are_left_to_products(monkeypatch):
    assert attention_blocks.choose_blocks(12000, 12000, 1) is None
    arguments = Case(8, batch=1).arguments()
    assert attention_fused.kernel_refusal(*arguments) is None
    monkeypatch.setattr(attention_blocks, "VMEM_BUDGET", 1000)
    assert attention_fused.kernel_refusal(*arguments) == (
        "8 queries and 8 keys (more than fit VMEM)"
    )
    expected = attention_terms.attend(*arguments)
    np.testing.assert_allclose(attention_fused.attend(*arguments), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["sampled patches and text", "blocks of keys: patches and text"])
def test_rematerialised_layers_run_the_forward_kernel_once(name):
    """What the backward pass reads of the forward kernel is saved by its name."""
    case = CASES[name]
    arguments = case.arguments()
    attend = by_kernel(case, arguments)

    def kernels(policy):
        """Returns the kernels that the backward pass of a rematerialised layer needs."""
        layer = jax.checkpoint(lambda *qk: jnp.sin(attend(*qk, *arguments[2:])), policy=policy)
        gradient = jax.grad(lambda *qk: layer(*qk).sum(), argnums=(0, 1))
        program = jax.make_jaxpr(gradient)(*arguments[:2])
        (again,) = [e for e in program.eqns if e.primitive.name == "remat2"]
        body, names = again.params["jaxpr"], []
        live = {x for x in body.outvars if type(x).__name__ == "Var"}
        for equation in reversed(body.eqns):
            if live.intersection(equation.outvars):
                live.update(x for x in equation.invars if type(x).__name__ == "Var")
                if equation.primitive.name == "pallas_call":
                    names.append(equation.params["name"])
        return sorted(names)

    policies = jax.checkpoint_policies
    forward = "attention_forward" + ("_block" if case.key_block else "")
    saved = kernels(policies.save_only_these_names(ATTENDED))
    assert kernels(policies.nothing_saveable) == sorted([*saved, forward])
    assert saved == (
        ["attention_backward_keys", "attention_backward_queries"]
        if case.key_block
        else ["attention_backward"]
    )


def test_library_attention_equals_products():
    """cuDNN runs on GPUs alone; JAX's own implementation takes the same arguments."""
    case = Case(8, kinds=2, causal=True, images=((0, 4, (3, 4)),))
    arguments = case.arguments()
    library = functools.partial(attention_cudnn.attend, implementation="xla")
    ours, theirs = (run(f, arguments) for f in (library, attention_terms.attend))
    visible = np.arange(case.batch) < case.batch - 1  # what sees nothing is no attention
    np.testing.assert_allclose(ours[0][visible], theirs[0][visible], rtol=0, atol=1e-5)
    rounded = case.arguments(jnp.bfloat16)
    assert attention_cudnn.refusal(*rounded) is None
    refusals = {
        attention_cudnn.refusal(*refused)
        for refused in (
            arguments,
            Case(9).arguments(jnp.bfloat16),
            Case(8, rate=0.1).arguments(jnp.bfloat16),
        )
    }
    assert refusals == {
        "the dtype float32 (it takes bfloat16)",
        "odd lengths (9 queries, 9 keys)",
        "dropout of attention weights (it draws other random numbers than JAX)",
    }


def gpu(version="cuda 12090", capability="8.0"):
    """Returns a stand-in for a GPU."""
    client = types.SimpleNamespace(platform_version=version)
    return types.SimpleNamespace(client=client, compute_capability=capability)


def test_gpus_without_flash_attention_are_named():
    assert attention_cudnn.gpu_refusal(gpu()) is None
    assert attention_cudnn.gpu_refusal(gpu(capability="12.0")) is None
    assert "7.5" in attention_cudnn.gpu_refusal(gpu(capability="7.5"))
    assert "without CUDA" in attention_cudnn.gpu_refusal(gpu("rocm 60300"))


def test_a_gpu_uses_cudnn_where_it_takes_the_arguments_and_says_why_not(monkeypatch, caplog):
    """cuDNN itself is replaced: there is no GPU here."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [gpu()])
    monkeypatch.setattr(attention_cudnn, "attend", lambda query, *_: 0 * query)
    attention_fused._log_fallback.cache_clear()
    with caplog.at_level("WARNING"):
        assert not attention_fused.attend(*Case(8).arguments(jnp.bfloat16)).any()
        assert not caplog.records
        odd = Case(9).arguments(jnp.bfloat16)
        for _ in range(2):
            mixed = attention_fused.attend(*odd)
    np.testing.assert_array_equal(mixed, attention_terms.attend(*odd))
    (record,) = caplog.records
    assert "cuDNN does not take odd lengths (9 queries, 9 keys)" in record.getMessage()


@pytest.mark.parametrize(
    ("name", "kernels"), [("sampled patches and text", 1), ("blocks of keys: patches and text", 2)]
)
def test_operations_of_the_kernel_are_those_of_its_products(name, kernels):
    """The cost estimate, which plans read, equals the count of the products in the program."""
    from ofa_jax.planning.hlo import Program

    case = CASES[name]
    arguments = case.arguments()
    (spec,) = by_kernel(case, arguments).args
    terms, integers = attention_fused._to_kernel(arguments)
    padded, _ = attention_kernel._padded(spec, terms, integers)
    forward = jax.jit(functools.partial(attention_kernel.forward, spec)).lower(terms, integers)
    text = forward.as_text(dialect="hlo")
    assert Program(text).flops() == attention_kernel.forward_flops(spec, padded)
    gradient = jnp.zeros_like(terms.query)
    results = jax.eval_shape(functools.partial(attention_kernel.forward, spec), terms, integers)
    backward = jax.jit(functools.partial(attention_kernel.backward, spec))
    arrays = [gradient, *results] if kernels == 2 else [gradient]
    text = backward.lower(terms, integers, *arrays).as_text(dialect="hlo")
    assert Program(text).flops() == attention_kernel.backward_flops(spec, padded)
