"""The ledger: what an algorithm asks for, and what it is spared."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from nas.algorithm import Ledger
from tests.toy_search import toy_costs, toy_problem


def test_asks_once_for_each_new_network_and_answers_in_order() -> None:
    problem = toy_problem()
    ledger = Ledger(problem)
    smallest, largest = problem.space.smallest, problem.space.largest
    spelled = (*smallest[:-1], 2)
    question = ledger.ask([largest, smallest, spelled, largest])
    assert next(question) == [largest, smallest]
    with pytest.raises(StopIteration) as answer:
        question.send(toy_costs(problem.space, [largest, smallest]))
    assert answer.value.value.tolist() == toy_costs(problem.space, [largest, smallest, smallest, largest]).tolist()
    with pytest.raises(StopIteration):
        next(ledger.ask([spelled]))


def test_a_network_over_a_known_limit_is_answered_without_asking() -> None:
    problem = toy_problem({1: 4.0})
    ledger = Ledger(problem)
    question = ledger.ask([problem.space.largest])
    with pytest.raises(StopIteration) as answer:
        next(question)
    row = answer.value.value[0]
    assert np.isnan(row[0])
    assert row[1] == toy_costs(problem.space, [problem.space.largest])[0, 1]
    assert not ledger.measured


def test_draws_distinct_networks_within_the_limit_even_where_those_are_rare() -> None:
    problem = toy_problem({1: 1.7})
    drawn = Ledger(problem).draw(Random(0), 20)
    assert len(set(drawn)) == 20
    assert (toy_costs(problem.space, drawn)[:, 1] <= 1.7).all()


def test_draws_nothing_where_nothing_is_affordable() -> None:
    assert Ledger(toy_problem({1: 0.1})).draw(Random(0), 3) == []


def test_only_what_failed_breaks_limits_without_end() -> None:
    """A cost that may be arbitrarily good, as a network has that was only looked at briefly, breaks no limit."""
    problem = toy_problem({1: 4.0})
    costs = np.array([[np.inf, np.inf], [-np.inf, -np.inf], [-np.inf, 5.0], [0.1, np.nan]])
    assert problem.violations(costs).tolist() == [np.inf, 0.0, 0.25, 0.0]
