"""Which network of a front a user means, and which networks a limit leaves."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nas.export import Selection, select, within_limits
from studies.errors import LimitError
from studies.pareto import ParetoFront
from studies.records import Evaluation, Objective, Value

ERROR, LATENCY = Objective(name="error", unit="fraction"), Objective(name="latency", unit="ms")


def point(number: int, error: float, latency: float, parameters: float) -> Evaluation:
    numbers = {"error": error, "latency": latency, "parameters": parameters}
    values = [Value(objective=name, number=n, provenance="extracted") for name, n in numbers.items()]
    return Evaluation(genotype=(number,), number=number, values=tuple(values))


POINTS = [point(0, 0.1, 9.0, 90), point(1, 0.12, 4.0, 40), point(2, 0.3, 3.0, 20), point(3, 0.5, 9.0, 90)]
FRONT = ParetoFront.of((ERROR, LATENCY), POINTS)


@pytest.mark.parametrize(
    ("selection", "number"),
    [
        (Selection(), 1),
        (Selection(number=3), 3),
        (Selection(rank=1), 0),
        (Selection(rank=3), 2),
        (Selection(rank=1, limits={"latency": 4.0}), 1),
        (Selection(limits={"latency": 3.5, "parameters": 20}), 2),
    ],
)
def test_selection(selection: Selection, number: int) -> None:
    assert select(FRONT, POINTS, selection).number == number


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: select(FRONT, POINTS, Selection(number=9)), ValueError, "no finished evaluation number 9"),
        (lambda: select(FRONT, POINTS, Selection(rank=4)), ValueError, "ranks 1 to 3, not 4"),
        (lambda: select(ParetoFront.of((ERROR,), []), [], Selection()), ValueError, "no measured network is left"),
        (lambda: within_limits(FRONT, {"latency": 2.0}), LimitError, "latency <= 2; the smallest measured is 3"),
        (lambda: within_limits(FRONT, {"macs": 2.0}), ValueError, "no measured values for macs"),
    ],
)
def test_a_selection_that_means_nothing(call: Callable[[], object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()


def test_ranks_are_those_that_a_front_is_shown_with() -> None:
    """Equal in the first objective, networks stand in order of their numbers, whatever the others say."""
    sizes = Objective(name="parameters", unit="parameters")
    points = [point(3, 0.1, 9.0, 10), point(7, 0.1, 8.0, 20), point(9, 0.2, 1.0, 30)]
    front = ParetoFront.of((ERROR, LATENCY, sizes), points)
    assert [select(front, points, Selection(rank=rank)).number for rank in (1, 2, 3)] == [3, 7, 9]


def test_networks_without_a_limited_value_are_left_out() -> None:
    """Where latency is limited and no objective, only the finalists are timed."""
    untimed = Evaluation(genotype=(4,), number=4, values=point(4, 0.05, 0.0, 95).values[::2])
    front = ParetoFront.of((ERROR, Objective(name="parameters", unit="parameters")), [*POINTS, untimed])
    assert untimed in front.evaluations
    kept = within_limits(front, {"latency": 4.0})
    assert [evaluation.number for evaluation in kept.evaluations] == [1, 2]
