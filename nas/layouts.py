"""Writes down what became of the experts of every network that a search evaluates."""

from __future__ import annotations

from dataclasses import dataclass, field

from studies.layout_book import CalibrationRecord, LayerExperts
from studies.records import Evaluation, Genotype
from studies.store import StudyStore
from supernets.elastic_experts import ElasticExperts
from supernets.moe_layout import ExpertLayer, MoELayout
from supernets.space import LayerChoice
from supernets.supernet import Supernet


@dataclass(frozen=True)
class LayoutRecorder:
    """Stores the layout of each network once; does nothing for models without experts.

    Attributes:
        uri: where the supernet lies, with the statistics that its reductions are planned from.
    """

    supernet: Supernet
    store: StudyStore
    study_name: str
    uri: str
    _known: set[Genotype] = field(default_factory=set, init=False)

    def resume(self) -> None:
        """Take note of what is stored already."""
        self._known.update(self.store.layouts(self.study_name))

    def learn(self, evaluation: Evaluation) -> None:
        """Store the layout of a network that was evaluated and is new."""
        if not self.supernet.experts or evaluation.status != "done" or evaluation.genotype in self._known:
            return
        layout = {evaluation.genotype: expert_layout(self.supernet, evaluation.genotype)}
        self.store.put_layouts(self.study_name, layout, self._calibration())
        self._known.add(evaluation.genotype)

    def _calibration(self) -> CalibrationRecord | None:
        statistics = self.supernet.statistics
        if statistics is None:
            return None
        return CalibrationRecord(hash=statistics.digest, data_hash=statistics.task, uri=self.uri)


def expert_layout(supernet: Supernet, genotype: Genotype) -> tuple[LayerExperts, ...]:
    """The kept mixture-of-experts layers of a sub-network, in forward order."""
    architecture = supernet.space.decode(genotype)
    layers = MoELayout.of_config(supernet.config).of(architecture).layers
    return tuple(_layer(layer, supernet.experts[layer.index], architecture.by_index[layer.index]) for layer in layers)


def _layer(layer: ExpertLayer, block: ElasticExperts, choice: LayerChoice) -> LayerExperts:
    plan = block.plan(choice)
    return LayerExperts(
        layer=layer.index,
        operator="" if plan is None else plan.operator,
        experts=layer.experts,
        top_k=layer.top_k,
        width=layer.width,
        kept=_leading(block, layer.experts) if plan is None else plan.representatives,
        merged=() if plan is None else tuple(group for group in plan.groups if len(group) > 1),
    )


def _leading(block: ElasticExperts, count: int) -> tuple[int, ...]:
    """The first experts of each of the router's groups."""
    groups = block.layer.router_groups
    size = block.layer.count // groups
    return tuple(group * size + place for group in range(groups) for place in range(count // groups))
