"""pymoo's NSGA-II and U-NSGA-III on plain arrays: its operators, sorting and survival, without an object per child.

LINAS breeds 20,000 children per loop, most of which equal their parents; with pymoo's own bookkeeping that is most of
its time, and would be held against it. Populations are the same, number by number, as pymoo's own (tested).

Legend of shapes: P members of the population, M matings, K children, G genes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymoo.core.termination import NoTermination
from pymoo.util.misc import random_permutations

Genes = NDArray[np.int64]
Numbers = NDArray[np.float64]
_MEMORY = ("rank", "crowding", "niche", "dist_to_niche")
"""What the two survivals note of every member for the next tournament."""


class Members:
    """A population as columns; offers what pymoo's survivals ask of theirs."""

    def __init__(self, columns: dict[str, NDArray[Any]]) -> None:
        self.columns = columns

    @classmethod
    def new(cls, genes_KG: Genes, costs_KM: Numbers, violations_K: Numbers) -> Members:
        """Members without a rank yet."""
        noted = {name: np.zeros(len(genes_KG)) for name in _MEMORY}
        return cls({"X": genes_KG, "F": costs_KM, "CV": violations_K, **noted})

    def __len__(self) -> int:
        return len(self.columns["X"])

    def __getitem__(self, index: Any) -> Any:
        if np.ndim(index) == 0:
            return _Member(self, int(index))
        chosen = np.asarray(index, dtype=int)
        return Members({name: column[chosen] for name, column in self.columns.items()})

    def get(self, name: str) -> NDArray[Any]:
        """A column."""
        return self.columns[name]

    def set(self, *pairs: Any) -> None:
        """Replace columns, given as name, values, name, values."""
        self.columns.update(zip(pairs[::2], pairs[1::2], strict=True))

    def merged(self, others: Members) -> Members:
        """These members, then the others."""
        return Members({name: np.concatenate([column, others.columns[name]]) for name, column in self.columns.items()})


class _Member:
    """One row, which a survival may write to."""

    def __init__(self, members: Members, row: int) -> None:
        self._members, self._row = members, row

    def set(self, name: str, value: float) -> None:
        self._members.columns[name][self._row] = value


class ArrayEvolution:
    """Runs a `pymoo.algorithms.moo` NSGA2 or UNSGA3 whose operators take and give integers."""

    def __init__(self, algorithm: Any, problem: Any, seed: int) -> None:
        algorithm.setup(problem, termination=NoTermination(), seed=seed)
        self._problem, self._size, self._rng = problem, algorithm.pop_size, algorithm.random_state
        self._crossover, self._mutation = algorithm.mating.crossover, algorithm.mating.mutation
        self._retries, self._survival = algorithm.mating.n_max_iterations, algorithm.survival
        self._tournament = _by_dominance if problem.n_obj <= 2 else _by_niche
        self._start = np.rint(algorithm.ask().get("X").astype(float)).astype(np.int64)
        self._asked: Genes = self._start
        self.members: Members | None = None

    def ask(self) -> Genes:
        """``[K, G]``: up to a population of children that differ from each other and from the population."""
        if self.members is not None:
            self._asked = self._children(self.members)
        return self._asked

    def tell(self, costs_KM: Numbers, violations_K: Numbers) -> None:
        """What the children cost; the fittest stay."""
        new = Members.new(self._asked, costs_KM, violations_K)
        self.members = self._survivors(new if self.members is None else self.members.merged(new))

    @property
    def population(self) -> Genes:
        """``[P, G]``, who survived so far."""
        assert self.members is not None
        return self.members.get("X")

    def _children(self, members: Members) -> Genes:
        genes_PG = members.get("X")
        seen = set(map(bytes, genes_PG))
        children: list[Genes] = []
        for _ in range(self._retries):
            matings = math.ceil((self._size - len(children)) / 2)
            for child_G in self._vary(genes_PG[self._parents(members, matings).T]):
                if (key := child_G.tobytes()) not in seen and len(children) < self._size:
                    seen.add(key)
                    children.append(child_G)
            if len(children) == self._size:
                break
        return np.array(children, dtype=np.int64).reshape(-1, genes_PG.shape[1])

    def _parents(self, members: Members, matings: int) -> Genes:
        """``[M, 2]``, the winners of tournaments between two members."""
        drawn = matings * 2 * 2
        permuted = random_permutations(math.ceil(drawn / len(members)), len(members), random_state=self._rng)
        pairs_T2 = permuted[:drawn].reshape(-1, 2)
        second_T, open_T = self._tournament(members, pairs_T2)
        second_T[open_T] = self._rng.integers(0, 2, size=int(open_T.sum()))
        winners: Genes = pairs_T2[np.arange(len(pairs_T2)), second_T].reshape(matings, 2)
        return winners

    def _vary(self, parents_2MG: Genes) -> Genes:
        matings = parents_2MG.shape[1]
        crossed = self._rng.random(matings) < self._crossover.prob.value
        bred_2MG = self._crossover._do(self._problem, parents_2MG.astype(float), random_state=self._rng)
        genes_KG = np.where(crossed[:, None], self._rounded(bred_2MG), parents_2MG).reshape(2 * matings, -1)
        mutated = self._rng.random(len(genes_KG)) <= self._mutation.prob.value
        moved_KG = self._mutation._do(self._problem, genes_KG.astype(float), random_state=self._rng)
        return np.where(mutated[:, None], self._rounded(moved_KG), genes_KG)

    def _rounded(self, values: Numbers) -> Genes:
        return np.clip(np.rint(values), self._problem.xl, self._problem.xu).astype(np.int64)

    def _survivors(self, members: Members) -> Members:
        """Feasible members by pymoo's survival, then the others by how far they break the limits."""
        count = min(self._size, len(members))
        feasible = np.flatnonzero(members.get("CV") <= 0)
        others = np.flatnonzero(members.get("CV") > 0)
        others = others[np.argsort(members.get("CV")[others])]
        if not len(feasible):
            return members[others[:count]]  # type: ignore[no-any-return]
        kept: Members = self._survival._do(
            self._problem, members[feasible], n_survive=min(len(feasible), count), random_state=self._rng
        )
        return kept.merged(members[others[: count - len(kept)]])


def _by_dominance(members: Members, pairs_T2: Genes) -> tuple[Genes, NDArray[np.bool_]]:
    """NSGA-II's tournament: violations, dominance, crowding; which member wins, and where that is left to chance."""
    violation_T2 = members.get("CV")[pairs_T2]
    costs_T2M = members.get("F")[pairs_T2]
    less_T = (costs_T2M[:, 0] < costs_T2M[:, 1]).any(axis=1)
    more_T = (costs_T2M[:, 0] > costs_T2M[:, 1]).any(axis=1)
    dominance_T = more_T.astype(float) - less_T
    crowding_T2 = members.get("crowding")[pairs_T2]
    less_crowded_T = (crowding_T2[:, 1] > crowding_T2[:, 0]).astype(float) - (crowding_T2[:, 0] > crowding_T2[:, 1])
    feasible_T = np.where(less_T != more_T, dominance_T, less_crowded_T)
    return _decided(np.where((violation_T2 > 0).any(axis=1), _larger(violation_T2), feasible_T))


def _by_niche(members: Members, pairs_T2: Genes) -> tuple[Genes, NDArray[np.bool_]]:
    """U-NSGA-III's tournament: violations; within one niche rank, then the distance to its direction."""
    violation_T2, niche_T2 = members.get("CV")[pairs_T2], members.get("niche")[pairs_T2]
    rank_T, distance_T = (_larger(members.get(name)[pairs_T2]) for name in ("rank", "dist_to_niche"))
    within_T = np.where(rank_T != 0, rank_T, distance_T)
    feasible_T = np.where(niche_T2[:, 0] == niche_T2[:, 1], within_T, 0.0)
    return _decided(np.where((violation_T2 > 0).any(axis=1), _larger(violation_T2), feasible_T))


def _larger(values_T2: Numbers) -> Numbers:
    """1 where the first is larger, so that the second wins, -1 where the second is, else 0."""
    return np.sign(np.nan_to_num(values_T2[:, 0] - values_T2[:, 1]))


def _decided(sign_T: Numbers) -> tuple[Genes, NDArray[np.bool_]]:
    return (sign_T > 0).astype(np.int64), sign_T == 0
