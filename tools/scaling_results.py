"""Writes results/scaling.json, .md and .svg: loss against compute, for each model and data size.

The page and the plot are made from the JSON file:

    {"command", "commit", "options": [...],
     "runs": [{"size", "nouns", "scenes", "seed", "parameters", "flops_per_step", "steps",
               "minutes", "commit", "curve": [{"step", "flops", "loss", "losses"}, ...]}, ...]}

`scenes` is null for an endless stream; `losses` are those of each objective.
"""

import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from . import result_files, scaling_fit, svg_plots
from .scaling_fit import Fit
from .svg_plots import Series

NAME = "scaling"
_AHEAD = 10
"""How many times the largest compute the page extrapolates to."""

_ABOUT = (
    "The loss is the mean of all objectives on the same held-out scenes, in nats per token. "
    "Compute counts the operations of the pretraining steps alone, not of the encoder that a run "
    "begins with. A data size is nouns x scenes; `endless` never shows a scene twice."
)
_ABOUT_FITS = (
    "loss = E + A C^-alpha, by least squares; in brackets the interval of 95 % of 1,000 fits to "
    "resampled residuals. An interval of alpha or E that spans nearly all values means that the "
    "points do not tell."
)

Run = Mapping[str, Any]
Data = tuple[int, int | None]
"""Nouns and scenes; None for an endless stream."""


def load(path: pathlib.Path) -> dict[str, Any]:
    """Reads the JSON file; returns {} if there is none.

    Raises:
      DamagedFileError: it is torn, or not what `save` writes.
    """
    return result_files.read(path, "results of scaling", _check, empty={})


def _check(results: Mapping[str, Any]) -> None:
    """Fails if these are not results of scaling."""
    for run in results["runs"]:
        key_of(run), run["parameters"] + run["flops_per_step"], run["minutes"]
        [point["flops"] + point["loss"] for point in run["curve"]]
    results["command"], results["commit"], list(results["options"])


def save(directory: pathlib.Path, results: Mapping[str, Any]) -> None:
    """Writes the three files atomically."""
    result_files.write(directory, NAME, results, page(results), draw(results["runs"]))


def key_of(run: Run) -> tuple[Any, ...]:
    """Returns what a run is identified by."""
    return run["size"], run["nouns"], run["scenes"], run["seed"]


def merge(known: Sequence[Run], finished: Sequence[Run]) -> list[Run]:
    """Returns all runs, in order; of two with one key the finished one."""
    runs = {key_of(run): run for run in (*known, *finished)}
    return sorted(runs.values(), key=lambda run: (*_size_order(run), run["seed"]))


def _size_order(run: Run) -> tuple[float, ...]:
    return run["nouns"], run["scenes"] or math.inf, run["parameters"]


def data_name(data: Data) -> str:
    """Returns the name of a data size, such as "40x20000" or "40xendless"."""
    nouns, scenes = data
    return f"{nouns}x{'endless' if scenes is None else scenes}"


def data_of(run: Run) -> Data:
    """Returns the data size of a run."""
    return run["nouns"], run["scenes"]


def _data_sizes(runs: Sequence[Run]) -> list[Data]:
    return list(dict.fromkeys(map(data_of, runs)))


def _sizes(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(run["size"] for run in sorted(runs, key=lambda r: r["parameters"])))


def points(runs: Sequence[Run], data: Data) -> list[tuple[float, float]]:
    """Returns the best (compute, loss) of all models on one data size."""
    return scaling_fit.frontier(
        [(p["flops"], p["loss"]) for run in runs if data_of(run) == data for p in run["curve"]]
    )


def page(results: Mapping[str, Any]) -> str:
    """Returns the Markdown page."""
    runs = results["runs"]
    minutes = sum(run["minutes"] or 0.0 for run in runs)
    fits = {data: scaling_fit.fit(points(runs, data)) for data in _data_sizes(runs)}
    return "\n\n".join(
        [
            "# Loss against compute, model size and data size",
            f"{len(runs)} runs, {minutes:.0f} minutes of training; commit {results['commit']}; "
            f"options {', '.join(results['options'])}.\n\n```bash\n{results['command']}\n```",
            _ABOUT,
            f"![Loss against compute]({NAME}.svg)",
            "## Loss at the end of each run",
            _ends(runs),
            "## Power law of the best loss at each compute",
            _fits(runs, fits),
        ]
    ) + "\n"  # fmt: skip


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _ends(runs: Sequence[Run]) -> str:
    """Returns the last loss of each model and data size: mean and standard error over seeds."""
    sizes = _sizes(runs)
    parameters = {run["size"]: run["parameters"] for run in runs}
    header = ["data", *(f"{size} ({parameters[size] / 1e6:.2f} M parameters)" for size in sizes)]
    rows = []
    for data in _data_sizes(runs):
        row = [data_name(data)]
        for size in sizes:
            ends = [
                run["curve"][-1]["loss"]
                for run in runs
                if data_of(run) == data and run["size"] == size and run["curve"]
            ]
            row.append(_mean(ends))
        rows.append(row)
    return _table(header, rows)


def _mean(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.3f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values) / math.sqrt(len(values)):.3f}"


def _fits(runs: Sequence[Run], fits: Mapping[Data, Fit | None]) -> str:
    """Returns the fitted laws, with intervals that hold 95 % of the resampled fits."""
    rows = []
    for data, fit in fits.items():
        best = points(runs, data)
        row = [data_name(data), str(len(best))]
        if fit is None:
            row += ["too few points", "-", "-", "-"]
        else:
            ahead = _AHEAD * best[-1][0]
            row += [
                _with_interval(fit.best.alpha, fit.interval("alpha")),
                _with_interval(fit.best.floor, fit.interval("floor")),
                f"{fit.best.scale:.3f} at {fit.best.unit:.2g}",
                _with_interval(*(lambda p: (p[0], p[1:]))(fit.predict(ahead))),
            ]
        rows.append(row)
    header = ["data", "points", "alpha", "floor E", "A, at FLOPs", f"loss at {_AHEAD} x compute"]
    return f"{_ABOUT_FITS}\n\n{_table(header, rows)}"


def _with_interval(value: float, interval: Sequence[float]) -> str:
    return f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"


def draw(runs: Sequence[Run]) -> str:
    """Returns the plot: a colour for each data size, larger marks for larger models, the fits."""
    series: list[Series] = []
    for colour, data in enumerate(_data_sizes(runs)):
        for place, size in enumerate(_sizes(runs)):
            own = [run for run in runs if data_of(run) == data and run["size"] == size]
            for number, run in enumerate(own):
                xs = [point["flops"] for point in run["curve"]]
                ys = [point["loss"] for point in run["curve"]]
                label = "" if number else f"{data_name(data)}: {size}"
                series.append(Series("", xs, ys, line=True, colour=colour))
                series.append(Series(label, xs, ys, colour=colour, radius=2.0 + 1.5 * place))
        best = points(runs, data)
        if (fit := scaling_fit.fit(best, resamples=0)) is not None:
            low, high = math.log(best[0][0]), math.log(best[-1][0])
            xs = [math.exp(low + (high - low) * k / 40) for k in range(41)]
            label = f"{data_name(data)}: fit"
            series.append(
                Series(label, xs, fit.best(xs).tolist(), line=True, dashed=True, colour=colour)
            )
    title = "Held-out loss against compute"
    return svg_plots.plot(series, title, "FLOPs", "nats per token", log_x=True)
