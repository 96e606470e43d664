"""The guided search: what it asks for, what it says, and what it makes of knowledge, limits, failures and noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from random import Random

import numpy as np
import pytest

from nas.algorithm import AlgorithmSettings, Costs, Generation, SearchProblem
from nas.algorithms.guided import GuidedOptions, search
from studies.pareto import hypervolume, non_dominated
from studies.records import Genotype, Objective
from supernets.space import Choice, SearchSpace
from tests.synthetic_space import IDEAL, REFERENCE, synthetic_costs, synthetic_problem
from tests.toy_search import ERROR, LATENCY, drive, reached, toy_costs, toy_problem, toy_space

SWITCHES = [field.name for field in dataclasses.fields(GuidedOptions)]


def run(
    problem: SearchProblem,
    evaluate: Callable[[Sequence[Genotype]], Costs],
    budget: int,
    *,
    options: GuidedOptions | None = None,
    known: Mapping[Genotype, tuple[float, ...]] | None = None,
    related: Mapping[Genotype, tuple[float, ...]] | None = None,
    seed: int = 0,
    batch: int = 20,
) -> tuple[list[Genotype], Costs, list[Generation]]:
    """Genotypes asked in order, their costs, and what the search said."""
    said: list[Generation] = []
    settings = AlgorithmSettings(seed=seed, batch=batch, known=known or {}, related=related or {}, observe=said.append)
    running = search(problem, settings, options or GuidedOptions())
    asked: list[Genotype] = []
    rows: list[Costs] = []
    with closing(running), suppress(StopIteration):
        proposal = next(running)
        while len(asked) < budget:
            asked += proposal
            rows.append(evaluate(proposal))
            proposal = running.send(rows[-1])
    return asked[:budget], np.vstack(rows)[:budget], said


def toy(genotypes: Sequence[Genotype]) -> Costs:
    return toy_costs(toy_space(), genotypes)


def test_batches_grow_and_never_exceed_what_is_allowed() -> None:
    batches = drive(toy_problem(), "guided", 150, batch=12)
    sizes = [len(batch) for batch in batches]
    assert sizes[:2] == [12, 8]
    assert sizes[2] == 5
    assert sizes[2:] == sorted(sizes[2:])
    assert sizes[-1] == 12


def test_the_first_networks_span_the_space() -> None:
    problem = toy_problem()
    first = drive(problem, "guided", 20, batch=20)[0]
    assert problem.space.smallest in first
    assert problem.space.largest in first
    assert sum(problem.space.decode(genotype).is_uniform for genotype in first) >= 5


def test_it_is_far_ahead_of_the_others_after_few_evaluations() -> None:
    problem, budget = toy_problem(), 45
    found = {name: reached(problem, drive(problem, name, budget), budget) for name in ("guided", "linas", "nsga2")}
    assert found["guided"] > max(found["linas"], found["nsga2"])


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_part_can_be_left_out(switch: str) -> None:
    options = GuidedOptions(**{switch: False})
    asked, _, said = run(toy_problem(), toy, 40, options=options)
    assert len(set(asked)) == 40
    predicted = {"error", "latency"} if switch == "compute_exact" else {"error"}
    assert set(said[-1].columns) == predicted


def test_it_says_what_it_knows() -> None:
    _, costs, said = run(toy_problem(), toy, 60)
    assert [generation.number for generation in said] == list(range(len(said)))
    assert said[0].measured == 0
    assert said[0].hypervolume == 0
    last = next(generation for generation in reversed(said) if generation.measured <= len(costs))
    assert last.columns["error"].trusted
    assert last.columns["error"].rank_correlation > 0.5
    assert 0 < last.columns["error"].relative_error < 0.5
    assert last.columns["error"].predictor == "gaussian-process"
    assert "promising" in last.note
    best = costs[: last.measured].min(axis=0)
    box = np.prod(np.array([0.6, 10.0]) - best)
    assert last.hypervolume == pytest.approx(hypervolume(costs[: last.measured], (0.6, 10.0)) / box)
    assert last.feasible_share == 1.0


def test_being_observed_changes_nothing() -> None:
    problem = toy_problem()
    assert run(problem, toy, 50)[0] == [g for batch in drive(problem, "guided", 50, batch=20) for g in batch][:50]


def test_three_objectives_of_which_two_are_computed() -> None:
    names = ("error", "latency", "parameters")
    problem = synthetic_problem(names)
    scale = np.prod([REFERENCE[name] - IDEAL[name] for name in names])

    def evaluate(genotypes: Sequence[Genotype]) -> Costs:
        return synthetic_costs(problem.space, genotypes, names)

    asked, costs, _ = run(problem, evaluate, 60)
    rng = np.random.default_rng(0)
    drawn = [
        tuple(row) for row in rng.integers([len(c.options) for c in problem.space.choices], size=(400, 25)).tolist()
    ]
    random = evaluate([problem.space.canonical(genotype) for genotype in drawn])
    reference = [REFERENCE[name] for name in names]
    assert len(set(asked)) == 60
    assert hypervolume(costs, reference) / scale > hypervolume(random, reference) / scale + 0.05


def test_a_single_objective_is_minimised() -> None:
    space = toy_space()
    problem = SearchProblem(
        space=space,
        objectives=(ERROR,),
        exact=lambda genotypes: np.full((len(genotypes), 1), np.nan),
        exact_columns=(False,),
    )
    _, costs, _ = run(problem, lambda genotypes: toy_costs(space, genotypes) @ [[1.0], [0.03]], 60)
    assert costs[20:].min() < costs[:20].min()


def tiny_problem() -> SearchProblem:
    """Twelve networks whose two costs must both be measured."""
    space = SearchSpace(
        "tiny", 2, (0, 1), tuple(Choice(axis="width", layer=i, options=(1, 2, 4)[: 3 + i]) for i in (0, 1))
    )
    return SearchProblem(
        space=space,
        objectives=(Objective(name="error", unit=""), Objective(name="latency", unit="ms")),
        exact=lambda genotypes: np.full((len(genotypes), 2), np.nan),
        exact_columns=(False, False),
    )


def test_a_tiny_space_is_asked_completely_and_then_the_search_ends() -> None:
    problem = tiny_problem()
    asked, _, _ = run(problem, lambda gs: np.array([[sum(g), -sum(g)] for g in gs], dtype=float), 100, batch=4)
    assert len(asked) == len(set(asked)) == problem.space.size


@pytest.mark.parametrize("constant", [0.0, 7.0])
def test_constant_costs_end_no_search(constant: float) -> None:
    problem = toy_problem()

    def evaluate(genotypes: Sequence[Genotype]) -> Costs:
        costs = toy(genotypes)
        costs[:, 0] = constant
        return costs

    asked, _, said = run(problem, evaluate, 50)
    assert len(set(asked)) == 50
    assert not said[-1].columns["error"].trusted


def test_a_constant_cost_among_others_changes_nothing() -> None:
    """A third objective that is always 1 leaves batches as promising, and the front's box as large, as without it."""
    third = Objective(name="score", unit="points")
    plain = toy_problem()
    problem = dataclasses.replace(
        plain,
        objectives=(*plain.objectives, third),
        exact=lambda rows: np.column_stack([plain.exact(rows), np.full(len(rows), np.nan)]),
        exact_columns=(*plain.exact_columns, False),
    )

    def evaluate(genotypes: Sequence[Genotype]) -> Costs:
        return np.column_stack([toy(genotypes), np.ones(len(genotypes))])

    _, _, said = run(problem, evaluate, 60)
    assert all(generation.note.endswith(" 0 explored") for generation in said[-3:])
    assert said[-1].hypervolume > 0
    assert said[-1].columns["score"].predictor == "constant"


@pytest.mark.parametrize("seed", range(3))
def test_a_small_space_ends_when_it_is_used_up(seed: int) -> None:
    """Also where a model other than the process predicts: none of them takes an empty pool."""
    space = SearchSpace(
        "small", 2, (0, 1), tuple(Choice(axis="kind", options=tuple(range(1, 9)), layer=i) for i in range(2))
    )
    problem = SearchProblem(
        space=space,
        objectives=(ERROR,),
        exact=lambda genotypes: np.full((len(genotypes), 1), np.nan),
        exact_columns=(False,),
    )
    noise = np.random.default_rng(seed).normal(scale=0.1, size=(8, 8))

    def evaluate(genotypes: Sequence[Genotype]) -> Costs:
        return np.array([[np.sin(a / 2) * (1 if b > 3 else -1) + noise[a, b]] for a, b in genotypes])

    asked, _, said = run(problem, evaluate, 100, seed=seed)
    assert len(asked) == len(set(asked)) == 64
    assert said[-1].columns["error"].predictor != "mean"


def test_noise_alone_makes_it_explore() -> None:
    rng = np.random.default_rng(0)

    def evaluate(genotypes: Sequence[Genotype]) -> Costs:
        costs = toy(genotypes)
        costs[:, 0] = rng.random(len(costs))
        return costs

    _, _, said = run(toy_problem(), evaluate, 80)
    explored = [int(generation.note.split()[2]) for generation in said[1:]]
    assert sum(explored) > 10
    trusting = run(toy_problem(), toy, 80)[2]
    assert sum(int(generation.note.split()[2]) for generation in trusting[1:]) == 0


def test_a_limit_on_a_predicted_cost_moves_the_search_to_feasible_ground() -> None:
    problem = dataclasses.replace(toy_problem(), limits={0: 0.2})
    _, costs, said = run(problem, toy, 80)
    feasible = costs[:, 0] <= 0.2
    assert feasible[20:].mean() > feasible[:20].mean() + 0.05
    assert said[1].feasible_share == pytest.approx(feasible[: said[1].measured].mean())


def test_a_limit_draws_the_search_to_the_best_of_the_other_objective() -> None:
    space = toy_space()
    limit = float(np.median(toy([space.sample(Random(seed)) for seed in range(99)])[:, 1]))
    problem = dataclasses.replace(toy_problem(), limits={1: limit})
    drawn, spread = (run(problem, toy, 80, options=GuidedOptions(free_costs=on))[1][20:] for on in (True, False))
    assert (drawn[:, 1] <= limit).all()
    assert drawn[:, 0].mean() < spread[:, 0].mean()


def test_where_nothing_is_feasible_it_goes_towards_the_limit() -> None:
    problem = dataclasses.replace(toy_problem(), limits={0: 0.05})
    _, costs, said = run(problem, toy, 60)
    assert costs[20:, 0].mean() < costs[:20, 0].mean()
    assert said[-1].hypervolume == 0
    assert said[-1].feasible_share == 0


def test_it_learns_where_evaluations_fail() -> None:
    def evaluate(genotypes: Sequence[Genotype]) -> Costs:
        costs = toy(genotypes)
        costs[[genotype[1] == 3 for genotype in genotypes]] = np.inf
        return costs

    _, costs, said = run(toy_problem(), evaluate, 80)
    failed = np.isinf(costs[:, 0])
    assert failed[40:].mean() < 0.5 * failed[:20].mean()
    assert said[1].feasible_share == pytest.approx(1 - failed[: said[1].measured].mean())


def test_known_networks_teach_and_their_front_is_asked_for_first() -> None:
    problem = toy_problem()
    elsewhere, rows, _ = run(problem, toy, 100, seed=9)
    known = dict(zip(elsewhere, map(tuple, rows.tolist()), strict=True))
    front = {g for g, best in zip(elsewhere, non_dominated(rows), strict=True) if best}
    asked, warm, _ = run(problem, toy, 30, known=known)
    _, cold, _ = run(problem, toy, 30)
    assert set(asked[:10]) <= front
    assert hypervolume(warm, (0.6, 10.0)) > hypervolume(cold, (0.6, 10.0))
    assert hypervolume(warm, (0.6, 10.0)) > 0.995 * hypervolume(rows, (0.6, 10.0))


def two_costs_to_measure() -> tuple[SearchProblem, dict[Genotype, tuple[float, float]]]:
    """A problem that computes nothing, and the true costs of many of its networks."""
    space = toy_space(3)
    problem = SearchProblem(
        space=space,
        objectives=(ERROR, LATENCY),
        exact=lambda genotypes: np.full((len(genotypes), 2), np.nan),
        exact_columns=(False, False),
    )
    drawn = np.random.default_rng(1).integers([len(choice.options) for choice in space.choices], size=(600, len(space)))
    genotypes = list(dict.fromkeys(map(space.canonical, drawn.tolist())))
    return problem, {
        g: (float(e), float(ms)) for g, (e, ms) in zip(genotypes, toy_costs(space, genotypes), strict=True)
    }


def test_known_qualities_leave_only_the_other_cost_to_be_learnt() -> None:
    problem, truth = two_costs_to_measure()
    known = {genotype: (error, float("nan")) for genotype, (error, _) in truth.items()}
    _, warm, _ = run(problem, lambda genotypes: toy_costs(problem.space, genotypes), 25, known=known)
    assert hypervolume(warm, (0.6, 10.0)) > 0.97 * hypervolume(np.array(list(truth.values())), (0.6, 10.0))


def test_costs_on_another_device_are_asked_about_first_and_help_to_predict() -> None:
    """Latencies that do not follow from the genes, but from those on another device."""
    problem, truth = two_costs_to_measure()
    known = {genotype: (error, float("nan")) for genotype, (error, _) in truth.items()}
    draws = np.random.default_rng(2).lognormal(0.0, 0.5, len(truth))
    slower = {genotype: (error, draw) for (genotype, (error, _)), draw in zip(truth.items(), draws, strict=True)}
    related = {genotype: (error, 3 * ms**0.8) for genotype, (error, ms) in slower.items()}

    def evaluate(genotypes: Sequence[Genotype]) -> Costs:
        return np.array([slower.get(genotype, (0.6, 9.0)) for genotype in genotypes])

    _, blind, blindly = run(problem, evaluate, 40, known=known)
    asked, told, informed = run(problem, evaluate, 40, known=known, related=related)
    front = non_dominated(np.array(list(related.values())))
    assert {genotype for genotype, best in zip(related, front, strict=True) if best} <= set(asked[:10])
    assert hypervolume(told[:10], (0.6, 10.0)) > hypervolume(blind[:10], (0.6, 10.0))
    assert informed[-1].columns["latency"].rank_correlation > blindly[-1].columns["latency"].rank_correlation + 0.2


def test_known_names_without_qualities_are_asked_for_among_the_first() -> None:
    problem = toy_problem()
    front = drive(problem, "guided", 60, seed=5)[-1]
    known = {genotype: (float("nan"), float(problem.exact([genotype])[0, 1])) for genotype in front}
    asked, _, _ = run(problem, toy, 20, known=known)
    assert len(set(asked) & set(front)) >= min(10, len(front))


def test_known_noise_is_not_mistaken_for_a_good_network() -> None:
    """With noisy errors, networks chosen on smoothed values are better in truth than those it was told are best."""
    noise = 0.05
    problem = dataclasses.replace(toy_problem(), noise=(noise, 0.0))
    rng = np.random.default_rng(2)

    def evaluate(genotypes: Sequence[Genotype]) -> Costs:
        costs = toy(genotypes)
        costs[:, 0] += noise * rng.standard_normal(len(costs))
        return costs

    asked, _, said = run(problem, evaluate, 80)
    blind = [g for batch in drive(problem, "random", 80) for g in batch][:80]
    assert said[-1].columns["error"].trusted
    assert hypervolume(toy(asked), (0.6, 10.0)) > hypervolume(toy(blind), (0.6, 10.0))
