"""Writes what people read of the ablations: results/ablations.md, its plot, and docs/claims.md."""

import pathlib
from collections.abc import Sequence
from xml.sax.saxutils import escape

from ofa_jax.utils import files

from . import ablation_results as results
from .ablation_results import CLAIMS, COMPUTE, FULL, LEFT_OUT, METRICS, STEPS, Run

BEGIN, END = "<!-- tools.ablations -->", "<!-- end -->"
_TITLES = {STEPS: "Equal steps", COMPUTE: "Equal compute"}
_ABOUT = {
    STEPS: "Every run has as many steps, and each remaining objective as many examples. Leaving an "
    "objective out saves its compute.",
    COMPUTE: "Every run has the operations of the full model's: what an objective costs goes to "
    "the others. The full model is that of the first table.",
}


def page(runs: Sequence[Run], command: str) -> str:
    """Returns results/ablations.md."""
    parts = ["# What each pretraining objective is worth downstream", _about(runs, command)]
    if any(run["downstream"] for run in runs):
        parts.append("![Differences to the full model](ablations.svg)")
    for equal in (STEPS, COMPUTE):
        parts += [f"## {_TITLES[equal]}", _ABOUT[equal], values_table(runs, equal)]
    parts += [
        "## The paper's claims",
        "By the difference of means, paired by seed, and its 95 % confidence interval (Student's "
        "t): a difference whose interval includes 0 is within noise. Where the paper says that an "
        "objective hardly matters, such a difference agrees. There are many comparisons: one in "
        "twenty is outside of its interval by chance.",
        claims_table(runs),
    ]
    if table := pretraining_table(runs):
        parts += [
            "## The full model on its own objectives",
            "Validation after pretraining, means over seeds; the baseline is the frequencies of "
            "tokens, which do not see the input.",
            table,
        ]
    return "\n\n".join(parts) + "\n"


def _about(runs: Sequence[Run], command: str) -> str:
    """Returns how the runs were made."""
    if not runs:
        return "Nothing was measured yet."
    seeds = sorted({run["seed"] for run in runs})
    commits = sorted({str(run.get("commit", "unknown")) for run in runs})
    minutes = sum(run.get("minutes") or 0 for run in runs)
    finished = sum(all(task in run["downstream"] for task in METRICS) for run in runs)
    steps = sorted({run["steps"] for run in runs if run["name"] == FULL})
    return (
        f"- Command: `{command}`\n"
        f"- {len(runs)} pretraining runs, {finished} of them fine-tuned on all "
        f"{len(METRICS)} tasks; seeds {', '.join(map(str, seeds))}; "
        f"{', '.join(map(str, steps)) or 'no'} steps of the full model\n"
        f"- {minutes:.0f} minutes of training; commit {', '.join(commits)}\n"
        "- Every number is from generated predictions on the test split, as mean ± standard error "
        "over seeds, in per cent unless it is CIDEr-D or FID. `docs/claims.md` says what can be "
        "concluded."
    )


def values_table(runs: Sequence[Run], equal: str) -> str:
    """Returns a table with a row per metric: the full model, and the differences of the others."""
    others = [name for name in LEFT_OUT if name != FULL]
    lines = [
        f"| | {FULL.replace('_', ' ')} | "
        + " | ".join(name.replace("_", " ") for name in others)
        + " |",
        "| --- " * (len(others) + 2) + "|",
    ]
    for task, metrics in METRICS.items():
        for metric in metrics:
            values = results.values_of(runs, FULL, equal, task, metric)
            own = results.shown_estimate(
                metric, results.Estimate.of([values[seed] for seed in sorted(values)])
            )
            cells = [
                results.shown_estimate(
                    metric, results.difference_of(runs, name, equal, task, metric), signed=True
                )
                for name in others
            ]
            what = f"{task.replace('_', ' ')}: {metric.replace('_', ' ')}"
            lines.append(f"| {what} | {own} | {' | '.join(cells)} |")
    return "\n".join(lines)


def claims_table(runs: Sequence[Run]) -> str:
    """Returns a table with a row per claim of the paper, and what was measured."""
    lines = [
        "| without | task | the paper: it is then | metric | equal steps | | equal compute | |",
        "| --- " * 8 + "|",
    ]
    for claim in CLAIMS:
        metric = METRICS[claim.task][0]
        cells = []
        for equal in (STEPS, COMPUTE):
            difference = results.difference_of(runs, claim.name, equal, claim.task, metric)
            verdict = results.verdict_of(runs, claim, equal)
            cells += [results.shown_estimate(metric, difference, signed=True), verdict]
        without = ", ".join(LEFT_OUT[claim.name]).replace("_", " ")
        lines.append(
            f"| {without} | {claim.task.replace('_', ' ')} | {claim.without} | "
            f"{metric.replace('_', ' ')} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def pretraining_table(runs: Sequence[Run]) -> str:
    """Returns the validation of the full model; "" where there is none."""
    found: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        if run["name"] == FULL:
            for task, values in run.get("pretraining", {}).items():
                for name, value in values.items():
                    found.setdefault(task, {}).setdefault(name, []).append(float(value))
    if not found:
        return ""
    names = ("loss", "unigram_loss", "token_accuracy", "majority_accuracy")
    lines = [
        "| objective | loss, nats | baseline | tokens right | baseline |",
        "| --- " * 5 + "|",
    ]
    for task, values in found.items():
        means = [
            sum(values[name]) / len(values[name]) if name in values else None for name in names
        ]
        cells = [
            "-" if mean is None else f"{mean:.3f}" if "loss" in name else f"{100 * mean:.1f} %"
            for name, mean in zip(names, means, strict=True)
        ]
        lines.append(f"| {task.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def fill_claims(path: pathlib.Path, runs: Sequence[Run]) -> None:
    """Writes the table of claims between the marks in a page.

    Raises:
      ValueError: the page has no marks.
    """
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} has no {BEGIN} and {END} around its table: put them back.")
    filled = f"{before}{BEGIN}\n\n{claims_table(runs)}\n\n{END}{after}"
    if filled != text:
        files.write_text(path, filled)


# ----------------------------------------------------------------------------------------- the plot

_GREY, _BLUE, _ORANGE = "#808080", "#1f77b4", "#d95f02"
_COLOURS = {STEPS: _BLUE, COMPUTE: _ORANGE}
_PANEL, _ROW, _LABEL, _TOP = 300, 22, 150, 56


def plot(runs: Sequence[Run]) -> str:
    """Returns an SVG: of each task the differences to the full model, with 95 % intervals."""
    others = [name for name in LEFT_OUT if name != FULL]
    height_of_panel = _TOP + _ROW * len(others) + 30
    shapes = []
    for number, (task, metrics) in enumerate(METRICS.items()):
        x, y = (_LABEL + _PANEL) * (number % 2), 40 + height_of_panel * (number // 2)
        shapes += _panel(runs, others, task, metrics[0], x, y)
    for number, (equal, colour) in enumerate(_COLOURS.items()):
        shapes += [
            f'<circle cx="{20 + 140 * number}" cy="20" r="4" fill="{colour}"/>',
            _text(30 + 140 * number, 24, _TITLES[equal].lower(), "start"),
        ]
    width, height = 2 * (_LABEL + _PANEL) + 20, 40 + 3 * height_of_panel
    body = "\n".join(shapes)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">\n{body}\n</svg>\n'
    )


def _panel(
    runs: Sequence[Run], others: Sequence[str], task: str, metric: str, x: int, y: int
) -> list[str]:
    """Returns the shapes of one task, whose top left corner is at (x, y)."""
    found = {
        (name, equal): difference
        for name in others
        for equal in (STEPS, COMPUTE)
        if (difference := results.difference_of(runs, name, equal, task, metric)) is not None
    }
    reach = max(
        (abs(one.mean) + (one.half_interval if one.count > 1 else 0) for one in found.values()),
        default=0.0,
    )
    reach = reach or 0.01
    left, bottom = x + _LABEL, y + _TOP + _ROW * len(others)
    middle = left + _PANEL / 2

    def place(value: float) -> float:
        return middle + value / reach * (_PANEL / 2 - 10)

    title = f"{task.replace('_', ' ')}: {metric.replace('_', ' ')}, difference to the full model"
    shapes = [
        _text(left + _PANEL / 2, y + 20, title, "middle"),
        _line(middle, y + _TOP - 16, middle, bottom, _GREY),
        *(
            _text(place(value), bottom + 16, results.shown(metric, value, signed=True), "middle")
            for value in (-reach, 0.0, reach)
        ),
    ]
    for number, name in enumerate(others):
        row = y + _TOP + _ROW * number
        shapes.append(_text(left - 8, row + 4, name.replace("_", " "), "end"))
        for shift, equal in ((-4, STEPS), (4, COMPUTE)):
            if (one := found.get((name, equal))) is None:
                continue
            colour, level = _COLOURS[equal], row + shift
            if one.count > 1:
                ends = (place(one.mean - one.half_interval), place(one.mean + one.half_interval))
                shapes.append(_line(ends[0], level, ends[1], level, colour))
            shapes.append(
                f'<circle cx="{place(one.mean):.1f}" cy="{level}" r="4" fill="{colour}"/>'
            )
    return shapes


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{_GREY}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _line(x0: float, y0: float, x1: float, y1: float, colour: str) -> str:
    return (
        f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" stroke="{colour}" '
        'stroke-width="1.6"/>'
    )
