"""What the study is told of the experts of a network."""

from __future__ import annotations

from pathlib import Path
from random import Random

from nas.layouts import LayoutRecorder, expert_layout
from studies.records import Evaluation
from studies.store import StudyStore
from supernets.supernet import Supernet
from tests.contracts.test_store_contract import STUDY
from tests.toy_bindings import tiny_bindings
from tests.toy_experts import expert_supernet


def network_sizes(supernet: Supernet, genotype: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """Layer, experts and top-k of the extracted network."""
    architecture = supernet.space.decode(genotype)
    config = supernet.configured(architecture, "free")
    pairs = zip(architecture.layers, config.supernas_layers, strict=True)
    return [(layer.index, sizes["experts"], sizes["top_k"]) for layer, sizes in pairs if "experts" in sizes]


def test_a_layout_has_the_sizes_of_the_extracted_network() -> None:
    supernet, rng = expert_supernet(axes=("depth",), operators=("reap", "uncurl", "mone")), Random(0)
    seen = set()
    for _ in range(30):
        genotype = supernet.space.sample(rng)
        layers = expert_layout(supernet, genotype)
        assert [(x.layer, x.experts, x.top_k) for x in layers] == network_sizes(supernet, genotype)
        for layer in layers:
            seen.add(layer.operator)
            assert len(layer.kept) == len(set(layer.kept)) == layer.experts
            members = [expert for group in layer.merged for expert in group]
            assert len(set(members)) == len(members) <= 8
            assert all(group[0] in layer.kept for group in layer.merged)
            assert bool(layer.merged) == (layer.operator == "uncurl")
    assert seen == {"", "reap", "uncurl", "mone"}


def test_what_a_pruned_layer_keeps_are_its_routers_rows() -> None:
    supernet = expert_supernet(operators=("reap",))
    architecture = supernet.space.decode(supernet.space.smallest)
    network = supernet.extract(architecture)
    (first, _) = expert_layout(supernet, supernet.space.smallest)
    rows = supernet.experts[0].layer.router.weight[list(first.kept)]
    assert network.get_parameter("model.layers.0.mlp.gate.weight").equal(rows)


def test_without_operators_every_group_of_the_router_keeps_its_first_experts() -> None:
    supernet = expert_supernet("deepseek_v3", operators=())
    (layer,) = expert_layout(supernet, supernet.space.smallest)
    assert (layer.layer, layer.experts, layer.operator, layer.kept) == (1, 6, "", (0, 1, 2, 4, 5, 6))


def test_a_network_is_written_down_once_and_only_if_it_was_evaluated(tmp_path: Path) -> None:
    supernet = expert_supernet()
    space = supernet.space
    with StudyStore.open(f"sqlite:///{tmp_path / 's.db'}") as store:
        store.create_or_resume(STUDY)
        done, failed = Evaluation(genotype=space.smallest), Evaluation(genotype=space.largest, status="failed")
        store.append("demo", [done, failed])
        recorder = LayoutRecorder(supernet, store, "demo", "/supernet")
        recorder.resume()
        for evaluation in (done, failed, done):
            recorder.learn(evaluation)
        assert store.layouts("demo") == {space.smallest: expert_layout(supernet, space.smallest)}
        assert supernet.statistics is not None
        (calibration,) = store.calibrations(STUDY.supernet_hash)
        assert (calibration.hash, calibration.uri) == (supernet.statistics.digest, "/supernet")


def test_networks_without_experts_are_not_written_down(tmp_path: Path) -> None:
    supernet = tiny_bindings().supernet
    with StudyStore.open(f"sqlite:///{tmp_path / 's.db'}") as store:
        store.create_or_resume(STUDY)
        recorder = LayoutRecorder(supernet, store, "demo", "")
        store.append("demo", [Evaluation(genotype=supernet.space.smallest)])
        recorder.learn(Evaluation(genotype=supernet.space.smallest))
        assert store.layouts("demo") == {}
