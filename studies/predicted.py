"""What predictors say of networks nobody has evaluated, apart from every real value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from studies.pareto import ParetoFront, ValueFilter
from studies.records import Evaluation, Genotype, Objective, Value
from studies.study_book import Prediction

PREDICTED_ONLY = ValueFilter(provenances=frozenset({"predicted"}))


def predicted_front(
    objectives: Sequence[Objective],
    predictions: Sequence[Prediction],
    evaluated: Sequence[Evaluation],
    device: str | None = None,
) -> ParetoFront:
    """The front among predicted networks that were never evaluated; its members have no number.

    Only the latest predictor of each objective is heard: predictions of two are not comparable.

    Args:
        predictions: of a study, oldest first.
        evaluated: evaluations of the study.
        device: fingerprint; predictions for others do not count. None lets every device pass.
    """
    latest = {one.value.objective: (one.predictor, one.training_hash) for one in predictions}
    known = {evaluation.genotype for evaluation in evaluated}
    values: dict[Genotype, list[Value]] = {}
    for one in predictions:
        if one.genotype not in known and (one.predictor, one.training_hash) == latest[one.value.objective]:
            values.setdefault(one.genotype, []).append(one.value)
    networks = [Evaluation(genotype=genotype, values=tuple(given)) for genotype, given in values.items()]
    return ParetoFront.of(objectives, networks, replace(PREDICTED_ONLY, device=device))
