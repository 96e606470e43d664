"""Predicts one cost of networks from their genes, and says how well.

A Gaussian process supplies the uncertainty, and the prediction unless cross-validation finds another model clearly
better. What it has learnt from fewer rows is where it goes on from: the warp of the cost and the model are chosen anew
when the rows have doubled, the process's hyperparameters when they have grown by a tenth.

Legend of shapes: N measured rows, Q rows to predict, S samples, F features.
"""

from __future__ import annotations

import numpy as np

from predictors.model import MODELS, Groups, Matrix, Model, clearly_best, load_model
from predictors.models import gaussian_process
from predictors.warp import OFFSETS, Warp

GAUSSIAN_PROCESS = "gaussian-process"
MEAN, CONSTANT = "mean", "constant"
"""What is predicted where there is too little to learn from, and where all costs are the same."""
FOLDS = 5
"""Parts of the cross-validation; with fewer rows the mean is predicted."""
_CHOOSE_GROWTH, _LEARN_GROWTH = 2.0, 1.1
_RIVALS_FROM, _RIVALS_ABOVE = 40, 0.3
"""Rows below which cross-validation is too coarse to choose a model by, and error below which there is no need to."""
_FEW_STEPS = 8


class ColumnPredictor:
    """One predicted column of a search.

    Args:
        groups_F: what every feature belongs to.
        choose: whether models compete; without, it is always the process.
        warp: whether the cost may be warped.

    Attributes:
        name: of the model in use, or `MEAN` or `CONSTANT`.
        relative_error: cross-validated root mean squared error as a share of the costs' standard deviation.
        rank_correlation: Kendall's tau of cross-validated predictions and costs.
    """

    def __init__(self, groups_F: Groups, seed: int, *, choose: bool = True, warp: bool = True) -> None:
        self._groups_F, self._seed = groups_F, seed
        self._rivals = tuple(name for name in MODELS.names() if choose and name != GAUSSIAN_PROCESS)
        self._offsets = OFFSETS if warp else OFFSETS[:1]
        self._chosen_at = self._learnt_at = 0
        self._offset: float | None = None
        self._learnt: tuple[Matrix, float] | None = None
        self._process: gaussian_process.GaussianProcess | None = None
        self._rival: Model | None = None
        self._constant = (0.0, 0.0)
        self.name, self.relative_error, self.rank_correlation = MEAN, 1.0, 0.0

    def fit(self, features_NF: Matrix, costs_N: Matrix, noise: float = 0.0) -> None:
        """Learn from measured rows, more at every call; `noise` is the standard error of a cost, 0 where unknown."""
        assert len(features_NF) == len(costs_N) > 0, "one cost per row of features"
        self._constant = float(costs_N.mean()), float(costs_N.std())
        self._costs_N = costs_N
        is_constant = np.ptp(costs_N) <= 1e-12 * np.abs(costs_N).max()
        if len(costs_N) < FOLDS or is_constant:
            self._process, self.name = None, MEAN if len(costs_N) < FOLDS else CONSTANT
            self.relative_error, self.rank_correlation = 1.0, 0.0
            return
        choosing = len(costs_N) >= _CHOOSE_GROWTH * self._chosen_at
        if choosing:
            self._chosen_at = len(costs_N)
            self._choose_warp(features_NF, costs_N)
        self._warp = Warp.of(costs_N, self._offset)
        targets_N = self._warp.apply(costs_N)
        if choosing or len(costs_N) >= _LEARN_GROWTH * self._learnt_at:
            self._learnt_at = len(costs_N)
            self._learnt = gaussian_process.learn(features_NF, targets_N, self._groups_F, self._learnt, _FEW_STEPS)
        assert self._learnt is not None, "the first call chooses"
        self._process = gaussian_process.condition(self._learnt, features_NF, targets_N, self._groups_F)
        self._noise = min(noise**2 * float((self._warp.slope(costs_N) ** 2).mean()), self._process.noise)
        self._targets_N = targets_N
        self._judge(features_NF, targets_N, costs_N, choosing)

    def mean(self, features_QF: Matrix) -> Matrix:
        """Predicted costs [Q], of no rows as well."""
        if self._process is None or not len(features_QF):
            return np.full(len(features_QF), self._constant[0])
        return self._warp.invert((self._rival or self._process).predict(features_QF))

    def shifted(self, predicted_Q: Matrix, errors: float) -> Matrix:
        """Predicted costs that many cross-validated errors higher, or lower if negative."""
        if self._process is None:
            return predicted_Q + errors * self._constant[1]
        return self._warp.invert(self._warp.apply(predicted_Q) + errors * self._error)

    def samples(self, features_QF: Matrix, normals_SQ: Matrix) -> Matrix:
        """Costs [S, Q] the rows may have together, one per row of standard normal numbers.

        What is peculiar to a network belongs to its cost and varies; what is known as noise of measuring does not.
        """
        if self._process is None:
            return self._constant[0] + self._constant[1] * normals_SQ
        mean_Q, covariance_QQ = self._process.joint(features_QF)
        if self._rival is not None:
            mean_Q = self._rival.predict(features_QF)
        peculiar = max(self._process.noise - self._noise, 1e-6)
        lower_QQ = np.linalg.cholesky(covariance_QQ + peculiar * np.eye(len(mean_Q)))
        return self._warp.invert(mean_Q + normals_SQ @ lower_QQ.T)

    def smoothed(self) -> Matrix:
        """The measured costs [N] without the noise of measuring, as far as it is known."""
        if self._process is None or not self._noise:
            return self._costs_N
        return self._warp.invert(self._targets_N - self._noise * self._process.alpha_N)

    def _choose_warp(self, features_NF: Matrix, costs_N: Matrix) -> None:
        """The warp under which the process explains the costs best, all as densities of the costs themselves."""
        best = -np.inf
        for offset in self._offsets:
            warp = Warp.of(costs_N, offset)
            learnt = gaussian_process.learn(features_NF, warp.apply(costs_N), self._groups_F, self._learnt)
            density = learnt[1] / gaussian_process.learnt_rows(len(costs_N)) + np.log(warp.slope(costs_N)).mean()
            if density > best:
                best, self._offset, chosen = density, offset, learnt
        self._learnt = chosen

    def _judge(self, features_NF: Matrix, targets_N: Matrix, costs_N: Matrix, choosing: bool) -> None:
        """Cross-validate; where it is time, let the other models compete."""
        assert self._process is not None
        folds_N = np.random.default_rng(self._seed).permutation(len(targets_N)) % FOLDS
        predicted_N = self._process.left_out(targets_N, folds_N)
        if choosing:
            self.name = GAUSSIAN_PROCESS
        has_room = float(((predicted_N - targets_N) ** 2).mean()) > _RIVALS_ABOVE**2
        if choosing and has_room and len(targets_N) >= _RIVALS_FROM:
            self.name = self._clearly_best(features_NF, targets_N, folds_N, predicted_N)
        self._rival = None
        if self.name != GAUSSIAN_PROCESS:
            self._rival = load_model(self.name)(features_NF, targets_N, self._groups_F, self._seed)
            predicted_N = self._left_out(self.name, features_NF, targets_N, folds_N)
        from scipy.stats import kendalltau

        self._error = float(np.sqrt(((predicted_N - targets_N) ** 2).mean()))
        errors_N = self._warp.invert(predicted_N) - costs_N
        self.relative_error = float(np.sqrt((errors_N**2).mean()) / costs_N.std())
        self.rank_correlation = float(np.nan_to_num(kendalltau(predicted_N, targets_N)[0]))

    def _clearly_best(self, features_NF: Matrix, targets_N: Matrix, folds_N: Groups, process_N: Matrix) -> str:
        """The rival whose squared errors are lowest, if lower than the process's by a standard error; else that."""
        squares = {GAUSSIAN_PROCESS: (process_N - targets_N) ** 2}
        for rival in self._rivals:
            squares[rival] = (self._left_out(rival, features_NF, targets_N, folds_N) - targets_N) ** 2
        return clearly_best(squares, GAUSSIAN_PROCESS)

    def _left_out(self, name: str, features_NF: Matrix, targets_N: Matrix, folds_N: Groups) -> Matrix:
        predicted_N = np.empty_like(targets_N)
        for fold in range(FOLDS):
            kept_N = folds_N != fold
            model = load_model(name)(features_NF[kept_N], targets_N[kept_N], self._groups_F, self._seed)
            predicted_N[~kept_N] = model.predict(features_NF[~kept_N])
        return predicted_N
