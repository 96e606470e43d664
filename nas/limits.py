"""Refuses limits that no sub-network can meet, before anything is trained for them."""

from __future__ import annotations

from collections.abc import Mapping

from kernels.device import DeviceBackend
from kernels.timing import TimingSettings
from nas.end_to_end import measure_networks
from nas.objective import Bindings, bind, context_from, parse_objective
from studies.errors import LimitError
from studies.store import StudyStore


def require_possible(
    limits: Mapping[str, float],
    bindings: Bindings,
    store: StudyStore,
    backend: DeviceBackend,
    settings: TimingSettings | None = None,
) -> None:
    """Compare every limit that training does not change with the smallest network, timing it if need be.

    Raises:
        LimitError: even the smallest network is above a limit.
    """
    for text, limit in limits.items():
        number, unit = _smallest(text, bindings, store, backend, settings)
        if number > limit:
            raise LimitError(
                f"no sub-network can meet {text} {limit:g} {unit}; the smallest measured is {number:.4g} {unit}: "
                "relax the limit"
            )


def _smallest(
    text: str, bindings: Bindings, store: StudyStore, backend: DeviceBackend, settings: TimingSettings | None
) -> tuple[float, str]:
    """The smallest network's value of an objective with its unit; -inf where only training decides it."""
    supernet = bindings.supernet
    name, own = parse_objective(text)
    if name == "latency":
        [latency] = measure_networks(
            supernet,
            [supernet.space.decode(supernet.space.smallest)],
            context_from(name, own, bindings.context),
            backend,
            settings=settings,
            stored=store.measurements(backend.detect().fingerprint),
            on_measured=lambda one: store.put_measurements([one]),
        )
        return 1e3 * latency.seconds, "ms"
    bound = bind(text, bindings)
    return (bound.evaluate(supernet.space.smallest).number if bound.exact else float("-inf")), bound.objective.unit
