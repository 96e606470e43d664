"""Multiply-accumulates of one forward pass."""

from __future__ import annotations

from collections.abc import Mapping

from nas.objective import Bindings, BoundObjective, context_from, sorted_settings
from studies.records import Genotype, Objective, Value


def build(settings: Mapping[str, str], bindings: Bindings) -> BoundObjective:
    """Exact count for one batch, the mean over the context's lengths; settings: batch, sequence, threads, dtype."""
    context = context_from("macs", settings, bindings.context)
    objective = Objective(name="macs", unit="MACs", settings=sorted_settings(settings))
    supernet = bindings.supernet

    def evaluate(genotype: Genotype) -> Value:
        count = supernet.count_macs(supernet.space.decode(genotype), context)
        return Value(objective=objective.key, number=float(count), provenance="computed", context=context.key)

    return BoundObjective(objective=objective, exact=True, evaluate=evaluate)
