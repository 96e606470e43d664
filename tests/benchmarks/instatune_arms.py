"""The arms of the InstaTune benchmark: everything that is trained, each with a stated budget.

One unit of cost is one forward-backward pass of the full network on one batch; a sub-network costs its share of the
full network's multiply-accumulates. After (a), every arm starts from the weights of the same teacher, distils from it,
sees the same batches in the same order, and uses the same optimiser and learning rate; only (b) has the lower rate
that suits it better. Arms, as in ``docs``:

    plain            (a) full model, hard labels; the teacher of the seed's other arms
    distilled        (b) full model, the supernet's distillation and steps
    supernet         InstaTune supernet, searched on validation for the best network at half latency
    supernet_at_e    the same supernet, searched for the best network at the latency of (e)
    random           (c) random sub-networks of that supernet at half latency
    unordered        (d) a supernet without importance ordering, same search
    every_second     (e) every second layer, trained alone for the supernet's whole budget (as DistilBERT's student)
    pruned           (f) the distilled full model, heads and neurons cut once by importance, trained on for the rest of
                     the supernet's budget
    int8             (g) torch's dynamic quantisation of (b) and of the found networks
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from supernets.evaluation import evaluate, predict_logits
from supernets.importance import measure_importance
from supernets.recipe import distilled, plain_recipe
from supernets.space import FFN_WIDTH, HEADS, Architecture
from supernets.supernet import Supernet
from supernets.task import TRAIN, VALIDATION, Batch
from tests.benchmarks.instatune_bench import (
    IMPORTANCE_BATCHES,
    ORDER_FRACTION,
    RECIPE,
    RECOVERY_STEPS,
    STEPS,
    Bench,
    Row,
    architecture_of,
    best_within,
    described,
    quality,
)

TARGET = 0.46  # of the full predicted latency; leaves the measured one below one half despite the error of the table
RANDOM_NETWORKS = 5
SECOND_LEARNING_RATE = 1e-4
"""Of (b), a full model that is trained a second time. Both rates were chosen on validation, on seeds 10 and 11: plain
fine-tuning had 0.8637 at 2e-4 and 0.8620 at 1e-4, distillation after it 0.8687 and 0.8697."""


# -- arms: each returns its rows --------------------------------------------------------------------------------------


def plain(bench: Bench, seed: int) -> list[Row]:
    """(a), which is also the teacher of all other arms of the seed."""
    network = Supernet.fixed(bench.fresh(seed))
    seconds = bench.train(network, bench.settings(seed, plain_recipe()), seed)
    logits, _ = predict_logits(network, bench.task, TRAIN, precision=bench.precision)
    bench.keep(f"plain-{seed}", {"logits": logits, "model": network.model.state_dict()})
    return [{"point": "full", **quality(bench, network), "cost": STEPS, "seconds": seconds}]


def distilled_full(bench: Bench, seed: int) -> list[Row]:
    """(b)."""
    network = Supernet.fixed(bench.taught(seed))
    settings = replace(bench.settings(seed, distilled(RECIPE)), learning_rate=SECOND_LEARNING_RATE)
    seconds = bench.train(network, settings, seed)
    bench.keep(f"distilled-{seed}", network.model.state_dict())
    return [{"point": "full", **quality(bench, network), "cost": STEPS, "seconds": seconds}]


def supernet(bench: Bench, seed: int) -> list[Row]:
    """Ours: the largest network, and the best found at half latency, inherited and recovered."""
    return _supernet(bench, seed, "supernet", ORDER_FRACTION)


def unordered(bench: Bench, seed: int) -> list[Row]:
    """(d): units and layers stay as pre-trained, and are elastic from the first step."""
    return _supernet(bench, seed, "unordered", -1.0)


def _supernet(bench: Bench, seed: int, name: str, order_fraction: float) -> list[Row]:
    net = Supernet.wrap(bench.taught(seed))
    seconds = bench.train(net, bench.settings(seed, RECIPE, order_fraction=order_fraction), seed)
    bench.keep(f"{name}-{seed}", {"model": net.model.state_dict(), "order": list(net.space.layer_order)})
    largest = net.space.decode(net.space.largest)
    cost = bench.supernet_cost(net, seed)
    with net.active(largest):
        rows = [{"point": "full", **quality(bench, net), "cost": cost, "seconds": seconds}]
    found = best_within(bench, net, TARGET, seed)
    return rows + _inherited_and_recovered(bench, net, found, seed, cost, keep=f"found-{name}-{seed}")


def _inherited_and_recovered(
    bench: Bench, net: Supernet, architecture: Architecture, seed: int, cost: float, keep: str = ""
) -> list[Row]:
    shape = described(bench, net, architecture)
    with net.active(architecture):
        inherited = {"point": "inherited", **quality(bench, net), "cost": cost, **shape}
    network = Supernet.fixed(net.extract(architecture))
    before = deepcopy(network.model.state_dict())
    seconds = bench.train(network, bench.settings(seed, distilled(RECIPE), RECOVERY_STEPS), seed)
    after = quality(bench, network)
    kept = after["validation"] >= inherited["validation"]
    if not kept:
        network.model.load_state_dict(before)
    if keep:
        bench.keep(keep, {"model": network.model.state_dict(), "architecture": architecture.to_json()})
    written = {name: (after if kept else inherited)[name] for name in after}
    cost += RECOVERY_STEPS * shape["cost_share"]
    recovered = {"point": "recovered", **written, "cost": cost, "seconds": seconds, "kept": kept, **shape}
    return [inherited, recovered]


def random_networks(bench: Bench, seed: int) -> list[Row]:
    """(c): random sub-networks of the seed's supernet that are as slow as the found one; the first one recovers."""
    net = _trained_supernet(bench, seed)
    rng = random.Random(f"random networks {seed}")
    chosen: list[Architecture] = []
    while len(chosen) < RANDOM_NETWORKS:
        candidate = net.space.decode(net.space.sample(rng))
        if 0.9 * TARGET < bench.latency_share(net, candidate) <= TARGET:
            chosen.append(candidate)
    cost = bench.supernet_cost(net, seed)
    rows = _inherited_and_recovered(bench, net, chosen[0], seed, cost)
    for other in chosen[1:]:
        with net.active(other):
            rows.append({"point": "inherited", **quality(bench, net), "cost": cost, **described(bench, net, other)})
    return rows


def every_second(bench: Bench, seed: int) -> list[Row]:
    """(e): layers 0, 2, 4, ... of the teacher, trained alone for the supernet's budget and its recovery."""
    net = Supernet.wrap(bench.taught(seed))
    return [_train_alone(bench, net, _every_second_layer(net), seed, spent=0.0)]


def supernet_at_e(bench: Bench, seed: int) -> list[Row]:
    """Ours at the latency of (e), which is what it is and not half."""
    net = _trained_supernet(bench, seed)
    target = bench.latency_share(net, _every_second_layer(net))
    found = best_within(bench, net, target, seed)
    return _inherited_and_recovered(bench, net, found, seed, bench.supernet_cost(net, seed))


def pruned(bench: Bench, seed: int) -> list[Row]:
    """(f): heads and neurons of the distilled model cut by importance to half latency, then trained on."""
    net = Supernet.wrap(bench.taught(seed))
    net.model.load_state_dict(bench.load(f"distilled-{seed}"))
    batches = list(islice(bench.task.batches(TRAIN, 32, seed=seed), IMPORTANCE_BATCHES))

    def loss(batch: Batch) -> Tensor:
        assert batch.labels is not None
        return bench.task.loss(net(**batch.inputs).logits, batch.labels)

    net.reorder(measure_importance(net, batches, loss).orders)
    sizes = {choice.axis: choice.options for choice in net.space.choices}
    layers = tuple(range(net.space.num_layers))
    shapes = [_uniform(net, layers, heads, width) for heads in sizes[HEADS] for width in sizes[FFN_WIDTH]]
    fitting = sorted(
        (a for a in shapes if bench.latency_share(net, a) <= TARGET), key=lambda a: -bench.latency_share(net, a)
    )

    def validation(architecture: Architecture) -> float:
        with net.active(architecture):
            return -evaluate(net, bench.task, VALIDATION, precision=bench.precision).error

    best = max(fitting[:4], key=validation)
    with net.active(best):
        before = {"point": "inherited", **quality(bench, net), "cost": STEPS, **described(bench, net, best)}
    return [before, _train_alone(bench, net, best, seed, spent=STEPS)]


def int8(bench: Bench, seed: int) -> list[Row]:
    """(g): dynamic quantisation of the distilled full model, and of the found network after recovery."""
    full = bench.taught(seed)
    full.load_state_dict(bench.load(f"distilled-{seed}"))
    found = bench.load(f"found-supernet-{seed}")
    net = Supernet.wrap(bench.taught(seed))
    architecture = architecture_of(found["architecture"])
    network = net.extract(architecture)
    network.load_state_dict(found["model"])
    shape = described(bench, net, architecture)
    return [
        {"point": "full", **quality(bench, quantised(full), "float32")},
        {"point": "recovered", **quality(bench, quantised(network), "float32"), **shape},
    ]


def quantised(network: nn.Module) -> Any:
    """Linear layers with int8 weights and inputs that are quantised on the fly."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        quantise: Any = torch.ao.quantization.quantize_dynamic
        return quantise(network.eval(), {nn.Linear}, dtype=torch.qint8)


ARMS: dict[str, Callable[[Bench, int], list[Row]]] = {
    "plain": plain,
    "distilled": distilled_full,
    "supernet": supernet,
    "every_second": every_second,
    "supernet_at_e": supernet_at_e,
    "random": random_networks,
    "unordered": unordered,
    "pruned": pruned,
    "int8": int8,
}

NEEDS = {
    "plain": (),
    "distilled": ("plain",),
    "supernet": ("plain",),
    "every_second": ("plain",),
    "supernet_at_e": ("plain", "supernet"),
    "random": ("plain", "supernet"),
    "unordered": ("plain",),
    "pruned": ("plain", "distilled"),
    "int8": ("plain", "distilled", "supernet"),
}
"""Arms whose trained weights an arm starts from."""


def run_arm(bench: Bench, arm: str, seed: int) -> list[Row]:
    """Rows of an arm; weights that it needs and that are not kept any more are trained again first."""
    for needed in NEEDS[arm]:
        if bench.load(f"{needed}-{seed}") is None:
            run_arm(bench, needed, seed)
    return ARMS[arm](bench, seed)


def _train_alone(bench: Bench, net: Supernet, architecture: Architecture, seed: int, spent: float) -> Row:
    """Train one network until its total cost is that of the supernet and the recovery of what was found."""
    network = Supernet.fixed(net.extract(architecture))
    shape = described(bench, net, architecture)
    budget = bench.supernet_cost(net, seed) + RECOVERY_STEPS * TARGET
    steps = round((budget - spent) / shape["cost_share"])
    seconds = bench.train(network, bench.settings(seed, distilled(RECIPE), steps), seed)
    cost = spent + steps * shape["cost_share"]
    return {"point": "recovered", **quality(bench, network), "cost": cost, "steps": steps, "seconds": seconds, **shape}


def _trained_supernet(bench: Bench, seed: int) -> Supernet:
    """The seed's supernet as it was after training."""
    kept = bench.load(f"supernet-{seed}")
    net = Supernet.wrap(bench.taught(seed))
    net.model.load_state_dict(kept["model"])
    net.space = net.space.reordered(kept["order"])
    net.model.eval()
    return net


def _every_second_layer(net: Supernet) -> Architecture:
    return _uniform(net, tuple(range(0, net.space.num_layers, 2)))


def _uniform(
    net: Supernet, layers: tuple[int, ...], heads: int | None = None, width: int | None = None
) -> Architecture:
    """The same size in all given layers; None is the full size."""
    heads = heads or net.config.num_attention_heads
    width = width or net.config.intermediate_size
    return architecture_of([{"index": layer, HEADS: heads, FFN_WIDTH: width} for layer in layers])
