"""Optuna's samplers behind the race's loop: one trial at a time, which is when they know most.

Genes with ordered options are integers, the others categorical; every gene is always suggested, so that samplers which
need one fixed space work. A suggestion that is known is answered from the history at no cost; after some of them in a
row (`REPEATS` unless a sampler's file says otherwise) one network is drawn at random, so that a converged sampler goes
on. Limits are constraints; a failed network is a failed trial.
"""

from __future__ import annotations

import warnings
from random import Random

import optuna

from nas.algorithm import AlgorithmSettings, Ledger, Search, SearchProblem
from nas.algorithms.tpe import tell
from studies.records import Genotype
from supernets.space import SearchSpace
from tests.benchmarks.race.tables import nominal_genes

REPEATS = 10


def sample(
    problem: SearchProblem, settings: AlgorithmSettings, sampler: optuna.samplers.BaseSampler, patience: int = REPEATS
) -> Search:
    """Ask and tell one trial after the other."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    study = optuna.create_study(directions=["minimize"] * len(problem.objectives), sampler=sampler)
    rng, ledger, repeats = Random(settings.seed), Ledger(problem), 0
    while True:
        if repeats == patience:
            drawn = ledger.draw(rng, 1)
            if not drawn:
                return
            study.enqueue_trial({_name(gene): index for gene, index in enumerate(drawn[0])})
        trial = study.ask()
        measured = len(ledger.measured)
        costs = yield from ledger.ask([_suggested(trial, problem.space)])
        repeats = repeats + 1 if len(ledger.measured) == measured else 0
        tell(study, trial, problem, costs[0])


def _suggested(trial: optuna.Trial, space: SearchSpace) -> Genotype:
    genotype = []
    for gene, (choice, is_nominal) in enumerate(zip(space.choices, nominal_genes(space), strict=True)):
        if is_nominal:
            genotype.append(trial.suggest_categorical(_name(gene), range(len(choice.options))))
        else:
            genotype.append(trial.suggest_int(_name(gene), 0, len(choice.options) - 1))
    return tuple(genotype)


def _name(gene: int) -> str:
    return f"gene{gene:02d}"
