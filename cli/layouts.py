"""Draws which share of its experts every layer of a network keeps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from studies.records import Genotype, Study
from supernets.moe_layout import ExpertLayer, MoELayout
from supernets.space import EXPERT_WIDTH, EXPERTS, TOP_K, SearchSpace

if TYPE_CHECKING:
    from studies.layout_book import LayerExperts
    from studies.store import StudyStore

_HEIGHTS = "▁▂▃▄▅▆▇█"
_DROPPED = "·"


@dataclass(frozen=True, slots=True)
class Layouts:
    """The expert layouts of a study's networks.

    Attributes:
        largest: of the whole model.
    """

    space: SearchSpace
    largest: MoELayout

    @classmethod
    def of(cls, store: StudyStore, study: Study) -> Layouts | None:
        """None where the networks have no experts, or nothing is known of them."""
        stored = store.layouts(study.name)
        if not stored:
            return None
        space = SearchSpace.from_json(study.space)
        seen = [layer for layers in stored.values() for layer in layers]
        return cls(space, MoELayout(tuple(_largest(space, i, seen) for i in sorted({one.layer for one in seen}))))

    def skyline(self, genotype: Genotype) -> str:
        """One character a layer: the share of its experts that is kept as a height, a point where it is dropped."""
        kept = {layer.index: layer.experts for layer in self._of(genotype).layers}
        return "".join(_height(kept.get(full.index), full.experts) for full in self.largest.layers)

    def picture(self, genotype: Genotype) -> str:
        """One line a layer."""
        return self._of(genotype).picture(self.largest)

    def _of(self, genotype: Genotype) -> MoELayout:
        return self.largest.of(self.space.decode(genotype))


def _largest(space: SearchSpace, layer: int, seen: Iterable[LayerExperts]) -> ExpertLayer:
    """A layer of the whole model: what varies up to the last option, all else as in every network."""
    (one, *_) = [experts for experts in seen if experts.layer == layer]
    most = {EXPERTS: one.experts, TOP_K: one.top_k, EXPERT_WIDTH: one.width}
    most |= {c.axis: c.options[-1] for c in space.choices if c.axis in most and c.layer in (None, layer)}
    return ExpertLayer(index=layer, experts=most[EXPERTS], top_k=most[TOP_K], width=most[EXPERT_WIDTH])


def _height(kept: int | None, full: int) -> str:
    return _DROPPED if kept is None else _HEIGHTS[-(-len(_HEIGHTS) * kept // full) - 1]
