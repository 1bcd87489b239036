"""Training: losses, optimizer, the step and the loop.

build            `build_run`: from a configuration to a `Run`, checked and not yet compiled
train_program    `build_train_program`: network, state and step, for training and for plans
run              `Run`: everything the loop works with
loop             `train`: restore, step, log, save, validate; `loop_config` says when
early_start      the first batch and the compiled step while the state is restored
step             the training step and the eval step
losses           token losses and their options, summed in groups of streams
optimizer        AdamW and its schedule, frozen groups, moving average
self_critical    training on the rewards of sampled targets, CIDEr-D or a CLIP's scores;
                 `self_critical_rewards` builds it for the records of a run
datasets         the data of a split, and the baselines computed from it
validation       loss and accuracy beside two baselines; the history of all validations
galleries        what the model predicts at each validation, for people to look at
checks           that the parts of a run fit together
metrics, flops   sums per task; the arithmetic of a step
metric_writers   CSV and Weights & Biases beside TensorBoard
telemetry        throughput, waiting for data, padding, profiles; `terminal` shows them
preemption, watchdog    SIGTERM; processes that hang

Nothing is imported here: `losses`, `step` and `optimizer` need neither data nor gin.
"""

__all__ = [
    "build",
    "checks",
    "datasets",
    "early_start",
    "flops",
    "galleries",
    "loop",
    "loop_config",
    "losses",
    "metric_writers",
    "metrics",
    "optimizer",
    "preemption",
    "run",
    "self_critical",
    "self_critical_rewards",
    "step",
    "telemetry",
    "terminal",
    "train_program",
    "validation",
    "watchdog",
]
