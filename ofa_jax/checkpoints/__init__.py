"""Checkpoints of a run, in MODEL_DIR/checkpoints/STEP.

| module | contents |
| --- | --- |
| `manager` | `Checkpoints` saves and restores train states during training |
| `storage` | finds, reads and writes checkpoints without a train state |
| `checksums` | checksums of a checkpoint's files, which reveal damage |
| `load` | configuration and variables for inference, of our and of others' checkpoints |
| `warm_start` | initialises a new run from a checkpoint |
| `t5x_files` | reads and writes checkpoints of t5x |
| `watch` | selects checkpoints to evaluate, and waits for new ones |

Orbax writes the files. It has no checksums, no fallback to an older intact checkpoint, and its
iterator over new checkpoints skips all but the newest; these parts are here.
"""

__all__: list[str] = []
