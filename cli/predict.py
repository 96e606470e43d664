"""`nas predict`: latencies of networks that need not have been measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cli.config import DEFAULT_STORAGE, ConfigOption, StorageOption
from cli.options import LatencyOptions, SupernetArgument
from cli.output import Format, FormatOption, write_rows

if TYPE_CHECKING:
    from kernels.op_spec import Context
    from nas.predicting import PredictedLatency
    from predictors.predictor import LatencyPredictor
    from studies.records import Provenance
    from supernets.supernet import Supernet


def predict(
    supernet: SupernetArgument,
    latency: LatencyOptions,
    network: Annotated[
        list[str] | None,
        typer.Option(help="Genotype, export's folder, smallest, middle or largest; repeated; default these three."),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Fingerprint of the machine, if its measurements were imported.")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="A GPU that is not here, by its data sheet, such as a100: a ranking only.")
    ] = None,
    storage: StorageOption = DEFAULT_STORAGE,
    style: FormatOption = Format.TABLE,
    config: ConfigOption = None,
) -> None:
    """Predict the latency of networks from what was measured, with bounds that hold nine of ten. Measures nothing."""
    if target is not None and gpu is not None:
        raise ValueError("--target and --gpu exclude each other: give the machine that was measured, or a GPU's name")
    from nas.predicting import ENDS, predict_networks
    from supernets.checkpoint import load_supernet

    loaded, _, record = load_supernet(supernet)
    context = latency.context(record["lengths"])
    predictor = _of_gpu(gpu) if gpu is not None else _of_store(loaded, context, storage, target)
    provenance: Provenance = "predicted" if gpu is None else "analytic"
    found = predict_networks(loaded, network or ENDS, context, predictor, provenance)
    write_rows([_row(each, predictor, context) for each in found], style)


def _of_gpu(name: str) -> LatencyPredictor:
    from predictors.analytic_gpu import AnalyticGpu

    return AnalyticGpu(name)


def _of_store(supernet: Supernet, context: Context, storage: str, target: str | None) -> LatencyPredictor:
    from kernels.device import load_backend
    from nas.measuring import stored_table
    from studies.store import StudyStore

    with StudyStore.open(storage, create=False) as store:
        return stored_table(supernet, [context], store, target or load_backend("cpu").detect().fingerprint)


def _row(found: PredictedLatency, predictor: LatencyPredictor, context: Context) -> dict[str, object]:
    """A network in one line; bounds that are not known are left empty."""
    prediction, known = found.prediction, predictor.error is not None
    return {
        "network": found.network,
        "latency [ms]": 1e3 * prediction.seconds,
        "from [ms]": 1e3 * prediction.low if known else None,
        "to [ms]": 1e3 * prediction.high if known else None,
        "error of predictions": predictor.error,
        "provenance": found.provenance,
        "device": predictor.device,
        "context": context.key,
        "genotype": "-".join(map(str, found.genotype)),
    }
