"""Latency of one forward pass on the target device, composed from measured operations.

The search reads a frozen table, so its latencies are predictions, and say so: their provenance is ``predicted`` and
their spread is the table's own error. The finalists are measured as whole networks afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping

from nas.objective import Bindings, BoundObjective, context_from, sorted_settings
from studies.records import Genotype, Objective, Value


def build(settings: Mapping[str, str], bindings: Bindings) -> BoundObjective:
    """Milliseconds per batch, the mean over the context's lengths; settings: batch, sequence, threads, dtype.

    Raises:
        ValueError: there is no latency table, or it lacks operations of the largest network.
    """
    table, supernet = bindings.table, bindings.supernet
    if table is None:
        raise ValueError("objective latency needs measurements of this device; run `nas measure` first")
    context = context_from("latency", settings, bindings.context)
    objective = Objective(name="latency", unit="ms", settings=sorted_settings(settings))

    def evaluate(genotype: Genotype) -> Value:
        seconds = table.predict(supernet.ops(supernet.space.decode(genotype), context), context).seconds
        return Value(
            objective=objective.key,
            number=1e3 * seconds,
            provenance="predicted",
            spread=None if table.error is None else 1e3 * seconds * table.error,
            device=table.device,
            context=context.key,
        )

    return BoundObjective(objective=objective, exact=True, evaluate=evaluate)
