"""What a search believes about networks it has not measured: exact costs, known ones, predicted ones, and failures.

Legend of shapes: N measured networks, P candidates, S samples, C columns of a cost row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from nas.algorithm import ColumnFit, Costs, SearchProblem
from nas.candidates import Pool, fittest
from predictors.column_predictor import ColumnPredictor
from studies.records import Genotype
from supernets.genes import GeneTable

TRUSTED_CORRELATION = 0.3
"""Rank correlation from which on proposals follow a prediction."""

_MOST_ROWS = 600
"""Rows predictors learn from: beyond, half are the best networks and half are spread over all of them."""
_LEAST_CHANCE = 0.05

Mask = NDArray[np.bool_]
Matrix = NDArray[np.float64]


class Beliefs:
    """One predictor per column that is not known exactly.

    Args:
        known: costs from elsewhere, NaN where unknown; taken as they are.
        related: costs of other circumstances, NaN where unknown; one more feature of what predicts the same column.
        choose: whether regressors compete for every column, instead of the Gaussian process alone.
        warp: whether costs are warped before they are predicted.
    """

    def __init__(
        self,
        problem: SearchProblem,
        table: GeneTable,
        known: Mapping[Genotype, tuple[float, ...]],
        related: Mapping[Genotype, tuple[float, ...]] | None = None,
        *,
        seed: int,
        choose: bool,
        warp: bool,
    ) -> None:
        self._problem, self._table = problem, table
        self._known = {genotype: np.array(row, dtype=np.float64) for genotype, row in known.items()}
        self._noise = problem.noise or (0.0,) * len(problem.columns)
        predicted = [column for column, exact in enumerate(problem.exact_columns) if not exact]
        self._related = {
            column: found for column in predicted if (found := _standardised(related or {}, column)) is not None
        }
        self._predictors = {
            column: ColumnPredictor(
                self._groups_with_related() if column in self._related else table.groups_F,
                seed,
                choose=choose,
                warp=warp,
            )
            for column in predicted
        }
        self._chance = ColumnPredictor(table.groups_F, seed, choose=False, warp=False)
        self._settled: dict[Genotype, Costs] = {}
        self._has_failures = False

    def learn(self, measured: Mapping[Genotype, Costs]) -> None:
        """Learn from every measured network; a row that is not finite is a failure."""
        finite = {genotype: row for genotype, row in measured.items() if np.isfinite(row).all()}
        genotypes, costs_NC = self._informative({**self._known, **finite})
        self._settled = dict(finite)
        settled_NC = costs_NC.copy()
        features_NF = self._table.features(self._table.matrix(genotypes))
        for column, predictor in self._predictors.items():
            present_N = np.isfinite(costs_NC[:, column])
            if present_N.any():
                rows_NF = self._informed(column, features_NF, genotypes)
                predictor.fit(rows_NF[present_N], costs_NC[present_N, column], self._noise[column])
                settled_NC[present_N, column] = predictor.smoothed()
        self._settled.update((g, row) for g, row in zip(genotypes, settled_NC, strict=True) if g in finite)
        self._has_failures = 0 < len(finite) < len(measured)
        if self._has_failures:
            worked_N = np.array([genotype in finite for genotype in measured], dtype=np.float64)
            self._chance.fit(self._table.features(self._table.matrix(list(measured))), worked_N)

    @property
    def settled(self) -> Mapping[Genotype, Costs]:
        """What was measured and did not fail, without the noise of measuring as far as that is known."""
        return self._settled

    def fits(self) -> dict[str, ColumnFit]:
        """How well every predicted column is predicted."""
        return {
            self._problem.columns[column].key: ColumnFit(
                predictor=predictor.name,
                relative_error=predictor.relative_error,
                rank_correlation=predictor.rank_correlation,
                trusted=predictor.rank_correlation >= TRUSTED_CORRELATION,
            )
            for column, predictor in self._predictors.items()
        }

    def predict(self, pool: Pool) -> Costs:
        """Expected cost rows [P, C]."""
        costs_PC = pool.exact_PM.copy()
        for column, predictor in self._predictors.items():
            costs_PC[:, column] = predictor.mean(self._informed(column, pool.features_PF, pool.genotypes))
        return self._with_known(pool, costs_PC)

    def hopeful(self, costs_PC: Costs, errors: float) -> Costs:
        """Predicted cost rows, better by so many cross-validated errors."""
        better_PC = costs_PC.copy()
        for column, predictor in self._predictors.items():
            better_PC[:, column] = predictor.shifted(costs_PC[:, column], -errors)
        return better_PC

    def sample(self, pool: Pool, count: int, rng: np.random.Generator) -> tuple[Costs, Mask]:
        """What the candidates may cost together ``[S, P, C]``, and whether each works and keeps the limits ``[S, P]``.

        Samples come in mirrored pairs, so that their mean is the prediction where costs are not warped.
        """
        costs_SPC = np.repeat(pool.exact_PM[None], count, axis=0)
        for column, predictor in self._predictors.items():
            half = rng.standard_normal((count // 2, len(pool)))
            features_PF = self._informed(column, pool.features_PF, pool.genotypes)
            costs_SPC[:, :, column] = predictor.samples(features_PF, np.vstack([half, -half]))
        costs_SPC = self._with_known(pool, costs_SPC)
        allowed_SP = np.array([self._problem.violations(rows_PC) == 0 for rows_PC in costs_SPC])
        if self._has_failures:
            chance_P = np.clip(self._chance.mean(pool.features_PF), _LEAST_CHANCE, 1.0)
            allowed_SP &= rng.random(allowed_SP.shape) < chance_P
        return costs_SPC, allowed_SP

    def _informed(self, column: int, features_PF: Matrix, genotypes: Sequence[Genotype]) -> Matrix:
        """The features and, where the column's costs under other circumstances are known, those and the tallies.

        A few measurements then say how options add up here, and how costs here follow those there. Where such a cost
        is not known, its mean stands in.
        """
        related = self._related.get(column)
        if related is None:
            return features_PF
        tallies_PK = self._table.tallies(self._table.matrix(genotypes))
        return np.column_stack([features_PF, tallies_PK, [related.get(genotype, 0.0) for genotype in genotypes]])

    def _groups_with_related(self) -> NDArray[np.int64]:
        """Groups of the features of `_informed`: the tallies together, the related cost alone."""
        first = self._table.groups_F.max(initial=-1) + 1
        tallies = self._table.tallies(self._table.matrix([])).shape[1]
        return np.concatenate([self._table.groups_F, np.full(tallies, first), [first + 1]])

    def _with_known(self, pool: Pool, costs: Costs) -> Costs:
        """Cost rows ``[..., P, C]`` with what is known from elsewhere in place of predictions."""
        if not self._known:
            return costs
        blank_C = np.full(len(self._problem.columns), np.nan)
        known_PC = np.array([self._known.get(genotype, blank_C) for genotype in pool.genotypes]).reshape(
            costs.shape[-2:]
        )
        return np.where(np.isnan(known_PC) | np.array(self._problem.exact_columns), costs, known_PC)

    def _informative(self, rows: Mapping[Genotype, Costs]) -> tuple[list[Genotype], Costs]:
        """The networks to learn from with their cost rows, never more than `_MOST_ROWS`."""
        genotypes, costs_NC = list(rows), np.array(list(rows.values())).reshape(-1, len(self._problem.columns))
        if len(genotypes) <= _MOST_ROWS:
            return genotypes, costs_NC
        complete = np.flatnonzero(np.isfinite(costs_NC).all(axis=1))
        best = complete[fittest(self._problem, costs_NC[complete], _MOST_ROWS // 2)]
        others = np.setdiff1d(np.arange(len(genotypes)), best)
        spread = others[np.linspace(0, len(others) - 1, _MOST_ROWS - len(best)).round().astype(int)]
        chosen = np.sort(np.concatenate([best, spread]))
        return [genotypes[i] for i in chosen], costs_NC[chosen]


def _standardised(related: Mapping[Genotype, tuple[float, ...]], column: int) -> dict[Genotype, float] | None:
    """A column of cost rows, centred and of unit variance, as logarithms if positive; None if it says nothing."""
    found = {genotype: row[column] for genotype, row in related.items() if np.isfinite(row[column])}
    costs_N = np.array(list(found.values()))
    if len(costs_N) < 2 or np.ptp(costs_N) == 0:
        return None
    costs_N = np.log(costs_N) if costs_N.min() > 0 else costs_N
    return dict(zip(found, ((costs_N - costs_N.mean()) / costs_N.std()).tolist(), strict=True))
