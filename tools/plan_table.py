"""Fills the table of docs/pods.md: a plan for each row, made by the command that the row names.

    python -m tools.plan_table                                    # all missing rows
    python -m tools.plan_table --sizes=base,large --systems=v5e-256

Needs libtpu (the extra `plan`) and a minute or two of two cores for a row. Results are kept in
docs/plans.jsonl, so that a later call continues where this one stopped; the table is rewritten
after each. A row with other options than this tool would give it now stays until a call with its
size and system plans it anew. Where a row does not fit, it is planned again with more
rematerialisation, and then with gradient accumulation. GPUs need the extra `plan-cuda`.
"""

import argparse
import json
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ofa_jax.utils import files, progress, renamed, text_files

from .command import user_command

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "docs" / "plans.jsonl", ROOT / "docs" / "pods.md"
BEGIN, END = "<!-- tools.plan_table -->", "<!-- end -->"

# The mesh preset of each size. A replicated optimiser state would be read and written by every chip
# in every step, so only small models are replicated.
PRESETS = {
    "tiny": "data",
    "medium": "data",
    "base": "data_fsdp",
    "large": "data_fsdp",
    "huge": "data_fsdp",
}
# Published names count TensorCores for v4 and v5p, two to a chip. 256 images a step do not divide
# over 512 chips: two slices split each example's heads and feed-forward over two chips.
SYSTEMS = {
    "v4-128": ["--topology=v4:4x4x4"],
    "v5e-256": ["--topology=v5e:16x16"],
    "v5p-128": ["--topology=v5p:4x4x4"],
    "v6e-256": ["--topology=v6e:16x16"],
    "2 x v5e-128": ["--topology=v5e:8x16", "--slices=2"],
    "2 x v5e-256": ["--topology=v5e:16x16", "--slices=2", "--gin.Partitioner.tensor=2"],
    "8 x H100": ["--topology=h100:8"],
}
# Systems with so few devices that all of them are on the fsdp axis.
_FEW = {"8 x H100"}
# (remat, parts of the batch), until it fits; the first is that of pretrain.gin.
ATTEMPTS = (("weight_dots", 1), ("full", 1), ("full", 4), ("full", 16))
_COLUMNS = (
    "model",
    "system",
    "options",
    "peak, GiB of",
    "TFLOP a chip (x formula)",
    "compute, ms",
    "memory, ms",
    "interconnect, ms",
    "between slices, ms",
    "bottleneck",
    "examples/s",
    "MFU",
)
_HEADER = f"| {' | '.join(_COLUMNS)} |\n" + "| --- " * len(_COLUMNS) + "|"


def arguments(size: str, system: str, remat: str, parts: int = 1) -> list[str]:
    """Returns the arguments of `python -m ofa_jax.plan` for one row."""
    preset = PRESETS[size].removeprefix("data_" if system in _FEW else "")
    return [
        f"--gin_file=gin_configs/models/{size}.gin",
        "--gin_file=gin_configs/runs/pretrain.gin",
        f"--gin_file=gin_configs/partitioning/{preset}.gin",
        *SYSTEMS[system],
        *([] if remat == ATTEMPTS[0][0] else [f"--gin.model_config.remat='{remat}'"]),
        *([] if parts == 1 else [f"--gin.train.gradient_accumulation={parts}"]),
    ]


def row(result: Mapping[str, Any]) -> str:
    """Returns a line of the table.

    Args:
      result: `plan`, what `--json` printed, with `size`, `system` and `arguments` of the row.
    """
    plan = result["plan"]
    options = shlex.join(result["arguments"][2:]).replace("--gin_file=gin_configs/", "…")
    memory = plan["memory"]
    peak = f"{memory['peak'] / 2**30:.1f}" if memory["peak"] else "?"
    cells = [
        result["size"],
        result["system"],
        f"`{options}`",
        f"{peak} of {memory['capacity'] / 2**30:.0f}",
    ]
    if plan["fits"]:
        flops, line = plan["flops"], renamed.with_new_names(plan["roofline"], renamed.PLANS)
        cells.append(
            f"{flops['per_device'] * plan['devices'] / plan['chips'] / 1e12:.2f} "
            f"({flops['ratio']:.3f})"
        )
        cells += [
            f"{line[name] * 1e3:.1f}" for name in ("compute", "memory", "interconnect", "network")
        ]
        cells += [line["bottleneck"], f"{line['examples_per_second']:,.0f}", f"{line['mfu']:.0%}"]
    else:
        cells += ["does not fit"] + [""] * 7
    return "| " + " | ".join(cells) + " |"


def table(results: Iterable[Mapping[str, Any]]) -> str:
    """Returns the whole table, sizes and systems in their order."""
    order = [(size, system) for size in PRESETS for system in SYSTEMS]
    rows = sorted(results, key=lambda result: order.index((result["size"], result["system"])))
    return "\n".join([_HEADER, *map(row, rows)])


def with_table(page: str, text: str, begin_mark: str = BEGIN) -> str:
    """Returns the page with another table between its marks, the first of which is given.

    Raises:
      ValueError: it has no marks.
    """
    before, begin, rest = page.partition(begin_mark)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(
            f"The page has no place for the table: write {begin_mark} and {END} into it."
        )
    return f"{before}{begin_mark}\n{text}\n{END}{after}"


def plan(size: str, system: str) -> dict[str, Any]:
    """Returns the result of a row: of the first attempt that fits, else of the last.

    Raises:
      RuntimeError: the command failed.
    """
    for attempt in ATTEMPTS:
        command = arguments(size, system, *attempt)
        done = subprocess.run(
            [sys.executable, "-m", "ofa_jax.plan", *command, "--json"],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        if done.returncode not in (0, 3):
            raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stderr[-2000:]}")
        answer = json.loads(done.stdout.splitlines()[-1])
        if answer["fits"]:
            break
    return {"size": size, "system": system, "arguments": command, "plan": answer}


@user_command
def main(argv: Sequence[str]) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--sizes", default=",".join(PRESETS))
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    options = parser.parse_args(argv)
    sizes, systems = options.sizes.split(","), options.systems.split(",")
    for name, known in [*((s, PRESETS) for s in sizes), *((s, SYSTEMS) for s in systems)]:
        if name not in known:
            parser.error(f"there is no {name!r}; choose from {', '.join(known)}.")
    results = read_results() if RESULTS.exists() else []
    with_table(text_files.read_text(PAGE), table(results))  # raises if it has no place for it
    there = {place_of(result) for result in results if is_current(result)}
    missing = [(size, system) for size in sizes for system in systems]
    missing = [place for place in missing if place not in there]
    with progress.stage("planning rows", len(missing), "rows") as stage:
        for size, system in missing:
            new = plan(size, system)
            results = [result for result in results if place_of(result) != (size, system)] + [new]
            files.write_text(RESULTS, "".join(json.dumps(result) + "\n" for result in results))
            print(row(results[-1]), flush=True)
            _write_page(results)
            stage.advance()
    _write_page(results)


def place_of(result: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the model and the system of a row."""
    return result["size"], result["system"]


def is_current(result: Mapping[str, Any]) -> bool:
    """Tells whether a row has the options that `plan` would give it now."""
    return any(
        result["arguments"] == arguments(*place_of(result), *attempt) for attempt in ATTEMPTS
    )


def read_results() -> list[Mapping[str, Any]]:
    """Reads the results so far. Raises DamagedFileError."""
    results = []
    for number, line in enumerate(text_files.read_lines(RESULTS), 1):
        try:
            result = json.loads(line)
            if not {"size", "system", "plan"} <= set(result):
                raise ValueError("it has other fields")
        except (ValueError, TypeError, RecursionError) as error:
            raise text_files.DamagedFileError(
                f"{RESULTS}, line {number} is not a result ({error}): delete the line."
            ) from error
        results.append(result)
    return results


def _write_page(results: Iterable[Mapping[str, Any]]) -> None:
    files.write_text(PAGE, with_table(text_files.read_text(PAGE), table(results)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
