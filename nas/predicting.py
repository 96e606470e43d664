"""Predicted latencies of networks that need not have been measured, nor be on this machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kernels.op_spec import Context
from predictors.predictor import LatencyPredictor, Prediction
from studies.records import Genotype, Provenance
from supernets.checkpoint import PROVENANCE_FILE
from supernets.supernet import Supernet

ENDS = ("smallest", "middle", "largest")
"""Networks with a name of their own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictedLatency:
    """One network's latency as a predictor sees it.

    Attributes:
        provenance: ``predicted`` from measurements of the device, ``analytic`` from its data sheet.
    """

    network: str
    genotype: Genotype
    prediction: Prediction
    provenance: Provenance


def predict_networks(
    supernet: Supernet, names: Sequence[str], context: Context, predictor: LatencyPredictor, provenance: Provenance
) -> list[PredictedLatency]:
    """Predict networks by name; see `named_genotype`.

    Raises:
        ValueError: a name means no network of this supernet, or an operation of it was not measured.
    """
    found = []
    for name in names:
        genotype = named_genotype(supernet, name)
        prediction = predictor.predict(supernet.ops(supernet.space.decode(genotype), context), context)
        found.append(PredictedLatency(network=name, genotype=genotype, prediction=prediction, provenance=provenance))
    return found


def named_genotype(supernet: Supernet, name: str) -> Genotype:
    """The network meant by ``smallest``, ``middle`` or ``largest``, by a genotype ``0-3-1``, or by an export's folder.

    Raises:
        ValueError: none of these, a genotype of another space, or an export of another supernet.
    """
    space = supernet.space
    if name in ENDS:
        ends: dict[str, Genotype] = {end: getattr(space, end) for end in ENDS}
        return ends[name]
    record = Path(name) / PROVENANCE_FILE
    if record.is_file():
        return _exported_genotype(supernet, record)
    try:
        genotype = tuple(int(index) for index in name.split("-"))
    except ValueError as error:
        raise ValueError(
            f"{name!r} means no network: give {', '.join(ENDS)}, a genotype such as 0-3-1, or the folder of an export"
        ) from error
    return space.canonical(genotype)


def _exported_genotype(supernet: Supernet, record: Path) -> Genotype:
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        fingerprint, genotype = content["space_fingerprint"], content["genotype"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{record} does not say which network it is ({error!r}); export it again") from error
    if fingerprint != supernet.space.fingerprint:
        raise ValueError(
            f"{record.parent} is of a space with fingerprint {fingerprint}, this supernet has "
            f"{supernet.space.fingerprint}; name the supernet it was exported from"
        )
    return supernet.space.canonical(genotype)
