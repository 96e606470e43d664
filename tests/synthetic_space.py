"""A synthetic elastic transformer with 25 genes, whose costs are formulas: 7 depths, 12 layers of heads and widths.

The error has what real super-networks show: diminishing returns in every layer, layers of unequal importance, heads and
widths that need each other, a loss that grows with the dropped layers, and a residual of every architecture that
nothing predicts. The latency has launch floors and tiles of the kernels, so that it is a staircase in the widths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b

import numpy as np

from nas.algorithm import Costs, SearchProblem
from studies.records import Genotype, Objective
from supernets.space import DEPTH, FFN_WIDTH, HEADS, Choice, SearchSpace

LAYERS = 12
REFERENCE = {"error": 0.46, "latency": 30.0, "parameters": 90.0}
"""The worst costs that count in a hypervolume."""
IDEAL = {"error": 0.14, "latency": 4.0, "parameters": 10.0}
"""About as good as each cost alone can be; with the reference it scales a hypervolume to between 0 and 1."""
RESIDUAL = 0.002
"""Standard deviation of what is peculiar to one architecture."""

_UNITS = {"error": "fraction", "latency": "ms", "parameters": "millions"}
_HEAD_SIZE, _HIDDEN, _TILE = 64, 768, 1024
_IMPORTANCE_L = 0.6 + 0.8 * np.abs(np.sin(1.7 * np.arange(LAYERS) + 0.4))
_HEAD_SHARE_L = 0.35 + 0.3 * np.cos(1.1 * np.arange(LAYERS)) ** 2


def synthetic_space() -> SearchSpace:
    """Depth 6 to 12; 4, 6, 8 or 12 heads and a width of 512 to 3072 in every layer. The middle layers drop first."""
    choices = [Choice(axis=DEPTH, options=tuple(range(6, LAYERS + 1)))]
    for layer in range(LAYERS):
        choices.append(Choice(axis=HEADS, layer=layer, options=(4, 6, 8, 12)))
        choices.append(Choice(axis=FFN_WIDTH, layer=layer, options=tuple(range(512, 3073, 512))))
    order = sorted(range(LAYERS), key=lambda layer: (-abs(layer - 6.4), layer))
    return SearchSpace("synthetic", LAYERS, tuple(order), tuple(choices))


def synthetic_costs(space: SearchSpace, genotypes: Sequence[Genotype], names: Sequence[str]) -> Costs:
    """Cost rows ``[genotypes, names]`` of canonical genotypes: error, latency, parameters."""
    heads_PL, width_PL = _sizes(space, genotypes)
    columns: dict[str, Callable[[], Costs]] = {
        "error": lambda: (
            np.array([_error(*sizes) for sizes in zip(heads_PL, width_PL, strict=True)])
            + RESIDUAL * np.array([_residual(genotype) for genotype in genotypes])
        ),
        "latency": lambda: _latency(heads_PL, width_PL),
        "parameters": lambda: (4 * _HIDDEN * _HEAD_SIZE * heads_PL + 2 * _HIDDEN * width_PL).sum(axis=1) / 1e6,
    }
    return np.array([columns[name]() for name in names]).T.reshape(-1, len(names))


def synthetic_problem(
    names: Sequence[str] = ("error", "latency"),
    *,
    exact: Sequence[str] = ("latency", "parameters"),
    limits: Mapping[int, float] | None = None,
) -> SearchProblem:
    """The search over some of the costs; those of `exact` are known without an evaluation."""
    space = synthetic_space()
    computed = [column for column, name in enumerate(names) if name in exact]

    def exact_costs(genotypes: Sequence[Genotype]) -> Costs:
        costs = np.full((len(genotypes), len(names)), np.nan)
        costs[:, computed] = synthetic_costs(space, genotypes, [names[column] for column in computed])
        return costs

    return SearchProblem(
        space=space,
        objectives=tuple(Objective(name=name, unit=_UNITS[name], reference=REFERENCE[name]) for name in names),
        exact=exact_costs,
        exact_columns=tuple(name in exact for name in names),
        limits=limits or {},
    )


def _sizes(space: SearchSpace, genotypes: Sequence[Genotype]) -> tuple[Costs, Costs]:
    """Heads and widths ``[genotypes, layers]``, 0 where a layer is dropped."""
    genes_PG = np.array(genotypes, dtype=np.int64).reshape(-1, len(space))
    rank_L = np.argsort(space.layer_order)
    kept_PL = rank_L < np.array(space.choices[0].options)[genes_PG[:, 0], None]
    heads_PL, width_PL = np.array(space.choices[1].options)[genes_PG[:, 1::2]], 512.0 * (1 + genes_PG[:, 2::2])
    return np.asarray(heads_PL * kept_PL, dtype=np.float64), np.asarray(width_PL * kept_PL, dtype=np.float64)


def _error(heads_L: Costs, width_L: Costs) -> float:
    attention_L = 1 - np.exp(-heads_L / 4)
    mixing_L = 1 - np.exp(-width_L / 900)
    layer_L = _HEAD_SHARE_L * attention_L + (1 - _HEAD_SHARE_L) * mixing_L + 0.3 * attention_L * mixing_L
    kept_L = heads_L > 0
    # A layer that feeds on a weak one before it can use less of its own capacity, and thin neighbours hurt each other.
    kept = layer_L[kept_L]
    before = np.concatenate([[1.0], kept[:-1]])
    capacity = float((_IMPORTANCE_L[kept_L] * kept * (0.4 + 0.6 * before)).sum())
    bottlenecks = float((np.maximum(0, 0.9 - kept[1:]) * np.maximum(0, 0.9 - kept[:-1])).sum())
    return 0.135 + 0.6 * float(np.exp(-capacity / 3.4)) + 0.06 * bottlenecks


def _latency(heads_PL: Costs, width_PL: Costs) -> Costs:
    attention_PL = np.maximum(0.25, 0.06 * heads_PL)
    mixing_PL = np.maximum(0.3, 0.35 * np.ceil(width_PL / _TILE) + 0.0002 * width_PL)
    return np.asarray(1.0 + ((0.1 + attention_PL + mixing_PL) * (heads_PL > 0)).sum(axis=1))


def _residual(genotype: Genotype) -> float:
    """A standard normal number that only the architecture decides."""
    digest = blake2b(bytes(genotype), digest_size=8).digest()
    return float(np.random.default_rng(int.from_bytes(digest, "little")).standard_normal())
