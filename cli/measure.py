"""`nas measure`: the latencies of this machine, or those another machine exported."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.config import DEFAULT_STORAGE, ConfigOption, StorageOption
from cli.options import LatencyOptions, SupernetArgument
from cli.output import Format, FormatOption, write_rows
from cli.watch import Watch

if TYPE_CHECKING:
    from kernels.op_spec import Context
    from nas.repeating import Repeatability
    from predictors.latency_table import LatencyTable
    from supernets.supernet import Supernet


def measure(
    supernet: SupernetArgument,
    latency: LatencyOptions,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    export_file: Annotated[Path | None, typer.Option("--export", help="Also write this file.")] = None,
    import_file: Annotated[
        Path | None, typer.Option("--import", help="Store what another machine exported; measure nothing here.")
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Time a few networks again and show how repeatable this machine is.")
    ] = False,
    storage: StorageOption = DEFAULT_STORAGE,
    style: FormatOption = Format.TABLE,
    config: ConfigOption = None,
) -> None:
    """Measure what the networks of a supernet are made of, each operation once, and keep it.

    To fit networks to another machine, measure there with --export, and --import the file here.
    """
    if report and import_file is not None:
        raise ValueError("--report times networks here, --import measures nothing here: give one of them")
    from kernels.device import load_backend
    from nas.measuring import import_tables, latency_table
    from nas.repeating import repeatability
    from predictors.measurement_file import export_measurements, import_measurements
    from studies.store import StudyStore
    from supernets.checkpoint import load_supernet

    loaded, _, record = load_supernet(supernet)
    context = latency.context(record["lengths"])
    imported = [] if import_file is None else import_measurements(import_file)
    with StudyStore.open(storage) as store, Watch() as watch:
        if import_file is None:
            backend = load_backend(device)
            tables = [
                latency_table(loaded, [context], store, backend, settings=latency.timing(), on_progress=watch.measured)
            ]
            repeated = (
                repeatability(loaded, context, store, backend, settings=latency.timing(), on_progress=watch.measured)
                if report
                else None
            )
        else:
            repeated = None
            tables = import_tables(loaded, [context], store, imported)
        if export_file is not None:
            export_measurements([row for table in tables for row in store.measurements(table.device)], export_file)
    write_rows([_row(table, loaded, context) for table in tables] if repeated is None else _report(repeated), style)
    if repeated is not None:
        typer.echo(
            f"mean difference {repeated.error:.1%}, Kendall's tau {repeated.rank_correlation:.3f} "
            f"over {len(repeated.networks)} networks timed twice",
            err=True,
        )


def _row(table: LatencyTable, supernet: Supernet, context: Context) -> dict[str, object]:
    """A table in one line; latencies of networks are predictions, with the error of those."""

    def milliseconds(genotype: tuple[int, ...]) -> float:
        architecture = supernet.space.decode(genotype)
        return 1e3 * table.predict(supernet.ops(architecture, context), context).seconds

    return {
        "device": table.device,
        "context": context.key,
        "operations": len(table.seconds),
        "noisy": len(table.noisy),
        "smallest [ms]": milliseconds(supernet.space.smallest),
        "largest [ms]": milliseconds(supernet.space.largest),
        "error of predictions": table.error,
    }


def _report(repeated: Repeatability) -> list[dict[str, object]]:
    """One line per network that was timed twice."""
    return [
        {
            "network": name,
            "stored [ms]": 1e3 * first.seconds,
            "again [ms]": 1e3 * second.seconds,
            "difference": second.seconds / first.seconds - 1,
            "spread [ms]": 1e3 * second.seconds_iqr,
            "noisy": first.noisy or second.noisy,
        }
        for name, first, second in zip(repeated.networks, repeated.stored, repeated.again, strict=True)
    ]
