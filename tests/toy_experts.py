"""A tiny calibrated mixture-of-experts supernet with a text task, and everything objectives need of it."""

from __future__ import annotations

from typing import Any

import torch

from nas.objective import Bindings
from predictors.latency_table import LatencyTable
from supernets.calibration import calibrate
from supernets.family import SpaceOptions
from supernets.supernet import Supernet
from supernets.task import SPLITS, TaskSettings
from supernets.tasks.language_modelling import LanguageModelling
from tests.toy_bindings import CONTEXT, DEVICE
from tests.toy_moe import toy_batches, toy_moe

VOCABULARY, LENGTH = 40, 8
OPERATORS = ("reap", "uncurl")


def toy_text(sizes: tuple[int, int, int] = (16, 12, 12), seed: int = 0) -> LanguageModelling:
    """Blocks of random tokens."""
    draws = torch.Generator().manual_seed(seed)
    shapes = dict(zip(SPLITS, sizes, strict=True))
    blocks = {split: torch.randint(3, VOCABULARY, (n, LENGTH), generator=draws) for split, n in shapes.items()}
    return LanguageModelling(TaskSettings(kind="language-modelling", data="synthetic"), blocks, {})


def expert_supernet(kind: str = "qwen3_moe", *, operators: tuple[str, ...] = OPERATORS, **options: Any) -> Supernet:
    """`toy_moe` with its experts elastic by some operators."""
    model = toy_moe(kind)
    chosen = SpaceOptions(**{"expert_options": 3, "operators": operators, **options})
    return Supernet.wrap(model, options=chosen, statistics=calibrate(model, toy_batches()))


def expert_bindings(**changes: Any) -> Bindings:
    """Bindings with a table; keyword arguments replace fields."""
    from nas.measuring import covering

    supernet = changes.pop("supernet", None) or expert_supernet()
    decoded = map(supernet.space.decode, covering(supernet.space))
    ops = [op for architecture in decoded for op in supernet.ops(architecture, CONTEXT)]
    table = LatencyTable(device=DEVICE, seconds={op.key: 1e-4 + 1e-9 * op.flops for op in ops}, errors=(0, 0, 0.03))
    return Bindings(**{"supernet": supernet, "task": toy_text(), "context": CONTEXT, "table": table, **changes})
