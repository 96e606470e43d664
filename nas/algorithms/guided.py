"""Guided search: measures the networks that are expected to add most to the front, and learns from every batch.

1. The first networks span the space: uniform ones, graded ones from small to large, random ones.
2. Every cost that nobody can compute gets a predictor, a Gaussian process unless another model cross-validates clearly
   better (`ColumnPredictor`). Costs that can be computed are.
3. Candidates are all networks of a small space; in a large one, what an evolution on the predictions finds, starting
   from the best measured networks.
4. The next batch is chosen one by one by expected hypervolume improvement over joint samples of the candidates' costs,
   each seeing the ones before it (a Monte Carlo form of the acquisition of Daulton et al., "Parallel Bayesian
   optimization of multiple noisy objectives with expected hypervolume improvement", NeurIPS 2021, on a finite pool).
   Where some objectives are limited, half of a batch is chosen for the others alone: that is what a limit is set for.
5. The worse predictions rank what was left out of their training, the more of a batch are children of the front and
   random networks instead.

Batches start small and grow with what is known: early on every answer changes what should be asked next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

import numpy as np
from numpy.typing import NDArray

from nas.acquisition import greedy_batch, improvements
from nas.algorithm import AlgorithmSettings, Costs, Generation, Ledger, Search, SearchProblem, few_uniform
from nas.beliefs import TRUSTED_CORRELATION, Beliefs
from nas.candidates import Breeder, Pool, fittest
from predictors.column_predictor import CONSTANT
from studies.pareto import hypervolume, non_dominated, signed
from studies.records import Genotype
from supernets.genes import GeneTable

_DESIGN = 20
"""Networks measured before anything is predicted."""
_UNIFORM_SHARE, _GRADED_SHARE = 0.25, 0.25
"""Shares of those that are uniform, and drawn from small to large; only where computed costs grow with the options."""
_PROBES, _SIZE_CORRELATION = 100, 0.5
"""Random networks, and the correlation with the computed costs, by which that is decided."""
_OVERDRAWN = 8
"""Graded networks drawn for each one that is taken, so that some keep the limits."""
_LEAST_BATCH, _BATCH_SHARE = 5, 0.2
"""A batch is this share of what has been measured, but not smaller than that, nor larger than is allowed."""
_ELITE = 60
"""Measured networks from which candidates are bred."""
_SHORTLIST, _SAMPLES = 256, 64
_SHORTLIST_3, _SAMPLES_3 = 128, 32
"""Candidates whose costs are sampled, and how often; fewer from three objectives on, where improvements take longer."""
_HOPE = 1.0
"""Cross-validated errors by which a candidate may turn out better, where it is to be looked at more closely."""
_MARGIN = 0.1
"""How far beyond the worst of the front the reference point lies, as a share of the front's range."""
_FREE_SHARE = 0.5
"""Share of a batch that is chosen for the objectives without a limit alone, where others have one."""
_MOST_EXPLORED = 0.5
"""Share of a batch that ignores predictions when they rank no better than chance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GuidedOptions:
    """Parts of the algorithm that can be left out, to see what they contribute.

    Attributes:
        uniform_networks: the first networks include uniform and graded ones, rather than random ones alone.
        small_batches: batches start small, rather than full.
        compute_exact: costs that can be computed are not predicted.
        choose_model: other models compete with the Gaussian process.
        warp_costs: costs are predicted on a scale on which they are easier to predict.
        sample_costs: improvements are expected over samples, rather than those of the mean prediction.
        hypervolume: batches maximise the improvement, rather than being spread over the best predicted layers.
        explore: the worse the predictions, the more is measured without them.
        free_costs: where some objectives are limited, part of a batch is chosen for the others alone.
    """

    uniform_networks: bool = True
    small_batches: bool = True
    compute_exact: bool = True
    choose_model: bool = True
    warp_costs: bool = True
    sample_costs: bool = True
    hypervolume: bool = True
    explore: bool = True
    free_costs: bool = True


DEFAULTS = GuidedOptions()


def search(problem: SearchProblem, settings: AlgorithmSettings, options: GuidedOptions = DEFAULTS) -> Search:
    """Measure the first networks, then batches of at most `settings.batch` that promise most; see the module."""
    guide = _Guide(problem, settings, options)
    for proposal in _chunks(guide.first(), settings.batch):
        guide.report(proposal, "first networks")
        yield from guide.ledger.ask(proposal)
    while proposal := guide.next():
        yield from guide.ledger.ask(proposal)


def _chunks(genotypes: Sequence[Genotype], size: int) -> list[list[Genotype]]:
    return [list(genotypes[i : i + size]) for i in range(0, len(genotypes), size)]


class _Guide:
    """One search: what was measured, what is believed, and what follows."""

    def __init__(self, problem: SearchProblem, settings: AlgorithmSettings, options: GuidedOptions) -> None:
        self.ledger = Ledger(problem)
        self._settings, self._options = settings, options
        self._problem = problem if options.compute_exact else _without_exact(problem)
        self._rng = np.random.default_rng(settings.seed)
        self._table = GeneTable(problem.space)
        self._breeder = Breeder(self._problem, self._table)
        self._beliefs = Beliefs(
            self._problem,
            self._table,
            settings.known,
            settings.related,
            seed=settings.seed,
            choose=options.choose_model,
            warp=options.warp_costs,
        )
        few = len(problem.objectives) <= 2
        self._shortlisted, self._samples_drawn = (_SHORTLIST, _SAMPLES) if few else (_SHORTLIST_3, _SAMPLES_3)
        self._hints = self._best_known(_ELITE)
        self._generation = 0

    def first(self) -> list[Genotype]:
        """The networks measured before anything is predicted."""
        problem, design = self._problem, dict.fromkeys(self._best_known(_DESIGN // 2))
        wanted = _DESIGN // 2 if design else _DESIGN
        if self._options.uniform_networks and self._options_are_sizes():
            uniform = few_uniform(problem.space)
            graded = self._table.distinct(self._table.graded_draw(self._rng, _OVERDRAWN * wanted))
            for group, share in ((uniform, _UNIFORM_SHARE), (graded, _GRADED_SHARE)):
                affordable = self.ledger.affordable(dict.fromkeys(group))
                design.update(dict.fromkeys(_spread(problem, affordable, round(share * wanted))))
        random = [genotype for genotype in self._draw(wanted) if genotype not in design]
        return [*design, *random][:wanted]

    def _options_are_sizes(self) -> bool:
        """Whether every computed cost grows with the options, so that networks can be told to be small or large."""
        exact = np.flatnonzero(self._problem.exact_columns)
        drawn = self._table.distinct(self._table.uniform_draw(self._rng, _PROBES))
        if not len(exact) or len(drawn) < 3:
            return False
        costs = self._problem.exact(drawn)[:, exact]
        sizes = self._table.features(self._table.matrix(drawn)).sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):  # a constant cost correlates with nothing
            return bool(np.corrcoef(sizes, costs, rowvar=False)[0, 1:].min() > _SIZE_CORRELATION)

    def next(self) -> list[Genotype]:
        """The next batch; empty once nothing is left."""
        ledger, batch = self.ledger, self._settings.batch
        if self._options.small_batches:
            batch = min(batch, max(_LEAST_BATCH, int(_BATCH_SHARE * len(ledger.measured))))
        self._beliefs.learn(ledger.measured)
        explored = round(batch * self._explored_share())
        guided = self._promising(batch - explored) if self._beliefs.settled else []
        proposal = dict.fromkeys(guided)
        proposal.update(dict.fromkeys(self._bred((batch - len(proposal) + 1) // 2)))
        fresh = [genotype for genotype in self._draw(batch - len(proposal)) if genotype not in proposal]
        proposal.update(dict.fromkeys(fresh))
        self.report(list(proposal), f"{len(guided)} promising, {len(proposal) - len(guided)} explored")
        return list(proposal)

    def report(self, proposal: Sequence[Genotype], note: str) -> None:
        """Tell the observer what is known and what is about to be measured."""
        observe = self._settings.observe
        if observe is not None and proposal:
            costs = np.array(list(self.ledger.measured.values())).reshape(-1, len(self._problem.columns))
            finite = costs[np.isfinite(costs).all(axis=1)]
            feasible = self._problem.minimised(finite[self._problem.violations(finite) == 0])
            reference = self._reference(feasible)
            box = float(np.prod(reference - feasible.min(axis=0))) if len(feasible) else 0.0
            observe(
                Generation(
                    number=self._generation,
                    measured=len(costs),
                    columns=self._beliefs.fits(),
                    hypervolume=hypervolume(feasible, list(reference)) / box if box > 0 else 0.0,
                    feasible_share=len(feasible) / len(costs) if len(costs) else 1.0,
                    note=note,
                )
            )
        self._generation += 1

    def _promising(self, count: int) -> list[Genotype]:
        """Candidates expected to improve the front most, then those predicted to be nearest to it."""
        problem, beliefs = self._problem, self._beliefs
        settled = np.array(list(beliefs.settled.values()))
        elite = fittest(problem, settled, _ELITE)
        start = [list(beliefs.settled)[i] for i in elite] + self._hints
        pool, costs = self._breeder.candidates(beliefs.predict, start, self.ledger.rows, self._rng)
        if not len(pool) or count < 1:
            return []
        feasible = problem.minimised(settled[problem.violations(settled) == 0])
        front = feasible[non_dominated(feasible)]
        hopeful = beliefs.hopeful(costs, _HOPE)
        chosen: list[int] = []
        if self._options.hypervolume:
            allowed = problem.minimised(costs[problem.violations(costs) == 0])
            reference = self._reference(front, allowed[non_dominated(allowed)])
            shortlist = self._shortlist(costs, hopeful, front, reference)
            samples, works = self._samples(pool.take(shortlist), costs[shortlist])
            chosen = [int(shortlist[i]) for i in self._batch(samples, works, front, reference, count)]
        others = fittest(problem, hopeful, 2 * count)
        filled = dict.fromkeys([*chosen, *others])
        return [pool.genotypes[i] for i in filled][:count]

    def _batch(self, samples: Costs, works: NDArray[np.bool_], front: Costs, reference: Costs, count: int) -> list[int]:
        """The candidates that add most to the front, of which some only look at the costs that have no limit."""
        free = [m for m in range(front.shape[1]) if m not in self._problem.limits]
        if not self._options.free_costs or not 0 < len(free) < front.shape[1] or not len(front):
            return greedy_batch(samples, works, front, reference, count)
        best = front[:, free][non_dominated(front[:, free])]
        first = greedy_batch(samples[..., free], works, best, reference[free], round(_FREE_SHARE * count))
        others = greedy_batch(samples, works, front, reference, count)
        return list(dict.fromkeys([*first, *others]))[:count]

    def _samples(self, pool: Pool, costs: Costs) -> tuple[Costs, NDArray[np.bool_]]:
        if not self._options.sample_costs:
            return self._problem.minimised(costs)[None], (self._problem.violations(costs) == 0)[None]
        samples, works = self._beliefs.sample(pool, self._samples_drawn, self._rng)
        return samples[:, :, : len(self._problem.objectives)], works

    def _shortlist(self, costs: Costs, hopeful: Costs, front: Costs, reference: Costs) -> NDArray[np.int64]:
        """Candidates whose prediction, or whose hope, improves the front most: half of them by each."""
        problem = self._problem
        by_hope, by_mean = (
            np.where(
                problem.violations(rows) == 0,
                improvements(problem.minimised(rows)[None], front[None], reference)[0],
                -problem.violations(rows),
            )
            for rows in (hopeful, costs)
        )
        best = [np.argsort(-gains, kind="stable") for gains in (by_mean, by_hope)]
        merged = dict.fromkeys([*best[0][: self._shortlisted // 2].tolist(), *best[1].tolist()])
        return np.array(list(merged)[: self._shortlisted])

    def _reference(self, *fronts: Costs) -> Costs:
        """The objectives' own reference points; a little beyond the worst of the fronts for those that have none."""
        present = np.vstack(fronts) if any(map(len, fronts)) else np.zeros((1, len(self._problem.objectives)))
        fits = self._beliefs.fits()
        constant = [o.key in fits and fits[o.key].predictor == CONSTANT for o in self._problem.objectives]
        spread = np.where(constant, np.maximum(np.abs(present[0]), 1.0), np.ptp(present, axis=0))
        beyond = present.max(axis=0) + _MARGIN * spread
        given = np.array(
            [np.nan if (o.reference is None) else signed(o, o.reference) for o in self._problem.objectives]
        )
        reference = np.where(np.isnan(given), beyond, given)
        return reference if (present < reference).all(axis=1).any() else np.maximum(reference, beyond)

    def _explored_share(self) -> float:
        if not self._options.explore:
            return 0.0
        fits = list(self._beliefs.fits().values())
        told = [fit for fit in fits if fit.predictor != CONSTANT] or fits  # a constant cost among others says nothing
        worst = min((fit.rank_correlation for fit in told), default=1.0)
        return _MOST_EXPLORED * min(1.0, max(0.0, 1 - worst / TRUSTED_CORRELATION))

    def _bred(self, count: int) -> list[Genotype]:
        """New children of the best measured networks."""
        settled = self._beliefs.settled
        if not settled or not count:
            return []
        best = [list(settled)[i] for i in fittest(self._problem, np.array(list(settled.values())), count)]
        children = self._table.distinct(self._table.children(self._table.matrix(best), self._rng, 4 * count))
        return self.ledger.affordable(child for child in children if child not in self.ledger.rows)[:count]

    def _draw(self, count: int) -> list[Genotype]:
        return self.ledger.draw(Random(int(self._rng.integers(2**63))), count)

    def _best_known(self, count: int) -> list[Genotype]:
        """Networks known from elsewhere that are worth asking for first.

        Where whole cost rows are known, their front, with costs under other circumstances for those that are not; where
        some costs are, networks mostly from the good end of those; where none is, somebody found the networks worth
        naming, and they are spread over their sizes.
        """
        problem, related = self._problem, self._settings.related
        known = self.ledger.affordable(self._settings.known)
        rows = np.array([self._settings.known[genotype] for genotype in known]).reshape(-1, len(problem.columns))
        if related:
            blank = (np.nan,) * len(problem.columns)
            rows = np.where(np.isnan(rows), [related.get(genotype, blank) for genotype in known], rows)
        told = np.isfinite(rows) & (np.arange(rows.shape[1]) < len(problem.objectives))
        whole = np.flatnonzero(told.sum(axis=1) == len(problem.objectives))
        if len(whole):
            return [known[whole[i]] for i in fittest(problem, rows[whole], count)]
        partly = np.flatnonzero((told & ~np.array(problem.exact_columns)).any(axis=1))
        if not len(partly):
            return _spread(problem, known, count)
        columns = told[partly].all(axis=0)
        ranks = rows[partly][:, columns].argsort(axis=0, kind="stable").argsort(axis=0, kind="stable").sum(axis=1)
        order = partly[ranks.argsort(kind="stable")]
        quantiles = np.linspace(0, 1, min(count, len(order))) ** 2
        return [known[order[i]] for i in _distinct(quantiles * (len(order) - 1))]


def _without_exact(problem: SearchProblem) -> SearchProblem:
    width = len(problem.columns)
    return replace(problem, exact=lambda rows: np.full((len(rows), width), np.nan), exact_columns=(False,) * width)


def _spread(problem: SearchProblem, genotypes: Sequence[Genotype], count: int) -> list[Genotype]:
    """Genotypes evenly spread over their sizes: the exact costs where there are some, else the options."""
    if not genotypes or not count:
        return []
    exact = problem.exact(genotypes)[:, np.array(problem.exact_columns)]
    scales = np.abs(exact).max(axis=0, initial=1e-12)
    sizes = (exact / scales).sum(axis=1) if exact.shape[1] else np.array([sum(genotype) for genotype in genotypes])
    order = np.argsort(sizes, kind="stable")
    return [genotypes[order[i]] for i in _distinct(np.linspace(0, len(order) - 1, count))]


def _distinct(positions: NDArray[np.float64]) -> list[int]:
    return list(dict.fromkeys(positions.round().astype(int).tolist()))
