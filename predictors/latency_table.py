"""`LatencyTable`: the latency of a network as the sum of its measured operations.

The sum is corrected by a scale and by overheads per operation and per forward pass, fitted on a few end-to-end rows:
see `relative_fit`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kernels.op_spec import Context, OpSpec
from predictors.predictor import COVERAGE, Prediction
from predictors.relative_fit import UNCORRECTED, Correction, Point, fit, half_width, mean_error, residuals
from studies.records import Measurement, content_hash


@dataclass(frozen=True, kw_only=True, slots=True)
class EndToEndRow:
    """A network that was measured as a whole.

    Attributes:
        ops: its operations, as `LatencyTable.predict` takes them.
        seconds: measured, the mean over the lengths of `context`.
    """

    ops: tuple[OpSpec, ...]
    context: Context
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencyTable:
    """Measured operations of one device and their correction. Implements `LatencyPredictor`.

    Attributes:
        device: fingerprint.
        seconds: operation key to median seconds.
        noisy: sorted keys whose measurement did not settle.
        correction: what whole networks take beyond the sum of their operations.
        errors: relative residual of each fitted row.
    """

    device: str
    seconds: Mapping[str, float] = field(hash=False)
    noisy: tuple[str, ...] = ()
    correction: Correction = UNCORRECTED
    errors: tuple[float, ...] = ()

    @classmethod
    def from_measurements(cls, measurements: Iterable[Measurement], device: str) -> LatencyTable:
        """The table of one device, of its operations only; the last measurement of a key counts.

        Whole networks enter through `fitted`, so that measuring one more network does not change the table's hash.
        """
        latest = {one.op_key: one for one in measurements if one.device == device and not _is_model(one)}
        return cls(
            device=device,
            seconds={key: latest[key].seconds_median for key in sorted(latest)},
            noisy=tuple(key for key in sorted(latest) if latest[key].noisy),
        )

    def missing(self, ops: Iterable[OpSpec]) -> list[OpSpec]:
        """The operations that still have to be measured, each once, in order of appearance."""
        return list({op.key: op for op in ops if op.key not in self.seconds}.values())

    def only(self, ops: Iterable[OpSpec]) -> LatencyTable:
        """The same table without what else was measured on the device."""
        keys = {op.key for op in ops}
        seconds = {key: number for key, number in self.seconds.items() if key in keys}
        return replace(self, seconds=seconds, noisy=tuple(key for key in self.noisy if key in keys))

    def fitted(self, rows: Sequence[EndToEndRow]) -> LatencyTable:
        """The same table with its correction fitted on end-to-end rows; with none, the uncorrected sum.

        Five rows that span small to large networks suffice.
        """
        if not rows:
            return replace(self, correction=UNCORRECTED, errors=())
        points = [self._point(row) for row in rows]
        correction = fit(points)
        return replace(self, correction=correction, errors=residuals(points, correction))

    def predict(self, ops: Sequence[OpSpec], context: Context) -> Prediction:
        """Seconds of one forward pass, and bounds that hold nine of ten such networks; see `relative_fit.half_width`.

        Raises:
            ValueError: an operation was not measured on this device.
        """
        seconds = self.correction.seconds(*self._sum(ops, context))
        if self.error is None:
            return Prediction(seconds=seconds, low=0.0, high=math.inf)
        width = half_width(self.errors, COVERAGE)
        return Prediction(seconds=seconds, low=max(0.0, seconds * (1 - width)), high=seconds * (1 + width))

    @property
    def error(self) -> float | None:
        """Mean relative error of the fitted rows; None with fewer than three of them."""
        return mean_error(self.errors)

    @property
    def hash(self) -> str:
        """Identity by content: equal tables predict equally."""
        return content_hash(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads back."""
        return {
            "device": self.device,
            "seconds": dict(self.seconds),
            "noisy": list(self.noisy),
            "scale": self.correction.scale,
            "operation_seconds": self.correction.operation_seconds,
            "overhead_seconds": self.correction.pass_seconds,
            "errors": list(self.errors),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> LatencyTable:
        """Read what `to_json` wrote; ValueError on missing or malformed fields."""
        try:
            return cls(
                device=str(content["device"]),
                seconds={str(key): float(value) for key, value in content["seconds"].items()},
                noisy=tuple(content["noisy"]),
                correction=Correction(
                    scale=float(content["scale"]),
                    operation_seconds=float(content.get("operation_seconds", 0.0)),
                    pass_seconds=float(content["overhead_seconds"]),
                ),
                errors=tuple(float(error) for error in content["errors"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a latency table: {error!r}; expected what LatencyTable.to_json writes") from error

    def _point(self, row: EndToEndRow) -> Point:
        total, operations = self._sum(row.ops, row.context)
        return Point(total=total, operations=operations, seconds=row.seconds)

    def _sum(self, ops: Sequence[OpSpec], context: Context) -> tuple[float, float]:
        """Measured seconds of all operations of a pass, and their number; means over the lengths of `context`."""
        assert {op.context for op in ops} <= {context.at(length) for length in context.sequences}, (
            f"operations were made for another context than {context.key}"
        )
        if missing := self.missing(ops):
            raise ValueError(
                f"{len(missing)} operations were not measured on {self.device}, such as {missing[0].key}; measure them"
            )
        passes = len(context.sequences)
        return sum(self.seconds[op.key] for op in ops) / passes, len(ops) / passes


def _is_model(measurement: Measurement) -> bool:
    return measurement.op_key.startswith("model[")
