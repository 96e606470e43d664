"""Memory of one forward pass: all weights plus the largest activations alive at once."""

from __future__ import annotations

from collections.abc import Mapping

from nas.objective import MIB, Bindings, BoundObjective, context_from, sorted_settings
from studies.records import Genotype, Objective, Value


def build(settings: Mapping[str, str], bindings: Bindings) -> BoundObjective:
    """Counted, not measured, in MiB; settings: batch, sequence, threads, dtype."""
    context = context_from("memory", settings, bindings.context)
    objective = Objective(name="memory", unit="MiB", settings=sorted_settings(settings))
    supernet = bindings.supernet

    def evaluate(genotype: Genotype) -> Value:
        count = supernet.memory_bytes(supernet.space.decode(genotype), context)
        return Value(objective=objective.key, number=count / MIB, provenance="computed", context=context.key)

    return BoundObjective(objective=objective, exact=True, evaluate=evaluate)
