"""Networks that the classes of plain transformers can express, so that their exports need no code of ours."""

from __future__ import annotations

from collections.abc import Iterable

from studies.records import Evaluation
from supernets.supernet import Supernet


def uniform_only(supernet: Supernet, evaluations: Iterable[Evaluation]) -> list[Evaluation]:
    """The evaluations whose networks the layout ``uniform`` can express."""
    return [evaluation for evaluation in evaluations if _is_expressible(supernet, evaluation)]


def _is_expressible(supernet: Supernet, evaluation: Evaluation) -> bool:
    try:
        supernet.family.configure(supernet.config, supernet.space.decode(evaluation.genotype), "uniform")
    except ValueError:
        return False
    return True
