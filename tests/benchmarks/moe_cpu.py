"""The mixture-of-experts layer on the CPU: ours against transformers' grouped product and its eager loop.

All three run in one process in turns, on one thread, by thread CPU time, and get the same routing, which is another one
in every turn. A ratio is the median over the turns of the two times of a turn.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import geometric_mean, median

import torch
from torch import Tensor
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from kernels.experts_implementation import register_experts
from kernels.experts_rule import path_for
from tests.benchmarks import expert_products
from tests.benchmarks.common import finish, print_table, quiet

ROUTINGS = 8
WARMUPS = 2


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of one layer and its input."""

    hidden: int
    experts: int
    width: int
    top_k: int
    tokens: int

    @property
    def name(self) -> str:
        """``256,8,512,2,T=256``."""
        return f"{self.hidden},{self.experts},{self.width},{self.top_k},T={self.tokens}"

    @property
    def path(self) -> str:
        """What the rule takes."""
        return path_for(self.tokens, self.top_k, self.experts, self.hidden, self.width)


SHAPES = (
    Shape(256, 8, 512, 2, 256),
    Shape(256, 64, 128, 8, 256),
    Shape(512, 16, 512, 2, 512),
    Shape(512, 64, 256, 2, 512),
    Shape(1024, 8, 1024, 2, 256),
    Shape(512, 16, 512, 2, 1),
    Shape(512, 64, 256, 8, 16),
)
IMPLEMENTATIONS = ("grouped_mm", "eager", register_experts())
OURS = IMPLEMENTATIONS[-1]


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40, help="turns per shape")
    parser.add_argument("--full", action="store_true", help="measure the rule's table again, and store it")
    parser.add_argument("--threads", type=int, default=1, help="intra-op threads; wall time if more than one")
    given = parser.parse_args()
    quiet()
    torch.set_num_threads(given.threads)
    if given.full:
        expert_products.store(expert_products.measure(rounds=5))
    rule = report_rule()
    rows = [
        race(shape, given.rounds, time.thread_time if given.threads == 1 else time.perf_counter) for shape in SHAPES
    ]
    head = (
        "hidden, experts, width, k",
        "path",
        "ours, ms",
        "grouped_mm ÷ ours",
        "worst quarter",
        "eager ÷ ours",
        "error",
    )
    print_table(head, rows)
    over_grouped = {shape.name: round(float(row[3]), 3) for shape, row in zip(SHAPES, rows, strict=True)}
    over_eager = {shape.name: round(float(row[5]), 3) for shape, row in zip(SHAPES, rows, strict=True)}
    ratio = {
        "geometric_mean": round(geometric_mean(over_grouped.values()), 3),
        "worst": min(over_grouped.values()),
        "one_token_vs_eager": min(over_eager[shape.name] for shape in SHAPES if shape.tokens == 1),
        "shapes": over_grouped,
        "shapes_vs_eager": over_eager,
    }
    finish({"moe_cpu_ratio": ratio, "threads": given.threads, "rounds": given.rounds, "rule": rule})


def report_rule() -> dict[str, object]:
    """Fit the stored table again and say what the rule loses on it."""
    table = expert_products.stored()
    fitted, used = expert_products.fit(table), expert_products.in_use()
    print_table(("constant", "in use", "fitted"), [(name, str(used[name]), str(fitted[name])) for name in used])
    losses = {"rule": expert_products.regret(table), "plain": expert_products.regret(table, "plain")}
    print(
        f"time over that of the best form, {len(table)} products:",
        {name: round(loss, 3) for name, loss in losses.items()},
    )
    return {"agrees": fitted == used, **{f"regret_{name}": round(value, 3) for name, value in losses.items()}}


def race(shape: Shape, rounds: int, clock: Callable[[], float]) -> tuple[str, str, float, float, float, float, float]:
    """One row of the table."""
    layer, config, inputs = build(shape)
    error, times = 0.0, {name: list[float]() for name in IMPLEMENTATIONS}
    order = random.Random(0)
    with torch.inference_mode():
        for turn in range(-WARMUPS, rounds):
            results = {}
            for name in order.sample(IMPLEMENTATIONS, len(IMPLEMENTATIONS)):
                config._experts_implementation = name
                start = clock()
                results[name] = layer(*inputs[turn % ROUTINGS])
                if turn >= 0:
                    times[name].append(clock() - start)
            error = max(error, float((results[OURS] - results["eager"]).abs().max() / results["eager"].abs().max()))
    ours = times[OURS]
    grouped = sorted(other / mine for other, mine in zip(times["grouped_mm"], ours, strict=True))
    eager = median(other / mine for other, mine in zip(times["eager"], ours, strict=True))
    row = (1e3 * median(ours), median(grouped), grouped[len(grouped) // 4], eager, error)
    return (shape.name, shape.path, *row)


def build(shape: Shape) -> tuple[MixtralExperts, MixtralConfig, Sequence[tuple[Tensor, Tensor, Tensor]]]:
    """A layer of random weights, and tokens with uniformly random routing."""
    torch.manual_seed(0)
    config = MixtralConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.width,
        num_local_experts=shape.experts,
        num_experts_per_tok=shape.top_k,
    )
    layer = MixtralExperts(config).eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.05)
    inputs = []
    for _ in range(ROUTINGS):
        weights, chosen = torch.randn(shape.tokens, shape.experts).softmax(-1).topk(shape.top_k)
        inputs.append((torch.randn(shape.tokens, shape.hidden), chosen, weights / weights.sum(-1, keepdim=True)))
    return layer, config, inputs


if __name__ == "__main__":
    main()
