"""Number of parameters that one token's forward pass uses: all but the experts that it does not choose."""

from __future__ import annotations

from collections.abc import Mapping

from nas.objective import Bindings, BoundObjective, no_settings
from studies.records import Genotype, Objective, Value


def build(settings: Mapping[str, str], bindings: Bindings) -> BoundObjective:
    """Exact count; of a network without experts, all its parameters."""
    no_settings("active-parameters", settings)
    objective = Objective(name="active-parameters", unit="parameters")
    supernet = bindings.supernet

    def evaluate(genotype: Genotype) -> Value:
        architecture = supernet.space.decode(genotype)
        sparse = [layer for layer in architecture.layers if layer.index in supernet.experts]
        idle = sum(supernet.experts[layer.index].idle_parameters(layer) for layer in sparse)
        count = supernet.count_parameters(architecture) - idle
        return Value(objective=objective.key, number=float(count), provenance="computed")

    return BoundObjective(objective=objective, exact=True, evaluate=evaluate)
