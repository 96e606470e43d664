"""Everything objectives need, bound to the tiny supernet and the toy task."""

from __future__ import annotations

from typing import Any

from kernels.op_spec import Context
from nas.objective import Bindings
from predictors.latency_table import LatencyTable
from supernets.supernet import Supernet
from tests.toy_task import ToyTask, tiny_supernet

CONTEXT = Context(batch=2, sequences=(4, 8))
OTHER_CONTEXT = Context(batch=8, sequences=(16,))
DEVICE = "cpu-0123456789ab"


def tiny_table(supernet: Supernet, device: str = DEVICE) -> LatencyTable:
    """Every operation of the supernet in both contexts; the cost grows with the operation's arithmetic."""
    space = supernet.space
    genotypes = [space.largest, *space.uniform()]
    ops = [op for c in (CONTEXT, OTHER_CONTEXT) for g in genotypes for op in supernet.ops(space.decode(g), c)]
    return LatencyTable(device=device, seconds={op.key: 1e-4 + 1e-9 * op.flops for op in ops}, errors=(0, 0, 0.03))


def tiny_bindings(**changes: Any) -> Bindings:
    """Bindings with a table; keyword arguments replace fields."""
    supernet = tiny_supernet()
    table = tiny_table(supernet, changes.pop("table_device", DEVICE))
    return Bindings(**{"supernet": supernet, "task": ToyTask(), "context": CONTEXT, "table": table, **changes})
