"""What a study's own measurements say of networks nobody has evaluated: predictions, stored apart from real values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nas.algorithm import ColumnFit, Costs, SearchProblem
from nas.beliefs import Beliefs
from nas.candidates import Breeder
from nas.evaluator import Evaluator
from nas.search import cost_row, most_measured
from predictors.column_predictor import FOLDS
from studies.pareto import non_dominated, signed
from studies.records import Genotype, Value, content_hash
from studies.store import StudyStore
from supernets.genes import GeneTable

EXACT = "exact"
"""Stands for a predictor where a cost was computed."""

_MOST = 50
"""Predicted networks that are kept of one forecast."""


def forecast(problem: SearchProblem, evaluator: Evaluator, store: StudyStore, study_name: str, seed: int = 0) -> None:
    """Predict the networks that may improve a study's front, and store what is predicted of them.

    Predictors learn from what was measured on the most data. The networks are the non-dominated ones, by prediction and
    within the limits, of a whole small space, or of what evolves from the front in a large one. Nothing is stored
    where there is nothing to predict, or too little to learn from.
    """
    finished = [e for e in store.evaluations(study_name) if e.status in ("done", "failed")]
    known, _ = most_measured(problem, finished)
    costs_NM = np.array([cost_row(problem, e) for e in known]).reshape(-1, len(problem.columns))
    feasible = np.flatnonzero(problem.violations(costs_NM) == 0)
    if len(known) < FOLDS or not len(feasible) or all(problem.exact_columns):
        return
    table = GeneTable(problem.space)
    beliefs = Beliefs(problem, table, {}, seed=seed, choose=True, warp=True)
    beliefs.learn({e.genotype: row for e, row in zip(known, costs_NM, strict=True)})
    front = feasible[non_dominated(problem.minimised(costs_NM[feasible]))]
    start, asked = [known[i].genotype for i in front], {e.genotype for e in finished}
    pool, predicted_PM = Breeder(problem, table).candidates(beliefs.predict, start, asked, np.random.default_rng(seed))
    allowed = np.flatnonzero(problem.violations(predicted_PM) == 0)
    best = allowed[non_dominated(problem.minimised(predicted_PM[allowed]))]
    chosen = best[np.linspace(0, len(best) - 1, min(len(best), _MOST)).round().astype(int)]
    rows = {pool.genotypes[i]: predicted_PM[i] for i in chosen}
    training = [[e.genotype, row.tolist()] for e, row in zip(known, costs_NM, strict=True)]
    for column, objective in enumerate(problem.columns):
        fit = beliefs.fits().get(objective.key)
        spread = float(costs_NM[:, column].std())
        values = [(genotype, _value(evaluator, column, genotype, row, fit, spread)) for genotype, row in rows.items()]
        store.add_predictions(
            study_name,
            EXACT if fit is None else fit.predictor,
            values,
            training_hash=content_hash([objective.key, training]),
            error={} if fit is None else {"relative": fit.relative_error, "rank_correlation": fit.rank_correlation},
        )


def _value(
    evaluator: Evaluator, column: int, genotype: Genotype, row: Costs, fit: ColumnFit | None, spread: float
) -> Value:
    """A prediction with the cross-validated error as its spread; of what is computed, the computed number with its."""
    bound = evaluator.columns[column]
    if fit is None:
        return replace(bound.evaluate(genotype), provenance="predicted")
    number = signed(bound.objective, float(row[column]))
    return Value(
        objective=bound.objective.key, number=number, spread=fit.relative_error * spread, provenance="predicted"
    )
