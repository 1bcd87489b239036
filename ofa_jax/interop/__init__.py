"""Official OFA checkpoints, as dictionaries of numpy arrays and as files.

config = config_from_fairseq(args, vocab_size)
variables = from_fairseq(state_dict, config)     # for OFA(config).apply
state_dict = to_fairseq(variables, config)       # the inverse, integer buffers included

checkpoint = files.read("ofa_base.pt")           # nothing in it is executed
variables = from_fairseq(checkpoint.state_dict, checkpoint.config)
files.write("again.pt", variables, checkpoint.config, checkpoint.origin)
"""

from ofa_jax.interop.arguments import args_for_fairseq, config_from_fairseq
from ofa_jax.interop.fairseq import (
    from_fairseq,
    initialise_from_bart,
    resize_vocabulary,
    to_fairseq,
)

__all__ = [
    "args_for_fairseq",
    "config_from_fairseq",
    "from_fairseq",
    "initialise_from_bart",
    "resize_vocabulary",
    "to_fairseq",
]
