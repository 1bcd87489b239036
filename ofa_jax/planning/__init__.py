"""Planning: memory, arithmetic and collectives of a run on hardware that is not available.

programs     traces the training step (that of `training.train_program`) and decoding
topologies   described devices of TPU slices and GPUs (`gpu`), and their compilers
compiling    compiles as far as a plan needs
planner      `plan`: compiles a program and collects its costs; `sweep` tries several meshes
cost         memory by kind, collectives by mesh axis, traffic, roofline
report       a plan as text
hlo          parses HLO, with `hlo_text`, `hlo_products` and `hlo_traffic`
"""

__all__ = [
    "compiling",
    "cost",
    "gpu",
    "hlo",
    "hlo_products",
    "hlo_text",
    "hlo_traffic",
    "planner",
    "programs",
    "report",
    "sweep",
    "topologies",
]
