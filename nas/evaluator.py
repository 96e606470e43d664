"""Evaluates one sub-network on all columns of a problem."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from nas.objective import BoundObjective, EvaluationFailed
from studies.errors import ResourceError
from studies.records import MEASURED, Evaluation, Genotype, Provenance, Value
from supernets.evaluation import is_out_of_memory
from supernets.space import SearchSpace

SUPERNET: frozenset[Provenance] = frozenset({"supernet"})


class ValueLookup(Protocol):
    """What the evaluator needs of a `StudyStore`."""

    def lookup(
        self,
        space_fingerprint: str,
        genotypes: Collection[Genotype],
        objective: str,
        *,
        weights_hash: str | None = None,
        data_hash: str | None = None,
        context: str | None = None,
        provenances: frozenset[Provenance] = MEASURED,
    ) -> dict[Genotype, Value]:
        """The latest matching values of any study."""


@dataclass(frozen=True)
class Evaluator:
    """Calls every objective once; the search decides what becomes of failures.

    Attributes:
        columns: objectives, then what is only limited.
        store: where expensive values may already lie, from any study; None always computes.
    """

    columns: tuple[BoundObjective, ...]
    space: SearchSpace
    store: ValueLookup | None = None

    def __call__(self, genotype: Genotype) -> Evaluation:
        """The values of a genotype, one per column.

        Raises:
            EvaluationFailed: this sub-network cannot be evaluated.
            ResourceError: memory ran out, which says nothing about this sub-network.
        """
        canonical = self.space.canonical(genotype)
        return Evaluation(genotype=canonical, values=tuple(self.value(column, canonical) for column in self.columns))

    def value(self, column: BoundObjective, genotype: Genotype) -> Value:
        """One value of a canonical genotype, stored or new; raises what calling raises."""
        try:
            return self.known(column, genotype) or column.evaluate(genotype)
        except EvaluationFailed:
            raise
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise ResourceError(f"out of memory while evaluating; use a smaller batch size ({error})") from error
            raise EvaluationFailed(str(error).partition("\n")[0]) from error

    def known(self, column: BoundObjective, genotype: Genotype) -> Value | None:
        """What any study has stored that is as good as evaluating a column again."""
        if self.store is None or column.reuse is None:
            return None
        found = self.store.lookup(
            self.space.fingerprint,
            [genotype],
            column.objective.key,
            weights_hash=column.reuse.weights_hash,
            data_hash=column.reuse.data_hash,
            context=column.reuse.context,
            provenances=SUPERNET,
        )
        return found.get(genotype)
