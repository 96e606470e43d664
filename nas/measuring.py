"""The measuring stage: what a search needs to know of this machine, measured once and kept in the store."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from kernels.device import DeviceBackend
from kernels.op_spec import Context
from kernels.timing import TimingSettings
from nas.end_to_end import measure_networks
from predictors.latency_table import EndToEndRow, LatencyTable
from predictors.measure import measure
from studies.records import Genotype
from studies.store import StudyStore
from supernets.space import SearchSpace
from supernets.supernet import Supernet

OnMeasured = Callable[[float, int], None]
"""Receives how many timings are done, fractions included, and how many there are."""

CALIBRATION_NETWORKS = 5


def covering(space: SearchSpace) -> Iterator[Genotype]:
    """Genotypes that between them show every option of every gene: the largest with one gene changed at a time."""
    yield space.largest
    for gene, choice in enumerate(space.choices):
        for index in range(len(choice.options) - 1):
            yield space.canonical((*space.largest[:gene], index, *space.largest[gene + 1 :]))


def latency_table(
    supernet: Supernet,
    context: Context,
    store: StudyStore,
    backend: DeviceBackend,
    *,
    settings: TimingSettings | None = None,
    on_progress: OnMeasured | None = None,
) -> LatencyTable:
    """The latency table of this machine for all networks of a supernet; measures only what the store lacks.

    A few whole networks, from smallest to largest, fit the table's scale and overhead.
    """
    device = backend.detect()
    store.put_device(device.fingerprint, {"name": device.name, "kind": device.kind, **device.description})
    space = supernet.space
    ops = {op.key: op for g in covering(space) for op in supernet.ops(space.decode(g), context)}
    table = LatencyTable.from_measurements(store.measurements(device.fingerprint), device.fingerprint)
    measure(
        table.missing(ops.values()),
        backend,
        settings=settings,
        stored=store.measurements(device.fingerprint),
        on_measured=lambda one: store.put_measurements([one]),
        on_progress=on_progress,
    )
    chosen = [space.decode(genotype) for genotype in calibration_genotypes(space)]
    latencies = measure_networks(
        supernet,
        chosen,
        context,
        backend,
        settings=settings,
        stored=store.measurements(device.fingerprint),
        on_measured=lambda one: store.put_measurements([one]),
        on_progress=on_progress,
    )
    rows = [
        EndToEndRow(ops=supernet.ops(architecture, context), context=context, seconds=latency.seconds)
        for architecture, latency in zip(chosen, latencies, strict=True)
    ]
    measured = store.measurements(device.fingerprint)
    return LatencyTable.from_measurements(measured, device.fingerprint).fitted(rows)


def calibration_genotypes(space: SearchSpace) -> list[Genotype]:
    """Smallest, middle, largest and seeded random networks in between, distinct, at most `CALIBRATION_NETWORKS`."""
    rng = random.Random(0)
    candidates = [space.smallest, space.middle, space.largest, *(space.sample(rng) for _ in range(10))]
    return list(dict.fromkeys(space.canonical(g) for g in candidates))[:CALIBRATION_NETWORKS]
