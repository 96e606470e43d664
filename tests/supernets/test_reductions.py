"""What the expert reductions compute, against slow or exhaustive computations and planted experts."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from supernets.calibration import calibrate
from supernets.expert_bank import ExpertBank, moe_layers
from supernets.expert_merging import aligned, average, members, spectral, weight_features, with_features
from supernets.expert_pruning import threshold_counts
from supernets.least_squares import ridge
from supernets.reduction import CalibratedLayer, reduce_layer, reduction
from supernets.reductions.mc_smoe import low_rank_plus_sparse
from supernets.reductions.naee import RoutedOutput
from supernets.reductions.random import RandomPruning
from supernets.reductions.sub_moe import SubMoe, joint_svd_average, spherical_k_means
from tests.toy_moe import toy_batches, toy_moe

COUNT, SLOTS = 6, [0, 2, 5]


@cache
def calibrated(kind: str = "qwen3_moe") -> CalibratedLayer:
    """A layer of six experts."""
    sizes: dict[str, Any] = {"num_local_experts" if kind == "gpt_oss" else "num_experts": COUNT}
    model = toy_moe(kind, **sizes)
    return CalibratedLayer.of(moe_layers(model)[0], calibrate(model, toy_batches()))


def shuffled(bank: ExpertBank, seed: int) -> ExpertBank:
    """The same functions, the inner units of every expert in another order."""
    order = torch.randperm(bank.width, generator=torch.Generator().manual_seed(seed))
    return with_features(bank, weight_features(bank)[:, order])


def close(one: ExpertBank, other: ExpertBank) -> None:
    for tensor, wanted in zip(one.tensors().values(), other.tensors().values(), strict=True):
        torch.testing.assert_close(tensor, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss"])
def test_inner_units_there_and_back(kind: str) -> None:
    bank = calibrated(kind).bank
    again = with_features(bank, weight_features(bank))
    assert all(torch.equal(tensor, again.tensors()[name]) for name, tensor in bank.tensors().items())


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss"])
def test_alignment_finds_the_permutation_and_changes_no_function(kind: str) -> None:
    bank = calibrated(kind).bank.select([1])
    both = {name: torch.cat([t, shuffled(bank, 3).tensors()[name]]) for name, t in bank.tensors().items()}
    pair = ExpertBank(**both, activate=bank.activate)
    lined_up = aligned(pair, weight_features(pair))
    close(lined_up.select([1]), bank)
    strangers = calibrated(kind).bank.select([0, 4])
    turned = aligned(strangers, weight_features(strangers))
    x_ND = torch.randn(5, 24, generator=torch.Generator().manual_seed(0))
    for expert in range(2):
        torch.testing.assert_close(turned.outputs(expert, x_ND), strangers.outputs(expert, x_ND))


@pytest.mark.parametrize("operator", ["uncurl", "m-smoe", "ream"])
def test_copies_with_other_inner_orders_merge_to_the_original(operator: str) -> None:
    layer = calibrated()
    twins = layer.bank.select([0]).mapped(lambda tensor: tensor.expand(COUNT, *tensor.shape[1:]).contiguous())
    parts = [shuffled(twins.select([expert]), expert) for expert in range(COUNT)]
    whole = {name: torch.cat([part.tensors()[name] for part in parts]) for name in twins.tensors()}
    same = replace(layer, bank=ExpertBank(**whole, activate=layer.bank.activate))
    reduced = reduce_layer(same, operator, 3)
    close(reduced.bank, same.bank.select(reduced.plan.representatives))


def test_the_average_is_the_weighted_sum() -> None:
    bank, weights_M = calibrated().bank.select(SLOTS), torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    wanted = sum(weight * bank.down_EDF[i].double() for i, weight in enumerate(weights_M.tolist()))
    torch.testing.assert_close(average(bank, weights_M).down_EDF[0].double(), wanted, rtol=1e-6, atol=1e-6)


def test_sub_moe_at_full_rank_is_the_weighted_average() -> None:
    layer, full = calibrated(), SubMoe(rank_share=1.0)
    plan = full.plan(layer, 3)
    assert any(len(group) > 1 for group in plan.groups)
    merged = full.apply(plan, layer)
    for i, group in enumerate(plan.groups):
        weights_M = full.weights(layer)[list(group)]
        close(merged.bank.select([i]), average(layer.bank.select(group), weights_M / weights_M.sum()))


def test_a_truncated_joint_svd_has_the_rank_and_shares_the_columns() -> None:
    matrices_MNK, weights_M = torch.randn(3, 8, 5, dtype=torch.float64), torch.tensor([0.2, 0.3, 0.5])
    merged_NK = joint_svd_average(matrices_MNK, weights_M, 0.25)
    left = torch.linalg.svd(torch.cat(list(matrices_MNK), 1))[0][:, :2]
    assert int(torch.linalg.matrix_rank(merged_NK)) == 2
    torch.testing.assert_close(left @ left.T @ merged_NK, merged_NK)


def damage(layer: CalibratedLayer, kept: tuple[int, ...]) -> float:
    """What the layer's output misses with some experts only: the oracle routes token by token."""
    logits_RE, total = layer.statistics.sample_logits_RE, 0.0
    for r, logits_E in enumerate(logits_RE):
        outputs = []
        for left in (tuple(range(COUNT)), kept):
            share = dict(zip(left, logits_E[list(left)].softmax(0).tolist(), strict=True))
            best = sorted(left, key=lambda expert: -share[expert])[:2]
            outputs.append(sum(share[e] * layer.sample_outputs_ERD[e, r] for e in best))
        total += float(torch.as_tensor(outputs[0] - outputs[1]).square().sum())
    return total


def test_naee_is_exhaustive_for_one_expert_and_no_worse_than_any_order_of_its_steps() -> None:
    layer, naee = calibrated(), reduction("naee")
    all_of = {kept: damage(layer, kept) for size in (3, 4, 5) for kept in combinations(range(COUNT), size)}
    kept = {size: tuple(sorted(naee.plan(layer, size).representatives)) for size in (3, 4, 5)}
    assert all_of[kept[5]] == min(value for subset, value in all_of.items() if len(subset) == 5)
    for size in (3, 4):
        steps = [value for subset, value in all_of.items() if len(subset) == size and set(subset) < set(kept[size + 1])]
        assert all_of[kept[size]] == min(steps)
    gone_CE = torch.tensor([[expert not in kept[size] for expert in range(COUNT)] for size in (3, 4, 5)])
    wanted = torch.tensor([all_of[kept[size]] for size in (3, 4, 5)], dtype=torch.float64)
    torch.testing.assert_close(RoutedOutput(layer).damages(gone_CE), wanted, rtol=1e-4, atol=1e-6)


def test_hc_smoe_merges_experts_that_answer_alike() -> None:
    layer = calibrated()
    bank = layer.bank.mapped(lambda tensor: tensor[[0, 1, 2, 0, 1, 2]].clone())
    groups = reduce_layer(replace(layer, bank=bank), "hc-smoe", 3).plan.groups
    assert {frozenset(group) for group in groups} == {frozenset({0, 3}), frozenset({1, 4}), frozenset({2, 5})}


def test_mone_answers_means_for_the_experts_that_go() -> None:
    layer = calibrated()
    reduced = reduce_layer(layer, "mone", 4)
    assert reduced.plan.routes is not None
    assert reduced.constants_ED is not None
    gone = [expert for expert, route in enumerate(reduced.plan.routes) if route is None]
    scores = layer.statistics.counts_E * layer.statistics.output_variances_E
    assert set(gone) == set(scores.argsort()[:2].tolist())
    torch.testing.assert_close(reduced.constants_ED[gone], layer.statistics.mean_outputs_ED[gone].float())


def test_merge_moe_misses_less_than_the_average() -> None:
    layer = calibrated()
    fitted, plan = reduce_layer(layer, "merge-moe", 3), reduction("merge-moe").plan(layer, 3)
    usage, x_RD = layer.statistics.counts_E, layer.statistics.sample_RD
    for i, group in enumerate(plan.groups):
        weights_M = usage[list(group)] / usage[list(group)].sum()
        mean = average(layer.bank.select(group), weights_M)
        wanted = torch.einsum("m,mrd->rd", weights_M.float(), layer.sample_outputs_ERD[list(group)])
        errors = [float((bank.outputs(e, x_RD) - wanted).norm()) for bank, e in ((fitted.bank, i), (mean, 0))]
        assert errors[0] < errors[1] or len(group) == 1


def test_dern_gives_a_neuron_to_the_kept_one_it_is_like() -> None:
    layer = calibrated()
    features = weight_features(layer.bank)
    dropped = reduction("dern").plan(layer, 5)
    gone = next(expert for expert in range(COUNT) if expert not in dropped.representatives)
    host = dropped.representatives[2]
    features[gone] = -features[host]  # fits nothing
    features[gone, 7] = 3 * features[host, 4]
    planted = replace(layer, bank=with_features(layer.bank, features))
    merged = weight_features(reduce_layer(planted, "dern", 5).bank)
    usage = layer.statistics.counts_E
    wanted = features[list(dropped.representatives)].clone()
    wanted[2, 4] *= float((usage[host] + 3 * usage[gone]) / (usage[host] + usage[gone]))
    changed = (merged != features[list(dropped.representatives)]).any(2).nonzero().tolist()
    assert [2, 4] in changed
    torch.testing.assert_close(merged[2, 4], wanted[2, 4])


def test_ream_keeps_what_reap_keeps() -> None:
    layer = calibrated()
    kept = {name: set(reduction(name).plan(layer, 3).representatives) for name in ("ream", "reap")}
    assert kept["ream"] == kept["reap"]
    groups = reduction("ream").plan(layer, 3).groups
    assert [len(group) for group in groups] == [2, 2, 2]
    assert sorted(expert for group in groups for expert in group) == list(range(COUNT))


@pytest.mark.parametrize("protected", [{2}, {2, 5}, {0, 1, 2}])
def test_ream_merges_what_protected_experts_do_not_absorb(protected: set[int]) -> None:
    layer = replace(calibrated(), protected=frozenset(protected))
    groups = reduction("ream").groups(layer, 4)
    assert sorted(expert for group in groups for expert in group) == list(range(COUNT))
    assert all((expert,) == tuple(group) for group in groups for expert in group if expert in protected)


def test_low_rank_plus_sparse_is_the_best_of_its_rank_and_the_largest_residues() -> None:
    weight_NK = torch.randn(12, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    left, scale, right = torch.linalg.svd(weight_NK, full_matrices=False)
    residue_NK = weight_NK - (left[:, :3] * scale[:3]) @ right[:3]
    found = (weight_NK - low_rank_plus_sparse(weight_NK, rank=3, density=0.1)).abs().flatten().sort().values
    wanted = residue_NK.abs().flatten().sort().values
    assert found[:12].max() < 1e-12
    torch.testing.assert_close(found[12:], wanted[:-12])
    assert torch.allclose(low_rank_plus_sparse(weight_NK, density=1.0), weight_NK)


def planted_blocks() -> Tensor:
    """Affinities of three blocks of different sizes."""
    labels = torch.tensor([0, 1, 0, 2, 1, 0, 2, 1, 0])
    noise = torch.rand(9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.05
    return (labels[:, None] == labels).double() * 0.9 + (noise + noise.T) / 2


@pytest.mark.parametrize("method", ["spectral", "k-means"])
def test_clusters_find_planted_blocks(method: str) -> None:
    affinity_EE = planted_blocks()
    found = spectral(affinity_EE, 3) if method == "spectral" else members(spherical_k_means(affinity_EE, 3), 3)
    assert {frozenset(cluster) for cluster in found} == {
        frozenset({0, 2, 5, 8}),
        frozenset({1, 4, 7}),
        frozenset({3, 6}),
    }


def test_ridge_solves_least_squares_and_leaves_nothing_alone() -> None:
    draws = torch.Generator().manual_seed(1)
    inner_NF = torch.randn(40, 6, generator=draws, dtype=torch.float64)
    change_DF = torch.randn(4, 6, generator=draws, dtype=torch.float64)
    torch.testing.assert_close(ridge(inner_NF, inner_NF @ change_DF.T, 1e-12), change_DF)
    assert not ridge(torch.zeros(3, 6), torch.ones(3, 4)).any()


def test_one_threshold_gives_more_to_flat_layers() -> None:
    flat, steep = torch.full((4,), 7.0), torch.tensor([100.0, 1.0, 2.0, 3.0])
    assert threshold_counts({0: flat, 5: steep}, 5, 1) == {0: 4, 5: 1}
    assert threshold_counts({0: flat, 5: steep}, 6, 2) == {0: 4, 5: 2}
    assert threshold_counts({0: torch.zeros(4), 5: steep}, 3, 1) == {0: 1, 5: 2}
    with pytest.raises(ValueError, match="9 experts cannot be spread over 2 layers: between 2 and 8 are possible"):
        threshold_counts({0: flat, 5: steep}, 9, 1)


def test_random_draws_differ_by_seed_and_layer() -> None:
    layer = calibrated()
    orders = {tuple(RandomPruning(seed).order(replace(layer, index=index))) for seed in (0, 1) for index in (0, 1)}
    assert len(orders) == 4
