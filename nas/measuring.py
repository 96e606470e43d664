"""The measuring stage: what a search needs to know of a machine, measured once and kept in the store."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import product

from kernels.device import DeviceBackend
from kernels.op_spec import Context, OpSpec
from kernels.timing import TimingSettings
from nas.end_to_end import measure_networks, network_specs
from predictors.latency_table import EndToEndRow, LatencyTable
from predictors.measure import measure
from studies.records import Genotype, Measurement
from studies.store import StudyStore
from supernets.space import DEPTH, Architecture, SearchSpace
from supernets.supernet import Supernet

OnMeasured = Callable[[float, int], None]
"""Receives how many timings are done, fractions included, and how many there are."""

CALIBRATION_NETWORKS = 5
DRAWN = 20
"""Random networks of which those that calibrate are chosen."""


def covering(space: SearchSpace) -> Iterator[Genotype]:
    """Genotypes that between them show every combination of options that a layer can have, the largest first.

    All layers change at once, since no operation depends on two of them.
    """
    axes: dict[str, int] = {}
    for choice in space.choices:
        axes[choice.axis] = 1 if choice.axis == DEPTH else max(axes.get(choice.axis, 1), len(choice.options))
    for steps in product(*map(range, axes.values())):
        down = dict(zip(axes, steps, strict=True))
        yield space.canonical([max(0, len(choice.options) - 1 - down[choice.axis]) for choice in space.choices])


def latency_table(
    supernet: Supernet,
    contexts: Sequence[Context],
    store: StudyStore,
    backend: DeviceBackend,
    *,
    settings: TimingSettings | None = None,
    on_progress: OnMeasured | None = None,
) -> LatencyTable:
    """The latency table of this machine for all networks of a supernet; measures only what the store lacks.

    A few whole networks, from small to large ones, fit the table's correction. They are timed thoroughly: what five
    networks have in common by chance, all predictions have.
    """
    settings = settings or TimingSettings()
    device = backend.detect()
    store.put_device(device.fingerprint, {"name": device.name, "kind": device.kind, **device.description})

    def keep(one: Measurement) -> None:
        store.put_measurements([one])

    stored = store.measurements(device.fingerprint)
    missing = LatencyTable.from_measurements(stored, device.fingerprint).missing(_operations(supernet, contexts))
    measure(missing, backend, settings=settings, stored=stored, on_measured=keep, on_progress=on_progress)
    for context in contexts:
        measure_networks(
            supernet,
            calibration_networks(supernet, context),
            context,
            backend,
            settings=settings.thorough(),
            stored=store.measurements(device.fingerprint),
            on_measured=keep,
            on_progress=on_progress,
        )
    return stored_table(supernet, contexts, store, device.fingerprint)


def stored_table(supernet: Supernet, contexts: Sequence[Context], store: StudyStore, device: str) -> LatencyTable:
    """The latency table of any machine whose measurements are in the store.

    Raises:
        ValueError: an operation was not measured there.
    """
    return table_of(supernet, contexts, store.measurements(device), device)


def import_tables(
    supernet: Supernet, contexts: Sequence[Context], store: StudyStore, imported: Sequence[Measurement]
) -> list[LatencyTable]:
    """Store what other machines measured, and return their latency tables; nothing is stored if one is incomplete.

    Raises:
        ValueError: a machine did not measure an operation, neither now nor earlier.
    """
    tables = []
    for device in sorted({one.device for one in imported}):
        known = {one.op_key: one for one in (*store.measurements(device), *imported) if one.device == device}
        tables.append(table_of(supernet, contexts, list(known.values()), device))
    store.put_measurements(imported)
    return tables


def table_of(
    supernet: Supernet, contexts: Sequence[Context], measurements: Sequence[Measurement], device: str
) -> LatencyTable:
    """The latency table that one machine's measurements make; ValueError if an operation is not among them."""
    operations = _operations(supernet, contexts)
    table = LatencyTable.from_measurements(measurements, device).only(operations)
    if missing := table.missing(operations):
        raise ValueError(
            f"{len(missing)} operations were not measured on {device}, such as {missing[0].key}; run `nas measure` "
            "there with the same batch, sequence and threads, and import what it exports"
        )
    known = {one.op_key: one.seconds_median for one in measurements}
    rows = []
    for context in contexts:
        for architecture in calibration_networks(supernet, context):
            keys = [spec.key for spec in network_specs(supernet, architecture, context)]
            if all(key in known for key in keys):
                seconds = sum(known[key] for key in keys) / len(keys)
                ops = supernet.ops(architecture, context)
                rows.append(EndToEndRow(ops=ops, context=context, seconds=seconds))
    return table.fitted(rows)


def calibration_networks(supernet: Supernet, context: Context) -> list[Architecture]:
    """The architectures whose networks correct a latency table, from few to many multiply-accumulates."""
    space = supernet.space
    genotypes = calibration_genotypes(space, lambda g: supernet.count_macs(space.decode(g), context))
    return [space.decode(genotype) for genotype in genotypes]


def calibration_genotypes(space: SearchSpace, cost: Callable[[Genotype], float]) -> list[Genotype]:
    """At most `CALIBRATION_NETWORKS` of `DRAWN` seeded random networks, evenly from the cheapest to the most costly.

    Networks whose layers are all alike, as in the smallest and the largest, are faster by up to a tenth than what their
    operations say of mixed ones: they do not calibrate.
    """
    rng = random.Random(0)
    drawn = sorted({space.canonical(space.sample(rng)): None for _ in range(DRAWN)}, key=cost)
    steps = range(min(CALIBRATION_NETWORKS, len(drawn)))
    return [drawn[round(step * (len(drawn) - 1) / max(1, len(steps) - 1))] for step in steps]


def _operations(supernet: Supernet, contexts: Sequence[Context]) -> list[OpSpec]:
    """Every operation that any network of the supernet has, each once."""
    architectures = [supernet.space.decode(genotype) for genotype in covering(supernet.space)]
    ops = (op for context in contexts for architecture in architectures for op in supernet.ops(architecture, context))
    return list({op.key: op for op in ops}.values())
