"""Plots of results as SVG text, without a plotting library; Markdown pages show them as images.

plot([Series("small", xs, ys), Series("fit", xs, fitted, line=True)], "loss", "FLOPs", "nats")
"""

import dataclasses
import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from ofa_jax.reports.curves import COLOURS

_WIDTH, _HEIGHT = 640, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 150, 34, 48


@dataclasses.dataclass(frozen=True)
class Series:
    """Points of one colour.

    Attributes:
      label: in the legend; empty for none.
      xs, ys: of the points.
      errors: half the length of each point's error bar; empty for none.
      line: whether a line connects the points, instead of a mark at each.
      dashed: whether the line is dashed.
      colour: index of the colour; that of the series' place when None.
      radius: of a mark, in pixels.
    """

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    errors: Sequence[float] = ()
    line: bool = False
    dashed: bool = False
    colour: int | None = None
    radius: float = 3.5


@dataclasses.dataclass(frozen=True)
class _Axis:
    """Maps values to pixels; logarithmic or linear."""

    low: float
    high: float
    first: float
    last: float
    logarithmic: bool

    def place(self, value: float) -> float:
        """Returns the pixel of a value."""
        low, high, value = (self._scaled(number) for number in (self.low, self.high, value))
        return self.first + (self.last - self.first) * (value - low) / (high - low)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value

    def ticks(self) -> list[float]:
        """Returns round values within the axis."""
        if self.logarithmic:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            few = math.log10(self.high / self.low) < 2
            found = [m * 10.0**p for p in powers for m in ((1, 2, 5) if few else (1,))]
        else:
            step = 10.0 ** math.floor(math.log10((self.high - self.low) / 4))
            step *= next(m for m in (1, 2, 5, 10) if (self.high - self.low) / (step * m) <= 6)
            first = math.ceil(self.low / step)
            found = [step * k for k in range(first, first + 20)]
        return [value for value in found if self.low <= value <= self.high]


def plot(
    series: Sequence[Series],
    title: str,
    x_title: str,
    y_title: str,
    log_x: bool = False,
    log_y: bool = False,
    x_names: Sequence[str] = (),
) -> str:
    """Returns an SVG image of some series in one coordinate system.

    Args:
      series: what is drawn.
      title: above the plot.
      x_title: below the horizontal axis.
      y_title: beside the vertical axis.
      log_x: whether the horizontal axis is logarithmic.
      log_y: whether the vertical axis is logarithmic.
      x_names: stand at 0, 1, ... of the horizontal axis, in place of numbers.

    Raises:
      ValueError: there is no point, or a logarithmic axis has a value that is not positive.
    """
    xs = [x for own in series for x in own.xs] + [float(k) for k in range(len(x_names))]
    ys = [y for own in series for y in own.ys]
    ys += [
        y + sign * error
        for own in series
        for y, error in zip(own.ys, own.errors, strict=False)
        for sign in (-1, 1)
        if not log_y or y - error > 0
    ]
    x_axis = _axis(xs, _LEFT, _WIDTH - _RIGHT, log_x)
    y_axis = _axis(ys, _HEIGHT - _BOTTOM, _TOP, log_y)
    parts = [
        *_frame(x_axis, y_axis, title, x_title, y_title, x_names),
        *(part for k, own in enumerate(series) for part in _draw(own, k, x_axis, y_axis)),
        *_legend(series),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif" font-size="12">\n'
        '<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _axis(values: Sequence[float], first: float, last: float, logarithmic: bool) -> _Axis:
    """Returns an axis that shows all values, with a margin."""
    if not values or (logarithmic and min(values) <= 0):
        raise ValueError("A plot needs points, and a logarithmic axis positive ones.")
    low, high = min(values), max(values)
    if logarithmic:
        margin = max((high / low) ** 0.06, 1.02)
        return _Axis(low / margin, high * margin, first, last, True)
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return _Axis(low - margin, high + margin, first, last, False)


def _text(x: float, y: float, text: str, anchor: str = "middle", extra: str = "") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#444"{extra}>'
        f"{escape(text)}</text>"
    )


def _line(x0: float, y0: float, x1: float, y1: float, style: str) -> str:
    return f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" {style}/>'


def _frame(
    x_axis: _Axis,
    y_axis: _Axis,
    title: str,
    x_title: str,
    y_title: str,
    x_names: Sequence[str],
) -> list[str]:
    """Returns grid, numbers and titles."""
    right, bottom, grid = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM, 'stroke="#ddd"'
    parts = []
    ticks = dict(enumerate(x_names)) or {value: f"{value:g}" for value in x_axis.ticks()}
    for value, name in ticks.items():
        x = x_axis.place(value)
        parts += [_line(x, _TOP, x, bottom, grid), _text(x, bottom + 16, name)]
    for value in y_axis.ticks():
        y = y_axis.place(value)
        parts += [_line(_LEFT, y, right, y, grid), _text(_LEFT - 6, y + 4, f"{value:g}", "end")]
    middle = (_TOP + bottom) / 2
    return [
        *parts,
        _text((_LEFT + right) / 2, 20, title, extra=' font-size="14"'),
        _text((_LEFT + right) / 2, _HEIGHT - 10, x_title),
        _text(16, middle, y_title, extra=f' transform="rotate(-90 16 {middle:.1f})"'),
    ]


def _colour(own: Series, number: int) -> str:
    return COLOURS[(number if own.colour is None else own.colour) % len(COLOURS)]


def _draw(own: Series, number: int, x_axis: _Axis, y_axis: _Axis) -> list[str]:
    """Returns the line or the marks of a series, and its error bars."""
    colour = _colour(own, number)
    points = [(x_axis.place(x), y_axis.place(y)) for x, y in zip(own.xs, own.ys, strict=True)]
    if own.line:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if own.dashed else ""
        return [f'<polyline points="{path}" fill="none" stroke="{colour}"{dash}/>']
    parts = [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{own.radius:g}" fill="{colour}"/>' for x, y in points
    ]
    for (x, _), y, error in zip(points, own.ys, own.errors, strict=False):
        low = y - error if not y_axis.logarithmic or y > error else y
        style = f'stroke="{colour}"'
        parts.append(_line(x, y_axis.place(low), x, y_axis.place(y + error), style))
    return parts


def _legend(series: Sequence[Series]) -> list[str]:
    """Returns the names of the series beside the plot."""
    parts, x = [], _WIDTH - _RIGHT + 12
    shown = [(number, own) for number, own in enumerate(series) if own.label]
    for place, (number, own) in enumerate(shown):
        y, colour = _TOP + 10 + 18 * place, _colour(own, number)
        dash = ' stroke-dasharray="4 3"' if own.dashed else ""
        parts.append(
            _line(x, y, x + 16, y, f'stroke="{colour}" stroke-width="2"{dash}')
            if own.line
            else f'<circle cx="{x + 8}" cy="{y}" r="{own.radius:g}" fill="{colour}"/>'
        )
        parts.append(_text(x + 22, y + 4, own.label, "start"))
    return parts
