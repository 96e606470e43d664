"""The supernets that the study compares: recipes of the product, alone and with a mixture, and two supernets in one's
memory. All train for the same time: as many steps each as fit into `BUDGET` steps of plain fine-tuning of the full
network, by the pace that was measured step by step beside such steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from supernets.estimate import estimate
from supernets.finetune import Tuner
from supernets.mixture import Mixture
from supernets.recipe import load_recipe, plain_recipe
from supernets.space import Architecture, SearchSpace
from supernets.supernet import Supernet
from supernets.task import TRAIN
from tests.benchmarks.mos_bench import (
    SUPERNET_BATCH_SIZE,
    Bench,
    Row,
    half_spaces,
    run_to_end,
    spread_by_size,
    steps_to,
)

BUDGET = 150
PACED_STEPS = 20
ONWARD_NETWORKS, ONWARD_EVERY = 3, 20
"""Networks that are trained on from inherited weights, and steps between two looks at them."""

LAYER, NEURON = {"kind": "layer", "experts": 2}, {"kind": "neuron", "experts": 2}
LOW_RANK = {"kind": "layer", "experts": 2, "rank": 16}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train.

    Attributes:
        mixture: arguments of `Mixture.over`; empty for plain weight sharing.
        halves: two supernets, for the shallow and the deep half of the space, instead of one.
        times: how many times as long as the others.
    """

    recipe: str
    mixture: Mapping[str, Any] = field(default_factory=dict)
    halves: bool = False
    times: int = 1

    def supernets(self, bench: Bench, seed: int) -> list[Supernet]:
        """The untrained supernets."""
        parts: Sequence[SearchSpace] = half_spaces(bench.space) if self.halves else (bench.space,)
        nets = [bench.supernet(space) for space in parts]
        for net in nets if self.mixture else ():
            Mixture.over(net, **self.mixture, seed=seed)
        return nets


ARMS = {
    "single-path": Arm(recipe="single-path"),
    "instatune": Arm(recipe="instatune"),
    "sandwich": Arm(recipe="sandwich"),
    "sandwich-distilled": Arm(recipe="sandwich-distilled"),
    "strong-teacher": Arm(recipe="strong-teacher"),
    "instatune + layer": Arm(recipe="instatune", mixture=LAYER),
    "instatune + neuron": Arm(recipe="instatune", mixture=NEURON),
    "instatune + low rank": Arm(recipe="instatune", mixture=LOW_RANK),
    "sandwich-distilled + layer": Arm(recipe="sandwich-distilled", mixture=LAYER),
    "sandwich-distilled + neuron": Arm(recipe="sandwich-distilled", mixture=NEURON),
    "sandwich-distilled + low rank": Arm(recipe="sandwich-distilled", mixture=LOW_RANK),
    "single-path + neuron": Arm(recipe="single-path", mixture=NEURON),
    "instatune + neuron, m = 4": Arm(recipe="instatune", mixture={**NEURON, "experts": 4}),
    "instatune, 2 supernets": Arm(recipe="instatune", halves=True),
    "single-path-distilled": Arm(recipe="single-path-distilled"),
    "single-path-distilled + layer": Arm(recipe="single-path-distilled", mixture=LAYER),
    "single-path-distilled + neuron": Arm(recipe="single-path-distilled", mixture=NEURON),
    "single-path-distilled + low rank": Arm(recipe="single-path-distilled", mixture=LOW_RANK),
    "instatune, 4 x": Arm(recipe="instatune", times=4),
    "single-path-distilled, 4 x": Arm(recipe="single-path-distilled", times=4),
    "single-path-distilled + layer, 4 x": Arm(recipe="single-path-distilled", mixture=LAYER, times=4),
}


def plain_twin(name: str) -> str:
    """The arm with the same recipe, as long, and nothing else."""
    plain = Arm(recipe=ARMS[name].recipe, times=ARMS[name].times)
    return next(other for other, arm in ARMS.items() if arm == plain)


def measure_pace(bench: Bench, name: str) -> Row:
    """How long a step takes in steps of plain fine-tuning, one after the other on the same batches; and what memory."""
    nets = ARMS[name].supernets(bench, seed=0)
    recipe = load_recipe(ARMS[name].recipe)
    ratios, memory = [], 0
    for net in nets:
        tuner = bench.tuner(net, recipe, PACED_STEPS, seed=0)
        memory += estimate(net, bench.task, tuner.settings).memory_bytes
        plain = bench.tuner(Supernet.fixed(bench.supernet().unwrap()), plain_recipe(), PACED_STEPS, seed=0)
        ratios.append(_pace(bench, tuner, plain))
    return {"ratios": ratios, "memory_bytes": memory}


def _pace(bench: Bench, tuner: Tuner, plain: Tuner) -> float:
    seconds = {tuner: 0.0, plain: 0.0}
    for number, batch in enumerate(islice(bench.task.batches(TRAIN, SUPERNET_BATCH_SIZE, seed=0), PACED_STEPS)):
        for one in (plain, tuner):
            start = time.process_time()
            one.train_step(batch)
            seconds[one] += (time.process_time() - start) * (number > 1)
    return seconds[tuner] / seconds[plain]


def train_arm(bench: Bench, name: str, seed: int, ratios: Sequence[float]) -> Row:
    """Train an arm for its time and ask what all networks inherit from it; seed 0 also trains some of them on."""
    arm = ARMS[name]
    nets = arm.supernets(bench, seed)
    steps = [max(1, round(arm.times * BUDGET / len(nets) / ratio)) for ratio in ratios]
    seconds = 0.0
    for net, count in zip(nets, steps, strict=True):
        seconds += run_to_end(bench.tuner(net, load_recipe(arm.recipe), count, seed))
    holder = _holder(nets)
    losses, accuracies = bench.qualities(holder)
    onward = []
    for number in spread_by_size(bench, ONWARD_NETWORKS) if seed == 0 else ():
        onward.append(steps_to(bench, holder(bench.architectures[number]), number, seed, ONWARD_EVERY))
    return {"steps": steps, "seconds": seconds, "losses": losses, "accuracies": accuracies, "onward": onward}


def _holder(nets: Sequence[Supernet]) -> Callable[[Architecture], Supernet]:
    """The supernet whose space holds a network."""

    def holder(architecture: Architecture) -> Supernet:
        return next(net for net in nets if len(architecture.layers) in net.space.choices[0].options)

    return holder
