"""Chooses the latency model that cross-validates best, and says how far off it may be.

Intervals are conformal: of the relative errors of networks left out of the fit, the quantile that a further network,
drawn like those, exceeds with at most the stated probability (Vovk et al., Algorithmic Learning in a Random World,
2005; with left-out residuals, Barber et al., Annals of Statistics 2021).

Legend of shapes: N measured networks, Q networks to predict, T terms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from predictors.latency_model import LATENCY_MODELS, LatencyModel, load_latency_model
from predictors.model import Groups, Matrix, clearly_best
from predictors.predictor import COVERAGE

FOLDS = 10
FIRST = "non-negative"
"""The model that a rival must beat by a standard error; it needs the fewest rows."""
_RIVALS_FROM = 20
"""Rows below which cross-validation is too coarse to choose by."""


@dataclass(frozen=True, kw_only=True)
class LatencyRegression:
    """A fitted model and its errors on networks it was not fitted on. Rows of terms in, seconds out.

    Attributes:
        name: of the model.
        errors_N: ``|log(measured / predicted)|`` of every measured network, left out in its fold, ascending.
    """

    name: str
    model: LatencyModel
    errors_N: Matrix = field(repr=False)

    def predict(self, terms_QT: Matrix) -> Matrix:
        """Predicted seconds [Q]."""
        return self.model.predict(terms_QT)

    def bounds(self, terms_QT: Matrix, coverage: float = COVERAGE) -> tuple[Matrix, Matrix]:
        """Lower and upper seconds [Q] that hold the latency of a further network with about that probability.

        Errors come from folds and also chose the model, so that no guarantee is left: measured were 88 to 91 of 100.
        """
        factor = math.exp(conformal_quantile(self.errors_N, coverage))
        seconds_Q = self.predict(terms_QT)
        return seconds_Q / factor, seconds_Q * factor

    @property
    def error(self) -> float:
        """Mean relative error of left-out networks."""
        return float(np.expm1(self.errors_N).mean())


def conformal_quantile(errors_N: Matrix, coverage: float) -> float:
    """The error, of ascending ones, that the next exceeds with probability ``1 - coverage`` at most; may be infinite.

    Raises:
        ValueError: the coverage is not a probability.
    """
    if not 0 < coverage < 1:
        raise ValueError(f"a coverage lies between 0 and 1, got {coverage}")
    rank = math.ceil((len(errors_N) + 1) * coverage)
    return float(errors_N[rank - 1]) if rank <= len(errors_N) else math.inf


def choose_latency_model(
    terms_NT: Matrix, seconds_N: Matrix, seed: int = 0, names: Sequence[str] = ()
) -> LatencyRegression:
    """Fit the model whose left-out relative errors are smallest; the simplest one unless another is clearly better.

    Args:
        terms_NT: see `predictors.latency_model`.
        seconds_N: measured.
        names: models that compete; by default all.

    Raises:
        ValueError: fewer than three networks, or latencies or terms that are not what they must be.
    """
    check_rows(terms_NT, seconds_N)
    if len(seconds_N) < 3:
        raise ValueError(f"at least 3 networks are needed, so that one can be left out; got {len(seconds_N)}")
    names = tuple(names) or LATENCY_MODELS.names()
    if len(seconds_N) < _RIVALS_FROM and FIRST in names:
        names = (FIRST,)
    folds_N = np.random.default_rng(seed).permutation(len(seconds_N)) % min(FOLDS, len(seconds_N))
    errors = {name: _left_out_errors(name, terms_NT, seconds_N, folds_N, seed) for name in names}
    chosen = clearly_best(errors, FIRST if FIRST in names else names[0])
    model = load_latency_model(chosen)(terms_NT, seconds_N, seed)
    return LatencyRegression(name=chosen, model=model, errors_N=np.sort(errors[chosen]))


def check_rows(terms_NT: Matrix, seconds_N: Matrix) -> None:
    """Refuse what no latency model can learn from, with a ValueError that says why."""
    if len(terms_NT) != len(seconds_N) or len(seconds_N) < 2:
        raise ValueError(f"at least 2 networks with one latency each are needed, got {len(seconds_N)}; measure more")
    if not (np.isfinite(seconds_N).all() and (seconds_N > 0).all()):
        worst = seconds_N[~(np.isfinite(seconds_N) & (seconds_N > 0))][0]
        raise ValueError(f"latencies must be finite and positive, got {worst}; remove that row")
    if not (np.isfinite(terms_NT).all() and (terms_NT >= 0).all()):
        raise ValueError("terms must be finite and >= 0; see predictors/latency_model.py")


def _left_out_errors(name: str, terms_NT: Matrix, seconds_N: Matrix, folds_N: Groups, seed: int) -> Matrix:
    fit, predicted_N = load_latency_model(name), np.empty_like(seconds_N)
    for fold in range(int(folds_N.max()) + 1):
        kept_N = folds_N != fold
        predicted_N[~kept_N] = fit(terms_NT[kept_N], seconds_N[kept_N], seed).predict(terms_NT[~kept_N])
    return np.abs(np.log(seconds_N / predicted_N))
