"""Networks that the classes of plain transformers can express, so that their exports need no code of ours."""

from __future__ import annotations

from collections.abc import Iterable

from studies.pareto import ParetoFront
from studies.records import Evaluation
from supernets.supernet import Supernet


def uniform_only(supernet: Supernet, evaluations: Iterable[Evaluation]) -> list[Evaluation]:
    """The evaluations whose networks the layout ``uniform`` can express."""
    return [evaluation for evaluation in evaluations if _is_expressible(supernet, evaluation)]


def uniform_front(front: ParetoFront, evaluations: Iterable[Evaluation], supernet: Supernet) -> ParetoFront:
    """The front, with the objectives and provenances of another, of what fits the layout ``uniform``.

    The largest network is left out: that is the model one had already.
    """
    smaller = [evaluation for evaluation in evaluations if evaluation.genotype != supernet.space.largest]
    return ParetoFront.of(front.objectives, uniform_only(supernet, smaller), front.allowed)


def _is_expressible(supernet: Supernet, evaluation: Evaluation) -> bool:
    try:
        supernet.configured(supernet.space.decode(evaluation.genotype), "uniform")
    except ValueError:
        return False
    return True
