"""Tree-structured Parzen estimator for several objectives, from Optuna.

Source: Ozaki et al., Multiobjective tree-structured Parzen estimator, JAIR 73, 2022. The sampler and its options are
given explicitly: Optuna's defaults differ between releases.
"""

from __future__ import annotations

from random import Random

import numpy as np
import optuna

from nas.algorithm import AlgorithmSettings, Costs, Ledger, Search, SearchProblem
from studies.records import Genotype
from supernets.space import SearchSpace


def search(problem: SearchProblem, settings: AlgorithmSettings) -> Search:
    """Sample `batch` genotypes from the estimator, after one batch at random.

    A suggestion that is already known, or breaks a known limit, is answered from the history; after a batch of those
    the rest is drawn at random, so that the search goes on where the estimator has converged.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(
        seed=settings.seed, n_startup_trials=settings.batch, multivariate=False, constant_liar=True
    )
    study = optuna.create_study(directions=["minimize"] * len(problem.objectives), sampler=sampler)
    rng = Random(settings.seed)
    ledger = Ledger(problem)
    while True:
        trials = _suggest(study, ledger, settings.batch)
        for genotype in ledger.draw(rng, settings.batch - len(trials)):
            if genotype not in trials:
                study.enqueue_trial(_named(problem.space, genotype))
                trial = study.ask()
                trials[_suggested(trial, problem.space)] = trial
        if not trials:
            return
        costs = yield from ledger.ask(trials)
        for trial, row in zip(trials.values(), costs, strict=True):
            tell(study, trial, problem, row)


def _suggest(study: optuna.Study, ledger: Ledger, count: int) -> dict[Genotype, optuna.Trial]:
    """Up to `count` new affordable genotypes with their open trials; gives up after as many others."""
    trials: dict[Genotype, optuna.Trial] = {}
    others = 0
    while len(trials) < count and others < count:
        trial = study.ask()
        genotype = _suggested(trial, ledger.problem.space)
        if genotype in trials:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            others += 1
        elif genotype in ledger.rows or not ledger.affordable([genotype]):
            tell(study, trial, ledger.problem, ledger.rows[genotype])
            others += 1
        else:
            trials[genotype] = trial
    return trials


def _suggested(trial: optuna.Trial, space: SearchSpace) -> Genotype:
    """Suggest shared genes first, then only the genes of kept layers: a dropped layer teaches the estimator nothing."""
    genotype = [0] * len(space)
    shared = [i for i, choice in enumerate(space.choices) if choice.layer is None]
    for gene in shared:
        genotype[gene] = _suggest_gene(trial, space, gene)
    for gene, active in enumerate(space.active_genes(tuple(genotype))):
        if active and gene not in shared:
            genotype[gene] = _suggest_gene(trial, space, gene)
    return space.canonical(genotype)


def _suggest_gene(trial: optuna.Trial, space: SearchSpace, gene: int) -> int:
    choice = space.choices[gene]
    return trial.suggest_int(choice.name, 0, len(choice.options) - 1)


def _named(space: SearchSpace, genotype: Genotype) -> dict[str, int]:
    return {choice.name: index for choice, index in zip(space.choices, genotype, strict=True)}


def tell(study: optuna.Study, trial: optuna.Trial, problem: SearchProblem, row: Costs) -> None:
    """Tell a trial its cost row: one that breaks a limit as infeasible, a failed one as failed."""
    if np.isinf(row).all():
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return
    if problem.limits:
        trial.set_constraint("limits", float(problem.violations(row[None])[0]))
    # Unknown costs (NaN) belong to infeasible rows only, which the sampler orders by violation alone.
    study.tell(trial, np.nan_to_num(problem.minimised(row[None])[0], nan=0.0).tolist())
