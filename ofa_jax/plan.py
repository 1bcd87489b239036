r"""Estimates what a run needs and costs on a pod, without access to the pod.

    python -m ofa_jax.plan --gin_file=gin_configs/models/base.gin \
      --gin_file=gin_configs/runs/pretrain.gin --topology=v5e:16x16 \
      [--slices=2] [--json] [--sweep] [--program=decode]

Compiles the training step of `ofa_jax.train` (or, with --program=decode, the program that decodes
a batch of the first stream as `DecodingConfig` says) for the chips of --topology (v3 to v6e, tpu7x;
a shape like 4x4 or 4x4x8) with libtpu, or for GPUs (h100:8, those of one machine) with JAX's plugin
for CUDA, and reads memory, arithmetic, collectives and a roofline from the program. No data set and
no vocabulary is opened: --vocab_size gives the number of ids (the published 59457), and what else
depends on data has a stand-in, which the report names. --sweep tries meshes, remat and
accumulation, and ranks what fits. Exit code 3: the program does not fit; the report says what would
make it fit.
"""

import os
import sys
from collections.abc import Sequence

from ofa_jax.cli import flags
from ofa_jax.utils import allocator

# libtpu must neither look for hardware nor be limited to one process.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def main(arguments: Sequence[str]) -> None:
    """Runs the command line `arguments` (without the program)."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    flags.answer_help("python -m ofa_jax.plan", __doc__ or "", arguments)
    # Imported only now: JAX and TensorFlow read the environment when they are imported.
    from ofa_jax.cli import plan_command

    plan_command.run_command(__doc__ or "", arguments)


if __name__ == "__main__":
    allocator.restart_with_huge_pages()
    try:
        from ofa_jax.cli import errors

        with errors.interruptible():
            main(sys.argv[1:])
    except SystemExit as ended:
        # The compiler may still be at work, and cannot be called off.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended.code if isinstance(ended.code, int) else 1)
