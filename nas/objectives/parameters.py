"""Number of parameters of the extracted sub-network."""

from __future__ import annotations

from collections.abc import Mapping

from nas.objective import Bindings, BoundObjective, no_settings
from studies.records import Genotype, Objective, Value


def build(settings: Mapping[str, str], bindings: Bindings) -> BoundObjective:
    """Exact count; tied parameters count once."""
    no_settings("parameters", settings)
    objective = Objective(name="parameters", unit="parameters")
    supernet = bindings.supernet

    def evaluate(genotype: Genotype) -> Value:
        count = supernet.count_parameters(supernet.space.decode(genotype))
        return Value(objective=objective.key, number=float(count), provenance="computed")

    return BoundObjective(objective=objective, exact=True, evaluate=evaluate)
