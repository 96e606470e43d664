"""Parallel noisy expected hypervolume improvement, from BoTorch; for small budgets.

Source: Daulton, Balandat and Bakshy, Parallel Bayesian optimization of multiple noisy objectives with expected
hypervolume improvement, NeurIPS 2021, in its logarithmic form (Ament et al., NeurIPS 2023).
Settings: 20 random networks first, then batches of 5, chosen greedily from 500 candidates (400 random ones, and 100
neighbours of what is on the measured front), 64 quasi-random samples; BoTorch's default Gaussian process per column on
standardised costs, fitted in at most 200 steps, since flat likelihoods otherwise take over a thousand; ordered genes
scaled to 0 … 1, the others one-hot; reference point 0.1 of the range beyond the measured nadir. Limits are outcome
constraints.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
import torch
from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement
from botorch.acquisition.multi_objective.objective import IdentityMCMultiOutputObjective
from botorch.fit import fit_gpytorch_mll
from botorch.models.gp_regression import SingleTaskGP
from botorch.models.model_list_gp_regression import ModelListGP
from botorch.optim.optimize import optimize_acqf_discrete
from botorch.sampling.normal import SobolQMCNormalSampler
from gpytorch.mlls import SumMarginalLogLikelihood
from numpy.typing import NDArray

from nas.algorithm import AlgorithmSettings, Costs, Ledger, Search, SearchProblem
from studies.pareto import non_dominated
from studies.records import Genotype
from supernets.space import SearchSpace
from tests.benchmarks.race.opponents._pool import candidates, one_hot, training_data
from tests.benchmarks.race.opponents.local_search import neighbours
from tests.benchmarks.race.tables import nominal_genes

MAX_BUDGET, MAX_OBJECTIVES = 100, 2
"""A third of a second per evaluation at 100, and more with three objectives."""

_START, _BATCH, _RANDOM, _POOL, _SAMPLES, _STEPS = 20, 5, 400, 500, 64, 200


def search(problem: SearchProblem, settings: AlgorithmSettings) -> Search:
    """Alternate between fitting and measuring the batch with the highest expected improvement."""
    rng, ledger = Random(settings.seed), Ledger(problem)
    yield from ledger.ask(ledger.draw(rng, _START))
    while pool := _pool(ledger, rng):
        known, costs_NM = training_data(ledger)
        if len(known) < 2:
            chosen = pool[:_BATCH]
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # fits of nearly constant costs, and deprecations within BoTorch
                chosen = _best(problem, known, costs_NM, pool, rng.randrange(2**31))
        yield from ledger.ask(chosen)


def _pool(ledger: Ledger, rng: Random) -> list[Genotype]:
    problem = ledger.problem
    known, costs_NM = training_data(ledger)
    drawn = candidates(ledger, rng, _RANDOM)
    around: dict[Genotype, None] = {}
    if known:
        for i in np.flatnonzero(non_dominated(problem.minimised(costs_NM))):
            around |= dict.fromkeys(neighbours(problem.space, known[i]))
    near = ledger.affordable(genotype for genotype in around if genotype not in ledger.rows)
    rng.shuffle(drawn)
    rng.shuffle(near)
    return list(dict.fromkeys(near[: _POOL - _RANDOM] + drawn[:_RANDOM]))


def _best(
    problem: SearchProblem, known: Sequence[Genotype], costs_NM: Costs, pool: Sequence[Genotype], seed: int
) -> list[Genotype]:
    torch.manual_seed(seed)
    center_M, spread_M = costs_NM.mean(axis=0), np.maximum(costs_NM.std(axis=0), 1e-12)
    train_NF = torch.tensor(encoded(problem.space, known))
    targets_NM = torch.tensor((center_M - costs_NM) / spread_M)  # BoTorch maximises
    model = ModelListGP(*(SingleTaskGP(train_NF, targets_NM[:, m : m + 1]) for m in range(targets_NM.shape[1])))
    fit_gpytorch_mll(
        SumMarginalLogLikelihood(model.likelihood, model), optimizer_kwargs={"options": {"maxiter": _STEPS}}
    )
    objectives = len(problem.objectives)
    front_FM = targets_NM[:, :objectives][non_dominated(problem.minimised(costs_NM))]
    worst_M, best_M = front_FM.min(dim=0).values, front_FM.max(dim=0).values
    acquisition = qLogNoisyExpectedHypervolumeImprovement(
        model,
        ref_point=(worst_M - 0.1 * (best_M - worst_M).clamp_min(0.1)).tolist(),
        X_baseline=train_NF,
        sampler=SobolQMCNormalSampler(torch.Size([_SAMPLES]), seed=seed),
        objective=IdentityMCMultiOutputObjective(outcomes=list(range(objectives))),
        constraints=_constraints(problem, center_M, spread_M),
        prune_baseline=True,
    )
    choices_PF = torch.tensor(encoded(problem.space, pool))
    chosen_BF, _ = optimize_acqf_discrete(acquisition, q=min(_BATCH, len(pool)), choices=choices_PF, unique=True)
    rows = (choices_PF[None] == chosen_BF[:, None]).all(dim=2).int().argmax(dim=1)
    return [pool[int(row)] for row in rows]


def _constraints(problem: SearchProblem, center_M: Costs, spread_M: Costs) -> Any:
    """Functions of standardised outcomes that are negative where a limit holds."""
    limits = {m: (limit - center_M[m]) / spread_M[m] for m, limit in problem.limits.items()}
    return [lambda outcomes, m=m, limit=limit: -outcomes[..., m] - limit for m, limit in limits.items()] or None


def encoded(space: SearchSpace, genotypes: Sequence[Genotype]) -> NDArray[np.float64]:
    """Ordered genes scaled to 0 … 1, the others one-hot."""
    nominal = np.array(nominal_genes(space))
    counts = np.array([len(choice.options) for choice in space.choices])
    ordered = np.array(genotypes, dtype=float) / np.maximum(counts - 1, 1)
    of_option = np.repeat(nominal, counts)
    return np.concatenate([ordered[:, ~nominal], one_hot(space, genotypes)[:, of_option]], axis=1)
