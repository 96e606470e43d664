"""What model-based opponents share: one-hot features, candidate pools, training data."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod
from random import Random

import numpy as np
from numpy.typing import NDArray

from nas.algorithm import Costs, Ledger
from studies.records import Genotype
from supernets.space import SearchSpace


def one_hot(space: SearchSpace, genotypes: Sequence[Genotype]) -> NDArray[np.float64]:
    """``[n, sum of options]``: one column per option of every gene, all 0 for a gene that decides nothing."""
    counts = [len(choice.options) for choice in space.choices]
    starts = np.cumsum([0, *counts[:-1]])
    features = np.zeros((len(genotypes), sum(counts)))
    rows = np.arange(len(genotypes))[:, None]
    active = np.array([space.active_genes(genotype) for genotype in genotypes], dtype=float)
    features[rows, starts + np.array(genotypes, dtype=int)] = active
    return features


def candidates(ledger: Ledger, rng: Random, count: int) -> list[Genotype]:
    """Distinct unknown genotypes that break no known limit: all of a small space, else up to `count` random ones."""
    space = ledger.problem.space
    if prod(len(choice.options) for choice in space.choices) <= count:
        everything = product(*(range(len(choice.options)) for choice in space.choices))
        canonical = dict.fromkeys(space.canonical(genotype) for genotype in everything)
        return ledger.affordable(genotype for genotype in canonical if genotype not in ledger.rows)
    drawn = dict.fromkeys(space.sample(rng) for _ in range(count))
    return ledger.affordable(genotype for genotype in drawn if genotype not in ledger.rows)


def training_data(ledger: Ledger) -> tuple[list[Genotype], Costs]:
    """Measured networks that did not fail, with their cost rows."""
    done = {genotype: row for genotype, row in ledger.measured.items() if np.isfinite(row).all()}
    return list(done), np.array(list(done.values())).reshape(-1, len(ledger.problem.columns))
