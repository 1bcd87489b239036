"""OFA as the package `modelscope` has it: the official model and search, for comparison.

Needs the extra `peer`, in an environment of its own (CONTRIBUTING.md). Only the model and its
search are imported: other parts of the package need fairseq.
"""

import importlib
import importlib.util
import pathlib
import sys
import time
import types
from typing import Any

import numpy as np

from ofa_jax.interop import huggingface
from ofa_jax.interop.arguments import args_for_fairseq
from ofa_jax.model import OFAConfig

_OFA = "modelscope.models.multi_modal.ofa"


def missing() -> list[str]:
    """Returns the names of required packages that are not installed."""
    return [
        name
        for name in ("torch", "transformers", "modelscope")
        if name not in sys.modules and importlib.util.find_spec(name) is None
    ]


def module(name: str) -> types.ModuleType:
    """Imports a module of the package's OFA, such as "modeling_ofa".

    Raises:
      ImportError: a package is missing.
    """
    if "modelscope" not in sys.modules:
        _import_packages()
    return importlib.import_module(f"{_OFA}.{name}")


def _import_packages() -> None:
    """Makes the packages around the model empty, and those of the vision transformers of others."""
    if absent := missing():
        raise ImportError(
            f"{', '.join(absent)} not found: install the extra `peer` as CONTRIBUTING.md says."
        )
    folder = pathlib.Path(importlib.util.find_spec("modelscope").origin).parent
    parts = ("modelscope", "models", "multi_modal", "ofa", "generate")
    for depth in range(1, len(parts) + 1):
        package = types.ModuleType(".".join(parts[:depth]))
        package.__path__ = [str(folder.joinpath(*parts[1:depth]))]
        sys.modules[package.__name__] = package
    vit = sys.modules[f"{_OFA}.vit"] = types.ModuleType(f"{_OFA}.vit")
    vit.vit_base = vit.vit_large = vit.vit_large_336 = vit.vit_huge = None


class _Ids:
    """The part of a tokenizer that the search uses."""

    bos_token_id, pad_token_id, eos_token_id, unk_token_id = range(4)

    def __init__(self, vocab_size: int):
        self._vocab = {str(i): i for i in range(vocab_size)}

    def get_vocab(self) -> dict[str, int]:
        return self._vocab

    def get_added_vocab(self) -> dict[str, int]:
        return {}


def search_seconds(
    config: OFAConfig, batch: dict[str, np.ndarray], beam: int, tokens: int, repeats: int
) -> list[tuple[float, float]]:
    """Times the package's beam search with random weights: some runs after one.

    Args:
      config: of the model.
      batch: "encoder_input_tokens" int [B, T] and "encoder_images" uint8 [B, H, W, 3].
      beam: number of hypotheses.
      tokens: length of every output without its eos.
      repeats: runs.

    Returns:
      Seconds of encoder (ResNet included) and of the rest, of every run.
    """
    import torch

    described = huggingface.huggingface_from_args(args_for_fairseq(config), config.vocab_size)
    model = (
        module("modeling_ofa").OFAModel(module("configuration_ofa").OFAConfig(**described)).eval()
    )
    generate = module("generate.sequence_generator")
    search = generate.SequenceGenerator(
        _Ids(config.vocab_size), beam_size=beam, max_len_b=tokens, min_len=tokens
    )
    images = torch.from_numpy(batch["encoder_images"]).permute(0, 3, 1, 2) / 127.5 - 1
    sample = {
        "net_input": {
            "input_ids": torch.from_numpy(batch["encoder_input_tokens"]).long(),
            "patch_images": images.contiguous(),
            "patch_masks": torch.ones(len(images), dtype=torch.bool),
        }
    }
    encoder: list[float] = []
    encode = generate.EnsembleModel.forward_encoder

    def timed(self, net_input: Any) -> Any:
        start = time.perf_counter()
        outputs = encode(self, net_input)
        encoder.append(time.perf_counter() - start)
        return outputs

    runs = []
    generate.EnsembleModel.forward_encoder = timed
    try:
        for _ in range(repeats + 1):
            start = time.perf_counter()
            answers = search.generate([model], sample)
            whole = time.perf_counter() - start
            runs.append((whole, encoder[-1]))
    finally:
        generate.EnsembleModel.forward_encoder = encode
    lengths = {len(answer["tokens"]) for found in answers for answer in found}
    if lengths != {tokens + 1}:
        raise RuntimeError(f"outputs of {tokens} tokens were expected, not of {lengths}.")
    return [(encoded, whole - encoded) for whole, encoded in runs[1:]]
