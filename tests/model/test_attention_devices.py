"""The fused kernel on eight devices, and compiled for TPUs that are not there.

    bash tests/run.sh slow tests/model/test_attention_devices.py

The second part needs libtpu (the extra `plan`), which is loaded in a process of its own.
"""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest
from simulated_devices import IMPORTABLE, run_on_eight_devices

pytestmark = pytest.mark.slow

HERE = pathlib.Path(__file__).parent

SPLIT = """
import dataclasses, json, sys
sys.path.insert(0, sys.argv[1])
import jax, numpy as np
import test_attention_kernel as kernels
from ofa_jax.sharding import Partitioner

case = dataclasses.replace(kernels.CASES[sys.argv[2]], batch=4)
arguments = case.arguments()

def differences(mesh):
    whole, whole_slopes = kernels.run(kernels.by_kernel(case, arguments), arguments)
    with Partitioner(**mesh).mesh_context():
        split, split_slopes = kernels.run(kernels.by_kernel(case, arguments), arguments)
    pairs = zip([split, *split_slopes], [whole, *whole_slopes], strict=True)
    return [float(abs(np.asarray(a) - np.asarray(b)).max() / abs(b).max()) for a, b in pairs]

meshes = dict(data=4, tensor=2), dict(data=2, fsdp=2, tensor=2)
print(json.dumps([differences(mesh) for mesh in meshes]))
"""

COMPILE = """
import dataclasses, json, sys
sys.path.insert(0, sys.argv[1])
import jax, jax.numpy as jnp
from jax.experimental import topologies
import test_attention_kernel as kernels
from ofa_jax.model import attention_fused
from ofa_jax.planning.hlo import Program

topology = topologies.get_topology_desc(topology_name="v5e:2x2", platform="tpu")
device = jax.sharding.SingleDeviceSharding(topology.devices[0])
found = {}
# Longer than one block of keys; some also longer than one of queries.
LONG = {
    "384 px": kernels.Case(656, batch=2),
    "480 px, sampled patches": kernels.Case(
        980, batch=2, images=((0, 900, (30, 30)),), rate=0.1, prefix=2
    ),
    "codes": kernels.Case(1025, batch=2, kinds=2, causal=True, shared=True),
    "cross-attention": kernels.Case(30, 3000, kinds=0, batch=2),
}
for name, case in (kernels.CASES | LONG).items():
    kernels.BUCKET, kernels.WIDTH = (42, 64) if name in LONG else (6, 8)
    for dtype in (jnp.float32, jnp.bfloat16):
        if case.block or case.key_block:  # blocks of a TPU are wider: those that it chooses
            case = dataclasses.replace(case, block=None, key_block=None)
        arguments = case.arguments(dtype)
        leaves, tree = jax.tree.flatten(arguments)
        shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device) for x in leaves]
        policy = jax.checkpoint_policies.save_only_these_names("attended")
        attend = jax.checkpoint(attention_fused.attend, policy=policy)
        def step(leaves):
            return kernels.value_and_slopes(attend, leaves, tree)
        program = Program(jax.jit(step).lower(shapes).compile().as_text())
        kinds = [i.opcode for _, i in program.products()]
        wanted = 2 if attention_fused.kernel_spec(*arguments).one_pass else 3
        assert (wanted == 3) == (name in LONG)
        found[f"{name}, {dtype.__name__}"] = kinds, sorted(program.uncounted_calls()), wanted
print(json.dumps(found))
"""


@pytest.mark.parametrize(
    "name",
    [
        "sampled patches and text",
        "text alone, the same positions",
        "blocks of keys: two images, a prefix, dropout",
    ],
)
def test_split_over_devices_the_kernel_computes_the_same(name):
    """Sums over devices are in another order: 1e-5 of the largest number."""
    for differences in run_on_eight_devices(SPLIT, HERE, name):
        assert max(differences) < 1e-5


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_kernels_compile_for_a_tpu_and_say_what_they_cost():
    process = subprocess.run(
        [sys.executable, "-c", COMPILE, str(HERE)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (*IMPORTABLE, *sys.path)))},
    )
    assert process.returncode == 0, process.stderr[-3000:]
    found = json.loads(process.stdout.splitlines()[-1])
    assert len(found) > 10
    for name, (kinds, uncounted, wanted) in found.items():
        assert kinds.count("custom-call") == wanted and not uncounted, name
