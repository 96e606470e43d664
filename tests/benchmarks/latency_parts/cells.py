"""NAS-Bench-201 with latencies of two devices, and what its cells consist of.

A cell has nodes 0 to 3 and an operation on each of the edges `EDGES`: none, skip, 1x1 convolution, 3x3 convolution,
pooling. What does not lie on a path from node 0 to node 3 is dead: some runtimes leave it out, others run it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from predictors.model import Groups, Matrix

EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
OPERATIONS, NODES = 5, 4


@dataclass(frozen=True, kw_only=True)
class DeviceTable:
    """Networks and their seconds on one device.

    Attributes:
        terms_NT: analytic terms; all tables that are compared have the same.
        raw_NF: features as an opponent would take them.
    """

    name: str
    terms_NT: Matrix
    raw_NF: Matrix
    seconds_N: Matrix


def read_cells(path: Path) -> list[DeviceTable]:
    """The two devices; ValueError if the file is not what `table` promises."""
    with np.load(path, allow_pickle=False) as archive:
        names = sorted(name for name in archive.files if name.startswith("lat_"))
        if "arch" not in archive.files or len(names) < 2:
            raise ValueError(f"{path} must hold `arch` and two columns `lat_…`, got {', '.join(archive.files)}")
        arch_NE = archive["arch"].astype(np.int64)
        latencies = {name.removeprefix("lat_"): archive[name].astype(np.float64) / 1e3 for name in names}
    raw_NF = (arch_NE[:, :, None] == np.arange(OPERATIONS)).reshape(len(arch_NE), -1).astype(np.float64)
    return [
        DeviceTable(name=name, terms_NT=cell_terms(arch_NE), raw_NF=raw_NF, seconds_N=seconds_N)
        for name, seconds_N in latencies.items()
    ]


def cell_terms(arch_NE: Groups) -> Matrix:
    """Terms [N, 11]: a constant, whether anything is alive, edges per operation, live edges per operation but none."""
    live_NE = live_edges(arch_NE)
    edges = len(EDGES)
    every = [(arch_NE == kind).sum(axis=1) / edges for kind in range(OPERATIONS)]
    living = [((arch_NE == kind) & live_NE).sum(axis=1) / edges for kind in range(1, OPERATIONS)]
    columns = [np.ones(len(arch_NE)), live_NE.any(axis=1).astype(np.float64), *every, *living]
    return np.stack(columns, axis=1)


def live_edges(arch_NE: Groups) -> NDArray[np.bool_]:
    """Whether each edge lies on a path from the first to the last node, `none` being no edge."""
    there_NE = arch_NE != 0
    reached = np.zeros((len(arch_NE), NODES), dtype=bool)
    needed = np.zeros((len(arch_NE), NODES), dtype=bool)
    reached[:, 0] = needed[:, -1] = True
    for edge, (start, end) in enumerate(EDGES):
        reached[:, end] |= reached[:, start] & there_NE[:, edge]
    for edge, (start, end) in reversed(list(enumerate(EDGES))):
        needed[:, start] |= needed[:, end] & there_NE[:, edge]
    return np.stack([there_NE[:, e] & reached[:, a] & needed[:, b] for e, (a, b) in enumerate(EDGES)], axis=1)
