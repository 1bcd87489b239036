"""Checkpoints of the original OFA, read and written as dictionaries of numpy arrays.

    config = config_from_fairseq(args, vocab_size)
    variables = from_fairseq(state_dict, config)     # for OFA(config).apply
    state_dict = to_fairseq(variables, config)       # the inverse, integer buffers included
"""

from ofa_jax.interop.fairseq import config_from_fairseq, from_fairseq, to_fairseq

__all__ = ["config_from_fairseq", "from_fairseq", "to_fairseq"]
