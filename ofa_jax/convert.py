"""Converts checkpoints between fairseq's `.pt` (official OFA), Hugging Face folders, t5x and ours.

    ofa-convert ofa_base.pt runs/ofa_base
    ofa-convert runs/ofa_base ofa_base_again.pt
    ofa-convert runs/ofa_base ofa_base_hf --layout=huggingface
    ofa-convert ofa_base.pt ofa_base_hf --layout=huggingface --vocabulary=utils/BPE
    ofa-convert ofa_base_hf runs/ofa_base
    ofa-convert vqa_large_best.pt runs/vqa_large --weights=ema
    ofa-convert ofa_base.pt runs/more_bins --vocab_size=60457
    ofa-convert bart.base.pt runs/from_bart --bart --size=base
    ofa-convert runs/ofa_base runs/t5x --layout=t5x
    ofa-convert runs/t5x/checkpoint_2000 runs/back

INPUT is recognised by its content: a `.pt` of fairseq, a folder with weights (model.safetensors or
pytorch_model.bin, or several files with an index) and config.json, a run directory of ours, or one
of t5x with `checkpoint_STEP`. What it holds but the result does not (averaged weights, an
optimiser's state) is listed. OUTPUT (`.pt` is fairseq's) and --layout decide the result.
INITIAL_CHECKPOINT_PATH accepts a run directory, and also a `.pt` or a Hugging Face folder that was
not converted. Nothing in a `.pt` is executed. Converting there and back gives the same tensors bit
for bit: origin.json keeps what our variables do not hold.

A Hugging Face folder gets model.safetensors and pytorch_model.bin, config.json, the tokenizer files
and preprocessor_config.json as far as INPUT or --vocabulary has them, and a model card with the
results of the run's evaluations (README.md).

From and to t5x, the step and the optimiser's state go along: docs/guides/t5x.md says which parts.
"""

import sys
from collections.abc import Sequence

from ofa_jax.cli import convert_command, errors


def main(arguments: Sequence[str]) -> None:
    """Runs the command line `arguments` (without the program)."""
    convert_command.run_command("ofa-convert", __doc__ or "", arguments)


if __name__ == "__main__":
    with errors.interruptible():
        main(sys.argv[1:])
