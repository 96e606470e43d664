"""How repeatable the measurements of this machine are: whole networks, timed a second time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kernels.device import DeviceBackend
from kernels.op_spec import Context
from kernels.timing import TimingSettings
from nas.end_to_end import NetworkLatency, measure_networks
from nas.measuring import OnMeasured, calibration_networks
from studies.records import Measurement
from studies.store import StudyStore
from supernets.supernet import Supernet


@dataclass(frozen=True, kw_only=True, slots=True)
class Repeatability:
    """Two measurements of the same networks, both with the calibration of the store.

    Attributes:
        networks: what they are called.
    """

    networks: tuple[str, ...]
    stored: tuple[NetworkLatency, ...]
    again: tuple[NetworkLatency, ...]

    @property
    def error(self) -> float:
        """Mean absolute relative difference."""
        return float(np.mean([abs(b.seconds / a.seconds - 1) for a, b in zip(self.stored, self.again, strict=True)]))

    @property
    def rank_correlation(self) -> float:
        """Kendall's tau of both."""
        from scipy.stats import kendalltau

        first, second = ([latency.seconds for latency in side] for side in (self.stored, self.again))
        return float(np.nan_to_num(kendalltau(first, second)[0]))


def repeatability(
    supernet: Supernet,
    context: Context,
    store: StudyStore,
    backend: DeviceBackend,
    *,
    settings: TimingSettings | None = None,
    on_progress: OnMeasured | None = None,
) -> Repeatability:
    """Time the networks that calibrate the latency table again, as any others; the store keeps the first measurements.

    What the store lacks is measured first, thoroughly, and kept.
    """
    settings = settings or TimingSettings()
    device = backend.detect().fingerprint
    architectures = calibration_networks(supernet, context)

    def timed(
        stored: Sequence[Measurement], calibrated_by: Sequence[Measurement], settings: TimingSettings
    ) -> list[NetworkLatency]:
        return measure_networks(
            supernet,
            architectures,
            context,
            backend,
            settings=settings,
            stored=stored,
            calibrated_by=calibrated_by,
            on_measured=None if calibrated_by else lambda row: store.put_measurements([row]),
            on_progress=on_progress,
        )

    first = timed(store.measurements(device), (), settings.thorough())
    second = timed((), store.measurements(device), settings)
    names = ("-".join(map(str, supernet.space.encode(architecture))) for architecture in architectures)
    return Repeatability(networks=tuple(names), stored=tuple(first), again=tuple(second))
