"""The targets of the fuzzer by name; each module is imported when its target is used."""

import importlib

from fuzz.cases import Target

TARGETS = {
    "images": "image_files",
    "tsv": "tsv_files",
    "jsonl": "request_files",
    "requests": "python_requests",
    "gin": "gin_files",
    "pt": "torch_files",
    "safetensors": "safetensors_files",
    "arrayrecord": "shards",
    "parquet": "shards",
    "jsonlines": "table_files",
    "arrow": "table_files",
    "webdataset": "table_files",
    "coco": "table_files",
    "run": "run_directories",
    "t5x": "t5x_checkpoints",
    "checksums": "checksum_files",
    "outputs": "output_files",
}
"""Name of a target -> the module that has it."""
SLOW = {"run": 6, "t5x": 6}
"""Target -> how many cases of others take as long as one of its; `--cases` counts accordingly."""
_SELF_TEST = {"planted": "planted"}


def make_target(name: str) -> Target:
    """Returns a target by its name."""
    module = importlib.import_module(f"fuzz.targets.{(TARGETS | _SELF_TEST)[name]}")
    return module.TARGETS[name]()
