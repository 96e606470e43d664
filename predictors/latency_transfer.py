"""Predicts latencies on a new device from a handful of measurements and another device's table.

What is known of the source enters in three ways: its latencies say which networks tell most about the terms (the
design), its weights per term are what the new ones are drawn towards, and its prediction is one more term. How much it
is trusted is chosen by leaving out single measurements.

Legend of shapes: P networks that may be measured, M measured on the new device, Q to predict, T terms.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from predictors.latency_choice import LatencyRegression, check_rows
from predictors.latency_model import LatencyModel
from predictors.latency_models.non_negative import NonNegative, fit_towards
from predictors.model import Groups, Matrix

_STRENGTHS = (100.0, 10.0, 1.0, 1e-1, 1e-2, 1e-3)
"""Of the prior, in measurements per term, most trusting first."""
_LEAST_LATENCY_SHARE = 0.25
"""Of the median: what is faster on the source is designed for as if it were not, or degenerate networks would lead."""
_DESIGN_RIDGE = 1e-2


@dataclass(frozen=True)
class Transferred:
    """A sum of terms and of the source's prediction, with weights of the new device."""

    source: LatencyModel
    is_term: bool
    line: NonNegative

    def predict(self, terms_QT: Matrix) -> Matrix:
        """Predicted seconds [Q] on the new device."""
        return self.line.predict(_extended(self.source, terms_QT) if self.is_term else terms_QT)


def choose_networks(terms_PT: Matrix, source_P: Matrix, count: int) -> Groups:
    """Indices [count] of the networks to measure on the new device, those that tell most about its weights first.

    Greedily maximises the determinant of the information matrix of the relative errors (D-optimal design; Fedorov,
    Theory of Optimal Experiments, 1972).

    Args:
        source_P: seconds on the source, measured or predicted.
    """
    if not 2 <= count <= len(terms_PT):
        raise ValueError(f"2 to {len(terms_PT)} of these networks can be measured, got {count}")
    rows_PT = terms_PT / np.maximum(source_P, _LEAST_LATENCY_SHARE * np.median(source_P))[:, None]
    size_T = np.sqrt((rows_PT**2).mean(axis=0))
    rows_PT = rows_PT / np.where(size_T > 0, size_T, 1.0)
    inverse_TT = np.eye(rows_PT.shape[1]) / _DESIGN_RIDGE
    chosen: list[int] = []
    for _ in range(count):
        gain_P = ((rows_PT @ inverse_TT) * rows_PT).sum(axis=1)
        gain_P[chosen] = -1.0
        best = int(gain_P.argmax())
        chosen.append(best)
        moved_T = inverse_TT @ rows_PT[best]
        inverse_TT = inverse_TT - np.outer(moved_T, moved_T) / (1 + rows_PT[best] @ moved_T)
    return np.array(chosen)


def transfer(source: LatencyModel, prior: NonNegative, terms_MT: Matrix, seconds_M: Matrix) -> LatencyRegression:
    """Fit the new device with the trust in the source that predicts left-out measurements best.

    Args:
        source: predicts seconds on the source from terms.
        prior: seconds per unit of every term on the source.
        seconds_M: on the new device.

    Raises:
        ValueError: fewer than two measurements, or impossible ones.
    """
    check_rows(terms_MT, seconds_M)
    candidates = [_Candidate(source, prior, *each) for each in product((False, True), _STRENGTHS)]
    errors = [candidate.left_out(terms_MT, seconds_M) for candidate in candidates]
    errors_M, chosen = min(zip(errors, candidates, strict=True), key=lambda pair: float(pair[0].mean()))
    return LatencyRegression(name=chosen.name, model=chosen.fit(terms_MT, seconds_M), errors_N=np.sort(errors_M))


@dataclass(frozen=True)
class _Candidate:
    source: LatencyModel
    prior: NonNegative
    is_term: bool
    strength: float

    @property
    def name(self) -> str:
        return f"transfer-{self.strength:g}" + ("-with-source" if self.is_term else "")

    def fit(self, terms_MT: Matrix, seconds_M: Matrix) -> Transferred:
        """The prior is scaled to the new device first, so that only the proportions of the source count."""
        scale = float(np.median(seconds_M / self.source.predict(terms_MT)))
        prior_T = scale * self.prior.weights_T
        if self.is_term:
            terms_MT = _extended(self.source, terms_MT)
            prior_T = np.append(prior_T / 2, scale / 2)
        line = fit_towards(terms_MT, seconds_M, prior_T, self.strength)
        return Transferred(self.source, self.is_term, line)

    def left_out(self, terms_MT: Matrix, seconds_M: Matrix) -> Matrix:
        """``|log(measured / predicted)|`` [M] of every measurement, predicted from the others."""
        errors = []
        for i in range(len(seconds_M)):
            kept_M = np.arange(len(seconds_M)) != i
            predicted = self.fit(terms_MT[kept_M], seconds_M[kept_M]).predict(terms_MT[i : i + 1])[0]
            errors.append(abs(float(np.log(seconds_M[i] / predicted))))
        return np.array(errors)


def _extended(source: LatencyModel, terms_QT: Matrix) -> Matrix:
    return np.column_stack([terms_QT, source.predict(terms_QT)])
