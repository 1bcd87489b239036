"""Interactive figures of scalars over steps, for one run or several beside each other."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from plotly import graph_objects, offline

from ofa_jax.reports.run_files import RunFiles, Scalars

COLOURS = ("#1f77b4", "#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#66a61e", "#a6761d", "#666666")
_MAX_POINTS = 2000


@dataclasses.dataclass(frozen=True)
class Curve:
    """What a figure draws of each run.

    Attributes:
      tag: of the scalar; figures leave it out where a run does not have it.
      label: in the legend; empty to show the run's name alone.
      dash: of the line, as Plotly names it.
      markers: whether each value is marked.
    """

    tag: str
    label: str = ""
    dash: str = "solid"
    markers: bool = False


@dataclasses.dataclass(frozen=True)
class Chart:
    """A figure of some curves.

    Attributes:
      title: above the figure.
      unit: of the vertical axis.
      curves: what is drawn of each run.
      logarithmic: whether the vertical axis is logarithmic.
    """

    title: str
    unit: str
    curves: Sequence[Curve]
    logarithmic: bool = False


def objective_charts(runs: Sequence[RunFiles]) -> Iterator[Chart]:
    """Yields a chart of the loss of each objective: training, validation and its baseline."""
    for task in _tasks(runs):
        yield Chart(
            task.replace("_", " "),
            "nats per token",
            (
                Curve(f"train/loss/{task}", "training"),
                Curve(f"validation/loss/{task}", "validation", markers=True),
                Curve(f"validation/unigram_loss/{task}", "unigram baseline", "dot"),
            ),
        )


def accuracy_charts(runs: Sequence[RunFiles]) -> Iterator[Chart]:
    """Yields a chart of the token accuracy of each objective and of the majority baseline."""
    for task in _tasks(runs):
        yield Chart(
            task.replace("_", " "),
            "share of the tokens",
            (
                Curve(f"validation/token_accuracy/{task}", "validation", markers=True),
                Curve(f"validation/majority_accuracy/{task}", "majority baseline", "dot"),
            ),
        )


def training_charts(runs: Sequence[RunFiles]) -> Iterator[Chart]:
    """Yields the charts of the training itself."""
    yield Chart("Loss", "nats per token", (Curve("train/loss"),))
    yield Chart("Learning rate", "", (Curve("train/learning_rate"),))
    yield Chart("Gradient norm", "", (Curve("train/gradient_norm"),), logarithmic=True)
    yield Chart("Parameter norm", "", (Curve("train/parameter_norm"),))
    yield Chart("Throughput", "examples per second", (Curve("train/examples_per_second"),))
    yield Chart("Waiting for data", "share of the time", (Curve("train/data_wait"),))
    tags = _tags(runs, "train/time/")
    yield Chart(
        "Where the time went",
        "share of the time since the start",
        (
            Curve("train/goodput", "steps"),
            *(Curve(tag, tag.rsplit("/", 1)[1].replace("_", " "), "dash") for tag in tags),
        ),
    )
    tags = _tags(runs, "train/padding/")
    yield Chart(
        "Padding",
        "share of the tokens",
        tuple(Curve(tag, tag.removeprefix("train/padding/")) for tag in tags),
    )
    yield Chart(
        "Skipped",
        "number so far",
        (Curve("train/skipped_records", "records"), Curve("train/skipped_steps", "steps", "dash")),
    )


def figures(runs: Sequence[RunFiles], charts: Iterator[Chart]) -> list[str]:
    """Returns the HTML of each chart that has values; it needs `plotly_script` in its page."""
    made = (_figure(runs, chart) for chart in charts)
    return [figure for figure in made if figure is not None]


def plotly_script() -> str:
    """Returns Plotly's JavaScript, for a page that opens without a network."""
    return offline.get_plotlyjs()


def _figure(runs: Sequence[RunFiles], chart: Chart) -> str | None:
    """Returns the HTML of a chart; None if no run has one of its scalars."""
    traces = []
    for number, run in enumerate(runs):
        for place, curve in enumerate(chart.curves):
            if (scalars := run.scalars.get(curve.tag)) is None:
                continue
            # One run: a colour for each curve. Several: a colour for each run.
            colour = COLOURS[(number if len(runs) > 1 else place) % len(COLOURS)]
            names = ([run.name] if len(runs) > 1 else []) + ([curve.label] if curve.label else [])
            steps, values = _thinned(scalars)
            traces.append(
                graph_objects.Scatter(
                    x=steps,
                    y=values,
                    name=": ".join(names) or chart.title,
                    mode="lines+markers" if curve.markers else "lines",
                    line={"color": colour, "dash": curve.dash, "width": 1.8},
                )
            )
    if not traces:
        return None
    return as_html(
        graph_objects.Figure(traces),
        layout(chart.title, chart.unit, "step", chart.logarithmic)
        | {"showlegend": len(traces) > 1},
    )


def as_html(figure: graph_objects.Figure, layout: Mapping[str, Any]) -> str:
    """Returns the HTML of a figure with a layout; it needs `plotly_script` in its page."""
    figure.update_layout(**layout)
    return figure.to_html(
        full_html=False, include_plotlyjs=False, config={"displaylogo": False, "responsive": True}
    )


def layout(title: str, y_title: str, x_title: str, logarithmic: bool = False) -> dict[str, Any]:
    """Returns the layout that all figures share; it fits the light and the dark page."""
    grid = {"gridcolor": "rgba(128,128,128,0.2)", "zerolinecolor": "rgba(128,128,128,0.3)"}
    return {
        "title": {"text": title, "font": {"size": 15}},
        "xaxis": {"title": {"text": x_title}, **grid},
        "yaxis": {
            "title": {"text": y_title},
            "type": "log" if logarithmic else "linear",
            **grid,
        },
        "margin": {"l": 60, "r": 15, "t": 40, "b": 40},
        "height": 300,
        "legend": {"orientation": "h", "y": -0.25},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "#808080"},
    }


def _thinned(scalars: Scalars) -> tuple[list[int], list[float | None]]:
    """Returns at most some thousand points, evenly chosen; values that are not finite as gaps."""
    count = len(scalars.steps)
    chosen = np.unique(np.linspace(0, count - 1, min(count, _MAX_POINTS)).round().astype(int))
    values = scalars.values[chosen]
    return (
        scalars.steps[chosen].tolist(),
        [float(value) if np.isfinite(value) else None for value in values],
    )


def _tags(runs: Sequence[RunFiles], prefix: str) -> list[str]:
    """Returns the tags of all runs that begin with a prefix."""
    found = dict.fromkeys(tag for run in runs for tag in run.scalars if tag.startswith(prefix))
    return sorted(found)


def _tasks(runs: Sequence[RunFiles]) -> list[str]:
    """Returns the tasks with a loss, in training or validation."""
    tags = [*_tags(runs, "train/loss/"), *_tags(runs, "validation/loss/")]
    return sorted({tag.split("/", 2)[2] for tag in tags})
