"""Which layouts of experts a search finds within 200 evaluations, against five other ways to choose one.

All ways evaluate networks of one space on the same validation text. What a way is worth is the hypervolume of what it
offers (its front on validation) with everything measured again: the loss on test text, the latency end to end.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice

import numpy as np
import torch
from torch.nn import functional

from kernels.device import load_backend
from kernels.op_spec import Context
from nas.algorithm import AlgorithmSettings, Costs, SearchProblem, load_algorithm
from nas.end_to_end import measure_networks
from nas.measuring import latency_table
from predictors.latency_table import LatencyTable
from studies.pareto import hypervolume, non_dominated
from studies.records import Genotype, Objective
from studies.store import StudyStore
from supernets.space import EXPERTS, OPERATOR, TOP_K, Choice, SearchSpace
from supernets.supernet import Supernet
from tests.benchmarks.moe_bench import Bench, load, log_probabilities
from tests.benchmarks.moe_jobs import Job, Key, Row
from tests.benchmarks.moe_operators import Opened

PART = "layouts"
OPERATORS = ("easy-ep", "m-smoe", "mone", "reap")
"""What the search may choose from in every layer; m-smoe is there for its own allocation."""
OBJECTIVES = (
    Objective(name="nll", unit="nats"),
    Objective(name="bytes", unit="B"),
    Objective(name="latency", unit="s"),
)
NLL, BYTES, LATENCY = range(3)
GENES = 3
"""Of a layer: count, top-k, operator."""
WAYS = ("searched", "uniform", "m-smoe threshold", "random", "single objective")
CONTEXT = Context(batch=8, sequences=(128,))
BUDGET = 200
WORST_LOSS = 2.0
"""Nats above the full model: the corner of the hypervolume; bytes and latency end at the full model's."""
SHARES = (25, 50, 75)
POPULATION, ELITE, MOVES, LARGEST_MOVE, GENERATIONS = 32, 4, 3, 4, 50
"""Of EvoESAP (arXiv 2603.06003)."""
FINALISTS = 12
"""Networks of a front that are tested and timed at most."""


@dataclass(frozen=True)
class Layouts:
    """The space of one subject's layouts, calibrated for a scope, and what a genotype costs."""

    bench: Bench
    scope: str
    losses: dict[Genotype, float] = field(default_factory=dict)
    """Validation loss of what was run for it."""
    changes: dict[tuple[int, tuple[int, ...]], Costs] = field(default_factory=dict)
    """Layer and its genes → what they change in the costs of the largest network."""

    @cached_property
    def supernet(self) -> Supernet:
        """All counts that a router allows, all top-k, and `OPERATORS`, for every layer."""
        model, subject = load(self.bench.folder), self.bench.subject
        choices: list[Choice] = []
        for layer in range(self.bench.layers):
            counts = tuple(range(subject.top_k, subject.experts + 1))
            top_k = tuple(k for k in range(1, subject.top_k + 1) if subject.top_k % k == 0)
            numbers = tuple(range(1, len(OPERATORS) + 1))
            choices.append(Choice(axis=EXPERTS, options=counts, layer=layer))
            choices.append(Choice(axis=TOP_K, options=top_k, layer=layer))
            choices.append(Choice(axis=OPERATOR, options=numbers, layer=layer, moot=(EXPERTS, subject.experts)))
        order = tuple(range(self.bench.layers))
        space = SearchSpace("moe", self.bench.layers, order, tuple(choices), {OPERATOR: OPERATORS})
        return Supernet.wrap(model, space, statistics=self.bench.statistics(self.scope))

    @property
    def space(self) -> SearchSpace:
        """The genotypes."""
        return self.supernet.space

    @cached_property
    def store(self) -> StudyStore:
        """Keeps the measurements of this machine."""
        return StudyStore.open(f"sqlite:///{self.bench.folder.parent / 'latency.db'}")

    @cached_property
    def table(self) -> LatencyTable:
        """Of the operations of all layouts."""
        return latency_table(self.supernet, [CONTEXT], self.store, load_backend("cpu"))

    def genotype(self, operator: str, counts: Sequence[int], top_k: int | None = None) -> Genotype:
        """One operator for all layers; the model's top-k unless another is given."""
        wanted = {TOP_K: top_k or self.bench.subject.top_k, OPERATOR: 1 + OPERATORS.index(operator)}
        genes = []
        for choice in self.space.choices:
            assert choice.layer is not None
            value = counts[choice.layer] if choice.axis == EXPERTS else wanted[choice.axis]
            genes.append(choice.options.index(value))
        return self.space.canonical(genes)

    def exact(self, genotypes: Sequence[Genotype]) -> Costs:
        """Bytes and predicted latency; the loss is not known.

        Both add up over the layers, so that what a layer's genes change is computed once.
        """
        rows = [
            self._largest + sum(self._change(layer, genes) for layer, genes in enumerate(_by_layer(genotype)))
            for genotype in genotypes
        ]
        return np.array(rows).reshape(-1, len(OBJECTIVES))

    @cached_property
    def _largest(self) -> Costs:
        return self._composed(self.space.largest)

    def _change(self, layer: int, genes: tuple[int, ...]) -> Costs:
        if (layer, genes) not in self.changes:
            parts = [*_by_layer(self.space.largest)]
            parts[layer] = genes
            composed = self._composed(tuple(gene for part in parts for gene in part))
            self.changes[layer, genes] = composed - self._largest
        return self.changes[layer, genes]

    def _composed(self, genotype: Genotype) -> Costs:
        architecture = self.space.decode(genotype)
        seconds = self.table.predict(self.supernet.ops(architecture, CONTEXT), CONTEXT).seconds
        return np.array([np.nan, 4.0 * self.supernet.count_parameters(architecture), seconds])

    def costs(self, genotypes: Sequence[Genotype]) -> Costs:
        """With the loss on validation text."""
        costs = self.exact(genotypes)
        for genotype in genotypes:
            if genotype not in self.losses:
                self.losses[genotype] = self.loss(genotype, "validation")
        costs[:, NLL] = [self.losses[genotype] for genotype in genotypes]
        return costs

    def loss(self, genotype: Genotype, split: str) -> float:
        """Nats per token."""
        log_NTV, ids_NT = self.log_probabilities(genotype, split), self.bench.sequences(split, self.scope)
        return float(functional.nll_loss(log_NTV.transpose(1, 2), ids_NT[:, 1:]))

    def log_probabilities(self, genotype: Genotype, split: str) -> torch.Tensor:
        """(N, T-1, V) of a layout on the text of a split."""
        with self.supernet.active(self.space.decode(genotype)):
            return log_probabilities(self.supernet, self.bench.sequences(split, self.scope))

    def overlap(self, genotype: Genotype) -> float:
        """``Σ_v min(p, p_full)`` on validation text, mean over tokens."""
        found = torch.minimum(self.log_probabilities(genotype, "validation"), self._full_NTV)
        return float(found.exp().sum(-1).mean())

    def measured(self, genotypes: Sequence[Genotype]) -> list[float]:
        """Seconds of extracted networks on this machine."""
        device = load_backend("cpu")
        found = measure_networks(
            self.supernet,
            [self.space.decode(genotype) for genotype in genotypes],
            CONTEXT,
            device,
            stored=self.store.measurements(device.detect().fingerprint),
            on_measured=lambda one: self.store.put_measurements([one]),
        )
        return [latency.seconds for latency in found]

    @cached_property
    def _full_NTV(self) -> torch.Tensor:
        return self.log_probabilities(self.space.largest, "validation")


def _by_layer(genotype: Genotype) -> Iterator[tuple[int, ...]]:
    """The genes of each layer."""
    return (tuple(genotype[i : i + GENES]) for i in range(0, len(genotype), GENES))


# -- ways to choose ---------------------------------------------------------------------------------------------------


def searched(layouts: Layouts, budget: int, seed: int) -> list[Genotype]:
    """One multi-objective run that starts from a few uniform layouts, which count."""
    tried = [name for name in OPERATORS if name != "m-smoe"]
    start = list(dict.fromkeys(layouts.genotype(name, c) for name in tried for c in _uniform_counts(layouts, 4)))
    known = dict(zip(start, map(tuple, layouts.costs(start).tolist()), strict=True))
    problem = SearchProblem(
        space=layouts.space,
        objectives=OBJECTIVES,
        exact=layouts.exact,
        exact_columns=(False, True, True),
    )
    algorithm = load_algorithm("guided")(problem, AlgorithmSettings(seed=seed, known=known))
    left, seen = budget - len(known), list(known)
    proposal = next(algorithm, [])
    while proposal and left > 0:
        asked = proposal[:left]
        costs = layouts.costs(asked)
        seen, left = seen + asked, left - len(asked)
        if len(asked) < len(proposal):
            break
        proposal = algorithm.send(costs)
    algorithm.close()
    return seen


def uniform(layouts: Layouts, budget: int, seed: int) -> list[Genotype]:
    """REAP and EASY-EP with the same count in every layer, at every count."""
    return [layouts.genotype(name, counts) for name in ("reap", "easy-ep") for counts in _uniform_counts(layouts, 1)]


def threshold(layouts: Layouts, budget: int, seed: int) -> list[Genotype]:
    """M-SMoE's counts (arXiv 2310.01334): usage relative to each layer's most used expert, one threshold for all."""
    statistics = layouts.bench.statistics(layouts.scope)
    usage_LE = torch.stack([statistics.layer(i).counts_E for i in range(layouts.bench.layers)])
    usage_LE = usage_LE / usage_LE.max(1, keepdim=True).values
    least = layouts.bench.subject.top_k
    chosen = []
    for count in range(least, layouts.bench.subject.experts + 1):
        bar = usage_LE.flatten().sort(descending=True).values[count * layouts.bench.layers - 1]
        chosen.append(layouts.genotype("m-smoe", (usage_LE >= bar).sum(1).clamp(min=least).tolist()))
    return chosen


def drawn(layouts: Layouts, budget: int, seed: int) -> list[Genotype]:
    """Random layouts, as many as the search evaluates."""
    rng = random.Random(seed)
    return list(islice(dict.fromkeys(layouts.space.sample(rng) for _ in range(2 * budget)), budget))


def single_objective(layouts: Layouts, budget: int, seed: int) -> list[Genotype]:
    """EvoESAP (arXiv 2603.06003) for each of three budgets of experts: counts in REAP's order, highest overlap wins.

    Its forward passes together are as many as the search's. It offers the best layout of every budget.
    """
    rng = random.Random(seed)
    per_share = budget // len(SHARES)
    return [_evolved(layouts, share, per_share, rng) for share in SHARES]


def _evolved(layouts: Layouts, share: int, evaluations: int, rng: random.Random) -> Genotype:
    subject, layers = layouts.bench.subject, layouts.bench.layers
    size = min(POPULATION, evaluations)
    known: dict[tuple[int, ...], float] = {}
    start = (max(subject.top_k, subject.experts * share // 100),) * layers
    population = [start, *(_moved(start, subject.top_k, subject.experts, rng) for _ in range(size - 1))]
    for _ in range(GENERATIONS):
        for counts in dict.fromkeys(population):
            if counts not in known and len(known) < evaluations:
                known[counts] = layouts.overlap(layouts.genotype("reap", counts))
        ranked = sorted(known, key=lambda counts: -known[counts])
        parents = ranked[: max(ELITE, size // 4)]
        children = [_moved(rng.choice(parents), subject.top_k, subject.experts, rng) for _ in range(size - ELITE)]
        population = [*ranked[:ELITE], *children]
    return layouts.genotype("reap", ranked[0])


def _moved(counts: Sequence[int], least: int, most: int, rng: random.Random) -> tuple[int, ...]:
    """Up to `MOVES` times some experts go from one layer to another; the sum stays."""
    moved = list(counts)
    for _ in range(rng.randint(1, MOVES)):
        giver, taker = rng.sample(range(len(moved)), 2)
        amount = min(rng.randint(1, LARGEST_MOVE), moved[giver] - least, most - moved[taker])
        moved[giver], moved[taker] = moved[giver] - amount, moved[taker] + amount
    return tuple(moved)


def _uniform_counts(layouts: Layouts, step: int) -> Iterator[list[int]]:
    subject = layouts.bench.subject
    for count in range(subject.experts, subject.top_k - 1, -step):
        yield [count] * layouts.bench.layers


CHOOSE: Mapping[str, Callable[[Layouts, int, int], list[Genotype]]] = dict(
    zip(WAYS, (searched, uniform, threshold, drawn, single_objective), strict=True)
)


# -- rows -------------------------------------------------------------------------------------------------------------


def jobs(subject: str, bench: Opened, scope: str, *, budget: int = BUDGET) -> Iterator[Job]:
    """One row for every way, on one subject and scope."""
    for way in WAYS:
        key: Key = {"part": PART, "subject": subject, "scope": scope, "way": way, "budget": budget}
        yield Job(key, _row_of(bench, scope, way, budget))


def _row_of(bench: Opened, scope: str, way: str, budget: int) -> Callable[[], Row]:
    def run() -> Row:
        layouts = Layouts(bench(), scope)
        chosen = CHOOSE[way](layouts, budget, layouts.bench.subject.seed)
        half = _at_half(layouts, chosen)
        offered = list(dict.fromkeys([layouts.space.largest, *_front(layouts, chosen), *half]))
        seconds = layouts.measured(offered)
        tested = [layouts.loss(genotype, "test") for genotype in offered]
        exact = layouts.exact(offered)
        return {
            "chosen": len(chosen),
            "genotypes": [list(genotype) for genotype in offered],
            "test_nll": [round(loss, 5) for loss in tested],
            "bytes": [int(row[BYTES]) for row in exact],
            "seconds": [round(value, 7) for value in seconds],
            "half": None if not half else round(tested[offered.index(half[0])] - tested[0], 5),
        }

    return run


def _front(layouts: Layouts, genotypes: Sequence[Genotype]) -> list[Genotype]:
    """The best on validation in loss and bytes and in loss and latency, evenly thinned out."""
    costs = layouts.costs(genotypes)
    chosen: list[Genotype] = []
    for column in (BYTES, LATENCY):
        mask = non_dominated(costs[:, [NLL, column]])
        front = [genotypes[i] for i in np.argsort(costs[:, column]) if mask[i]]
        step = max(1, -(-len(front) // FINALISTS))
        chosen += front[::step]
    return chosen


def _at_half(layouts: Layouts, genotypes: Sequence[Genotype]) -> list[Genotype]:
    """The best on validation of those that keep at most half the experts, without lowering top-k."""
    subject = layouts.bench.subject
    allowed = []
    for genotype in genotypes:
        kept = [layer.kept(EXPERTS) or subject.experts for layer in layouts.space.decode(genotype).layers]
        if sum(kept) <= subject.experts * layouts.bench.layers // 2:
            allowed.append(genotype)
    if not allowed:
        return []
    costs = layouts.costs(allowed)
    return [allowed[int(costs[:, NLL].argmin())]]


def hypervolumes(row: Row) -> tuple[float, float]:
    """Of (loss, bytes) and of (loss, latency), as shares of the box between the full model and `WORST_LOSS`."""
    loss = np.array(row["test_nll"]) - row["test_nll"][0]
    shares = [np.array(row[name]) / row[name][0] for name in ("bytes", "seconds")]
    by_bytes, by_latency = (
        hypervolume(np.column_stack([loss, share]), (WORST_LOSS, 1.0)) / WORST_LOSS for share in shares
    )
    return by_bytes, by_latency


def won(rows: Iterable[Row]) -> bool:
    """Whether the search beats every other way in both hypervolumes."""
    found = {row["way"]: hypervolumes(row) for row in rows}
    mine = found["searched"]
    others = [volumes for way, volumes in found.items() if way != "searched"]
    return all(mine[i] > volumes[i] for volumes in others for i in (0, 1))
