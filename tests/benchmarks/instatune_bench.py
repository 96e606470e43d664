"""What the arms of the InstaTune benchmark share: budgets, data, teacher, costs, quality, and the search."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from kernels.op_spec import Context
from nas.algorithm import load_algorithm
from nas.objective import Bindings
from nas.problem import build_problem, study_for
from nas.search import run
from nas.settings import SearchSettings
from predictors.latency_table import LatencyTable
from studies.store import StudyStore
from supernets.checkpoint import load_classifier
from supernets.evaluation import evaluate, predict_logits
from supernets.finetune import TuneSettings, tune
from supernets.recipe import Recipe
from supernets.space import Architecture, LayerChoice
from supernets.supernet import Supernet
from supernets.task import TEST, VALIDATION, Task

STEPS = 300
RECOVERY_STEPS = 100
SEARCH_BUDGET = 80
SEARCH_EXAMPLES = 750
FINALISTS = 5
IMPORTANCE_BATCHES = 4
RECIPE = Recipe()
LEARNING_RATE = 2e-4
ORDER_FRACTION = 0.0

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all arms share.

    Attributes:
        table: latency table of this machine, on which half latency is defined during search.
        cache: trained weights that later arms of the same seed start from.
        precision: of training and of qualities; bfloat16 where the processor has it.
    """

    task: Task
    base: str
    table: LatencyTable
    context: Context
    cache: Path
    precision: Literal["float32", "bfloat16"]

    def fresh(self, seed: int) -> nn.Module:
        """The pre-trained model with a head drawn from the seed."""
        return load_classifier(self.base, self.task.labels, seed).model

    def taught(self, seed: int) -> nn.Module:
        """The seed's teacher, from which every arm but the first starts."""
        model = self.fresh(seed)
        model.load_state_dict(self.load(f"plain-{seed}")["model"])
        return model

    def settings(self, seed: int, recipe: Recipe, steps: int = STEPS, order_fraction: float = -1.0) -> TuneSettings:
        """The optimiser settings of every arm."""
        return TuneSettings(
            steps=steps,
            learning_rate=LEARNING_RATE,
            recipe=recipe,
            order_fraction=order_fraction,
            importance_batches=IMPORTANCE_BATCHES,
            precision=self.precision,
            seed=seed,
            watched_examples=0,
        )

    def train(self, network: Supernet, settings: TuneSettings, seed: int) -> float:
        """Train with the seed's teacher (if it exists yet); returns the seconds it took."""
        teacher = self.load(f"plain-{seed}")
        start = time.monotonic()
        tune(network, self.task, settings, teacher_logits_NC=None if teacher is None else teacher["logits"])
        return time.monotonic() - start

    def keep(self, name: str, content: Any) -> None:
        """Store tensors for a later arm; complete or not at all."""
        self.cache.mkdir(parents=True, exist_ok=True)
        partial = self.cache / f"{name}.partial"
        torch.save(content, partial)
        partial.replace(self.cache / f"{name}.pt")

    def load(self, name: str) -> Any:
        """What `keep` stored, or None."""
        path = self.cache / f"{name}.pt"
        return torch.load(path, weights_only=True) if path.exists() else None

    def latency_share(self, net: Supernet, architecture: Architecture) -> float:
        """Predicted latency as a share of the full network's."""
        seconds = [
            self.table.predict(net.ops(a, self.context), self.context).seconds
            for a in (architecture, net.space.decode(net.space.largest))
        ]
        return seconds[0] / seconds[1]

    def cost_share(self, net: Supernet, architecture: Architecture) -> float:
        """Multiply-accumulates as a share of the full network's."""
        full = net.count_macs(net.space.decode(net.space.largest), self.context)
        return net.count_macs(architecture, self.context) / full

    def supernet_cost(self, net: Supernet, seed: int) -> float:
        """Cost of supernet training: every full and every sampled pass."""
        settings = self.settings(seed, RECIPE, order_fraction=ORDER_FRACTION)
        steps = range(settings.order_step, STEPS)
        sampled = [a for step in steps for (a,) in RECIPE.sample(net.space, seed, step)]
        return STEPS + sum(self.cost_share(net, a) for a in sampled)


def quality(bench: Bench, network: Callable[..., Any], precision: Literal["float32", "bfloat16"] | None = None) -> Row:
    """Validation accuracy, test accuracy and, for paired comparisons, which test sentences were right (hex)."""
    precision = precision or bench.precision
    logits, labels = predict_logits(network, bench.task, TEST, precision=precision)
    right = (logits.argmax(-1) == labels).tolist()
    bits = "".join("1" if correct else "0" for correct in right)
    return {
        "validation": 1 - evaluate(network, bench.task, VALIDATION, precision=precision).error,
        "test": sum(right) / len(right),
        "right": f"{int(bits, 2):x}",
        "examples": len(right),
    }


def described(bench: Bench, net: Supernet, architecture: Architecture) -> Row:
    """The architecture in a row, with its shares of latency (predicted) and of cost (counted)."""
    return {
        "architecture": architecture.to_json(),
        "predicted_ratio": bench.latency_share(net, architecture),
        "cost_share": bench.cost_share(net, architecture),
    }


def best_within(bench: Bench, net: Supernet, target: float, seed: int) -> Architecture:
    """The best network found within a share of the full predicted latency.

    The product's loop searches on part of validation; of the best few, the best on all of validation is taken.
    """
    bindings = Bindings(
        supernet=net,
        task=bench.task,
        context=bench.context,
        table=bench.table,
        examples=SEARCH_EXAMPLES,
        precision=bench.precision,
        seed=seed,
    )
    full = bench.table.predict(net.ops(net.space.decode(net.space.largest), bench.context), bench.context).seconds
    limits = {"latency": 1e3 * target * full}
    settings = SearchSettings(algorithm="linas", limits=limits, budget=SEARCH_BUDGET, seed=seed)
    problem, evaluator = build_problem(settings.objectives, settings.limits, bindings)
    store = StudyStore.open("sqlite://")
    algorithm = load_algorithm(settings.algorithm)(problem, settings.algorithm_settings)
    run(problem, algorithm, evaluator, store, study_for(settings, problem, bindings, {}))
    errors = {e.genotype: value.number for e in store.evaluations(settings.study_name) if (value := e.value("error"))}
    finalists = [net.space.decode(g) for g in sorted(errors, key=lambda g: (errors[g], g))[:FINALISTS]]

    def error(architecture: Architecture) -> float:
        with net.active(architecture):
            return evaluate(net, bench.task, VALIDATION, precision=bench.precision).error

    return min(finalists, key=error)


def architecture_of(content: list[dict[str, int]]) -> Architecture:
    """Read what `Architecture.to_json` wrote."""
    layers = [dict(layer) for layer in content]
    return Architecture(
        tuple(LayerChoice(index=layer.pop("index"), units=tuple(sorted(layer.items()))) for layer in layers)
    )
