"""LINAS as its authors published it, but for what the race does for everybody.

Source: Cummings et al., A hardware-aware framework for accelerating neural architecture search across modalities,
arXiv 2205.10358, and its code, DyNAS-T (IntelLabs/DyNAS-T, 2022 to 2024): population 50 of uniform random networks; per
loop, one predictor per objective, trained from scratch on one-hot features of everything measured; an inner
evolutionary search of 20,000 evaluations on predictions (NSGA-II for two objectives, U-NSGA-III for three; population
50; a new random start but the same seed in every loop); its final population is measured next, whether known or not.

- Predictors: ridge regression (alpha 0.1 … 10) and an RBF support-vector machine (C 1 … 100, epsilon 0, gamma 1 /
  features), by grid search with five unshuffled folds on the mean absolute percentage error; the better of the two
  predicts. Targets are divided by a power of ten so that they lie in 10 … 100; constant features are left out.
  Error is predicted as accuracy. Latency, multiply-accumulates and parameters are predicted as well.
- Operators: simulated binary crossover (probability 0.9, eta 15; 1.0 and 30 for three objectives), polynomial mutation
  (probability 0.02, eta 20), rounded.

Differences: known networks are not paid for again, and a search ends after five loops that bring nothing new, or 12
loops (the published one would have ended after 8 at 400 evaluations, since it pays for known networks); genes that
decide nothing are masked, as its BERT encoding does; C is tried in 5 steps rather than 100, because the full grid costs
over a minute of processor time per loop at 400 evaluations; an inner search whose population did not change for 50
generations ends. Ridge regressions of all alphas share one singular value decomposition per fold, support-vector
machines of all objectives one kernel matrix, predictions are made for whole generations at once, and the inner search
runs on arrays (`_arrays.py`), which changes no number.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from random import Random
from typing import Any

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.algorithms.moo.unsga3 import UNSGA3
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.mutation.pm import PM
from pymoo.operators.repair.rounding import RoundingRepair
from pymoo.operators.sampling.rnd import IntegerRandomSampling
from pymoo.util.ref_dirs import get_reference_directions
from sklearn import config_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.svm import SVR

from nas.algorithm import AlgorithmSettings, Costs, Ledger, Search, SearchProblem
from studies.records import Genotype, Objective
from supernets.space import SearchSpace
from tests.benchmarks.race.opponents._arrays import ArrayEvolution
from tests.benchmarks.race.opponents._pool import one_hot, training_data
from tests.benchmarks.race.opponents._pymoo import IntegerProblem, finite

POPULATION, INNER_EVALUATIONS, UNCHANGED = 50, 20_000, 50
STALE_LOOPS, LOOPS = 5, 12
ALPHAS, REGULARISATIONS = np.arange(0.1, 10.1, 0.1), np.array([1.0, 10.0, 25.0, 50.0, 100.0])
_FULL_ACCURACY = {"fraction": 1.0, "%": 100.0}
_ITERATIONS = 1_000_000
Predict = Callable[[Sequence[Genotype]], Costs]
Model = Callable[[Costs, Costs], Costs]
"""Labels of R rows from their features, ``[R, F]``, and their kernel with the N measured ones, ``[R, N]``."""


def linas(problem: SearchProblem, settings: AlgorithmSettings, mutation: Any, constrained: bool) -> Search:
    """Measure a population, train, evolve the next on predictions; ends as the module says.

    Args:
        mutation: pymoo's operator of the inner search.
        constrained: whether the inner search knows the limits (the published one knows none).
    """
    rng, ledger = Random(settings.seed), Ledger(problem)
    population = [problem.space.sample(rng) for _ in range(POPULATION)]
    stale = 0
    for _ in range(LOOPS):
        measured = len(ledger.measured)
        yield from ledger.ask(population)
        stale = stale + 1 if len(ledger.measured) == measured else 0
        if stale == STALE_LOOPS:
            return
        predict = train(ledger)
        if predict is None:
            population = [problem.space.sample(rng) for _ in range(POPULATION)]
            continue
        population = evolve(problem, predict, settings.seed, mutation, constrained)


def evolve(problem: SearchProblem, predict: Predict, seed: int, mutation: Any, constrained: bool) -> list[Genotype]:
    """The final population of the inner search."""
    objectives = len(problem.objectives)
    evolution = ArrayEvolution(_inner(objectives, mutation), IntegerProblem(problem.space, objectives), seed)
    canonical = cache(problem.space.canonical)
    population: list[Genotype] = []
    unchanged = 0
    for _ in range(INNER_EVALUATIONS // POPULATION):
        asked = _genotypes(evolution.ask())
        if not asked or unchanged == UNCHANGED:
            break
        costs = predict([canonical(genotype) for genotype in asked])
        violations = problem.violations(costs) if constrained else np.zeros(len(costs))
        evolution.tell(finite(problem.minimised(costs)), finite(violations))
        before, population = population, sorted(_genotypes(evolution.population))
        unchanged = unchanged + 1 if population == before else 0
    return _genotypes(evolution.population)


def _genotypes(genes_PG: Any) -> list[Genotype]:
    return [tuple(row) for row in genes_PG.tolist()]


def _inner(objectives: int, mutation: Any) -> Any:
    probability, eta = (0.9, 15) if objectives <= 2 else (1.0, 30)
    common = {
        "pop_size": POPULATION,
        "sampling": IntegerRandomSampling(),
        "crossover": SBX(prob=probability, eta=eta, vtype=float, repair=RoundingRepair()),
        "mutation": mutation,
        "eliminate_duplicates": True,
    }
    if objectives <= 2:
        return NSGA2(**common)
    return UNSGA3(ref_dirs=directions(objectives), **common)


@cache
def directions(objectives: int) -> Any:
    """The 20 reference directions of DyNAS-T; they take seconds, and are the same in every loop."""
    return get_reference_directions("energy", objectives, 20, seed=0)


def published_mutation() -> Any:
    """The mutation of DyNAS-T; in pymoo 0.6.2 its probability is per individual, and nearly every step rounds back."""
    return PM(prob=0.02, eta=20, vtype=float, repair=RoundingRepair())


def working_mutation(space: SearchSpace) -> Any:
    """The same operator so that one gene per child is expected to change: probability 1 / genes each, eta 3."""
    return PM(prob=1.0, prob_var=1 / len(space), eta=3, vtype=float, repair=RoundingRepair())


def train(ledger: Ledger) -> Predict | None:
    """One predictor per column; None while too little was measured for five folds."""
    problem = ledger.problem
    genotypes, costs_NM = training_data(ledger)
    if len(genotypes) < 5:
        return None
    features_NF = one_hot(problem.space, genotypes)
    used_F = np.flatnonzero(features_NF.var(axis=0))
    if not len(used_F):
        return None
    features_NF, gamma = features_NF[:, used_F], 1 / len(used_F)
    kernel_NN = rbf_kernel(features_NF, gamma=gamma)
    predictors = [
        _predictor(features_NF, kernel_NN, costs_N, objective)
        for costs_N, objective in zip(costs_NM.T, problem.columns, strict=True)
    ]

    def predict(asked: Sequence[Genotype]) -> Costs:
        rows_RF = one_hot(problem.space, asked)[:, used_F]
        with config_context(assume_finite=True, skip_parameter_validation=True):
            kernel_RN = rbf_kernel(rows_RF, features_NF, gamma=gamma)
            return np.column_stack([predictor(rows_RF, kernel_RN) for predictor in predictors])

    return predict


def _predictor(features_NF: Costs, kernel_NN: Costs, costs_N: Costs, objective: Objective) -> Model:
    full = _FULL_ACCURACY.get(objective.unit) if objective.name == "error" else None
    labels_N = costs_N if full is None else full - costs_N
    largest = float(np.abs(labels_N).max())
    scale = 10.0 ** (np.floor(np.log10(largest)) - 1.0) if largest > 0 else 1.0
    best = _better_model(features_NF, kernel_NN, labels_N / scale)

    def predict(rows_RF: Costs, kernel_RN: Costs) -> Costs:
        predicted = best(rows_RF, kernel_RN) * scale
        return predicted if full is None else full - predicted

    return predict


def _better_model(features_NF: Costs, kernel_NN: Costs, labels_N: Costs) -> Model:
    """Ridge or support-vector regression, each with its best setting."""
    alpha, ridge_error = best_alpha(features_NF, labels_N)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        machines = GridSearchCV(
            SVR(kernel="precomputed", epsilon=0.0, max_iter=_ITERATIONS),
            {"C": REGULARISATIONS},
            scoring="neg_mean_absolute_percentage_error",
        ).fit(kernel_NN, labels_N)
    if ridge_error <= -machines.best_score_:
        ridge = Ridge(alpha=alpha).fit(features_NF, labels_N)
        return lambda rows_RF, kernel_RN: np.asarray(ridge.predict(rows_RF))
    machine = machines.best_estimator_
    return lambda rows_RF, kernel_RN: np.asarray(machine.predict(kernel_RN))


def best_alpha(features_NF: Costs, labels_N: Costs) -> tuple[float, float]:
    """The regularisation with the least mean absolute percentage error over five unshuffled folds, and that error."""
    errors_A = np.zeros(len(ALPHAS))
    folds = KFold(5)
    for train, held_out in folds.split(features_NF):
        center_F, center = features_NF[train].mean(axis=0), labels_N[train].mean()
        u_NR, s_R, v_RF = np.linalg.svd(features_NF[train] - center_F, full_matrices=False)
        shrunk_AR = s_R / (s_R**2 + ALPHAS[:, None]) * (u_NR.T @ (labels_N[train] - center))
        predicted_AN = center + shrunk_AR @ v_RF @ (features_NF[held_out] - center_F).T
        truth_N = labels_N[held_out]
        relative_AN = np.abs(predicted_AN - truth_N) / np.maximum(np.abs(truth_N), np.finfo(float).eps)
        errors_A += relative_AN.mean(axis=1) / folds.get_n_splits()
    best = int(errors_A.argmin())
    return float(ALPHAS[best]), float(errors_A[best])
