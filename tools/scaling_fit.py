"""Fits loss = E + A C^-alpha to the best losses at each compute, with its uncertainty.

E is the loss that no compute of this kind brings down (Kaplan et al. 2020; Hoffmann et al. 2022,
equation 1, with compute in place of parameters and tokens). For a given alpha the fit is linear in
E and A; so alpha is found on a grid, which has no local minima and needs no first guess.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

_ALPHAS = np.geomspace(0.02, 3.0, 60)
_REFINEMENTS = 5
"""How often the grid of exponents is laid anew around the best one, four times as fine."""
LEAST_POINTS = 4
"""A curve of three numbers says nothing with fewer points."""

_Array = Float64[np.ndarray, "..."]


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """loss = floor + scale (C / unit)^-alpha.

    Attributes:
      floor: E, in nats per token.
      scale: A, the part of the loss at `unit` that compute brings down.
      alpha: the exponent.
      unit: the compute that C is measured in, FLOPs.
    """

    floor: float
    scale: float
    alpha: float
    unit: float

    def __call__(self, compute: Sequence[float] | _Array) -> _Array:
        """Returns the loss at some compute in FLOPs."""
        relative = np.asarray(compute, np.float64) / self.unit
        return self.floor + self.scale * relative**-self.alpha


@dataclasses.dataclass(frozen=True)
class Fit:
    """A power law and others that the same points may as well have.

    Attributes:
      best: the least-squares fit.
      resampled: fits to points whose residuals were drawn anew.
    """

    best: PowerLaw
    resampled: tuple[PowerLaw, ...]

    def interval(self, name: str, coverage: float = 0.95) -> tuple[float, float]:
        """Returns the interval of a field of the law by the bootstrap."""
        values = [getattr(law, name) for law in self.resampled]
        return _quantiles(values, coverage)

    def predict(self, compute: float, coverage: float = 0.95) -> tuple[float, float, float]:
        """Returns the loss at some compute, and its interval."""
        values = [float(law([compute])[0]) for law in self.resampled]
        return (float(self.best([compute])[0]), *_quantiles(values, coverage))


def _quantiles(values: Sequence[float], coverage: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - coverage) / 2, (1 + coverage) / 2])
    return float(low), float(high)


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns the (compute, loss) that no point of less compute is better than, by compute."""
    best: list[tuple[float, float]] = []
    for compute, loss in sorted(points):
        if not best or loss < best[-1][1]:
            if best and best[-1][0] == compute:
                best.pop()
            best.append((compute, loss))
    return best


def fit(points: Sequence[tuple[float, float]], seed: int = 0, resamples: int = 1000) -> Fit | None:
    """Fits a power law to (compute, loss); returns None for fewer than `LEAST_POINTS`.

    Args:
      points: with different compute; it and the losses are positive.
      seed: of the bootstrap.
      resamples: how many fits to resampled residuals are made.
    """
    if len(points) < LEAST_POINTS:
        return None
    compute, losses = np.array(sorted(points), np.float64).T
    unit = float(np.exp(np.log(compute).mean()))
    relative = compute / unit
    best = _least_squares(relative, losses[None], unit)[0]
    if not resamples:
        return Fit(best, ())
    fitted = best(compute)
    # A fit of three numbers makes residuals smaller than the errors they stand for.
    residuals = (losses - fitted) * np.sqrt(len(losses) / (len(losses) - 3))
    drawn = fitted + np.random.default_rng(seed).choice(residuals, (resamples, len(losses)))
    return Fit(best, tuple(_least_squares(relative, drawn, unit)))


def _least_squares(relative: _Array, losses: _Array, unit: float) -> list[PowerLaw]:
    """Returns the least-squares fit to each row of losses; floor and scale are not negative.

    Args:
      relative: compute in `unit`s [points].
      losses: [rows, points].
      unit: of the compute.
    """
    rows = np.arange(len(losses))
    logs = np.repeat(np.log(_ALPHAS)[None], len(losses), 0)
    for _ in range(_REFINEMENTS + 1):
        floor, scale, errors = _linear_fits(relative, losses, np.exp(logs))
        best = errors.argmin(1)
        chosen = [(x[rows, best]).tolist() for x in (floor, scale, np.exp(logs))]
        # The next grid lies between the neighbours of the best alpha.
        low = logs[rows, np.maximum(best - 1, 0)]
        high = logs[rows, np.minimum(best + 1, logs.shape[1] - 1)]
        logs = np.linspace(low, high, 9, axis=1)
    return [PowerLaw(*values, unit) for values in zip(*chosen, strict=True)]


def _linear_fits(relative: _Array, losses: _Array, alphas: _Array) -> tuple[_Array, _Array, _Array]:
    """Returns floor, scale and squared error [rows, alphas] for given exponents.

    Args:
      relative: compute [points].
      losses: [rows, points].
      alphas: of each row [rows, alphas].
    """
    powers = relative ** -alphas[..., None]
    targets = losses[:, None]
    centred = powers - powers.mean(-1, keepdims=True)
    scale = np.maximum((targets * centred).sum(-1) / (centred**2).sum(-1), 0.0)
    floor = targets.mean(-1) - scale * powers.mean(-1)
    through_zero = (targets * powers).sum(-1) / (powers**2).sum(-1)
    scale, floor = np.where(floor < 0, through_zero, scale), np.maximum(floor, 0.0)
    fitted = floor[..., None] + scale[..., None] * powers
    return floor, scale, ((targets - fitted) ** 2).sum(-1)
