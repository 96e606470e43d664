"""What every latency predictor offers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from kernels.op_spec import Context, OpSpec

COVERAGE = 0.9
"""Probability with which a predictor's bounds hold the latency of a further network."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """A latency that was not measured, between bounds that hold `COVERAGE` of such latencies.

    A predictor that was never compared with end-to-end latencies knows no bounds: 0 and infinity.
    """

    seconds: float
    low: float
    high: float


class LatencyPredictor(Protocol):
    """Predicts the latency of a network on one device from its operations."""

    @property
    def device(self) -> str:
        """Fingerprint of the device the predictions hold for."""

    @property
    def error(self) -> float | None:
        """Mean relative error on networks it was not fitted on, to be shown beside predictions; None if unknown."""

    def predict(self, ops: Sequence[OpSpec], context: Context) -> Prediction:
        """Seconds of one forward pass, the mean over the lengths of `context`.

        Args:
            ops: the operations of one pass per length of `context`, each made at that length.
        """
