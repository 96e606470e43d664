"""Tables of hand-made measurements, whose sums can be done in the head."""

import json
import math

import pytest

from kernels.op_cost import feed_forward, linear, model
from kernels.op_spec import Context, OpSpec
from predictors.latency_table import EndToEndRow, LatencyTable
from predictors.predictor import COVERAGE, LatencyPredictor
from predictors.relative_fit import Correction, half_width
from studies.records import Measurement

CONTEXT = Context(batch=2, sequences=(8,))
SMALL, LARGE, HEAD = feed_forward(16, 16, CONTEXT), feed_forward(16, 64, CONTEXT), linear(16, 2, 2, CONTEXT)


def measured(spec: OpSpec, seconds: float, *, device: str = "cpu-1", noisy: bool = False) -> Measurement:
    return Measurement(
        op_key=spec.key,
        device=device,
        seconds_median=seconds,
        seconds_iqr=0.0,
        seconds_p95=seconds,
        repeats=5,
        reference_seconds=1.0,
        clock="thread_cpu",
        load=0.0,
        noisy=noisy,
    )


TABLE = LatencyTable.from_measurements([measured(SMALL, 1.0), measured(LARGE, 3.0), measured(HEAD, 0.5)], "cpu-1")


def row(seconds: float, *ops: OpSpec) -> EndToEndRow:
    return EndToEndRow(ops=ops, context=CONTEXT, seconds=seconds)


def test_prediction_is_the_sum_of_operations() -> None:
    predictor: LatencyPredictor = TABLE
    assert predictor.predict([SMALL, LARGE, LARGE, HEAD], CONTEXT).seconds == 7.5


def test_several_lengths_are_averaged_even_when_one_repeats() -> None:
    context = Context(batch=2, sequences=(8, 8, 16))
    long = feed_forward(16, 16, context.at(16))
    table = LatencyTable.from_measurements([measured(SMALL, 1.0), measured(long, 4.0)], "cpu-1")
    assert table.predict([SMALL, SMALL, long], context).seconds == pytest.approx((1.0 + 1.0 + 4.0) / 3)


def test_operations_of_another_context_are_refused() -> None:
    with pytest.raises(AssertionError, match="another context"):
        TABLE.predict([SMALL], Context(batch=1, sequences=(8,)))


def test_missing_operations_are_named_once_in_order() -> None:
    first, second = feed_forward(16, 32, CONTEXT), feed_forward(16, 48, CONTEXT)
    assert TABLE.missing([second, SMALL, first, second]) == [second, first]
    with pytest.raises(
        ValueError, match=r"2 operations were not measured on cpu-1, such as feed_forward\[hidden=16,width=48\]"
    ):
        TABLE.predict([second, first, SMALL], CONTEXT)


def test_last_measurement_of_this_device_counts_and_noise_is_kept() -> None:
    table = LatencyTable.from_measurements(
        [measured(SMALL, 1.0), measured(SMALL, 2.0, noisy=True), measured(SMALL, 9.0, device="cpu-2")], "cpu-1"
    )
    assert table.seconds == {SMALL.key: 2.0}
    assert table.noisy == (SMALL.key,)


def test_whole_networks_are_no_operations() -> None:
    whole = measured(model("abc", CONTEXT), 5.0)
    assert LatencyTable.from_measurements([whole], "cpu-1").seconds == {}


def test_whole_networks_correct_the_sum() -> None:
    table = TABLE.fitted([row(2.0, SMALL), row(6.0, LARGE), row(8.0, SMALL, LARGE)])
    assert table.correction.scale == pytest.approx(2.0, rel=1e-2)
    assert table.error == pytest.approx(0.0, abs=2e-2)
    prediction = table.predict([LARGE, LARGE], CONTEXT)
    assert prediction.seconds == pytest.approx(12.0, rel=1e-2)
    assert prediction.seconds - prediction.low == pytest.approx(12.0 * half_width(table.errors, COVERAGE), rel=1e-2)


def test_every_operation_of_a_small_network_costs_something_more() -> None:
    """Of many lengths the mean counts, as for the sum."""
    brief = [measured(SMALL, 1e-4), measured(LARGE, 3e-4)]
    truth = Correction(scale=1.1, operation_seconds=2e-5, pass_seconds=0.0)
    networks = [(SMALL,) * few + (LARGE,) * many for few, many in ((1, 20), (5, 5), (30, 1), (40, 10), (2, 30))]
    sums = [(sum(1e-4 if op == SMALL else 3e-4 for op in ops), len(ops)) for ops in networks]
    rows = [row(truth.seconds(*of), *ops) for of, ops in zip(sums, networks, strict=True)]
    table = LatencyTable.from_measurements(brief, "cpu-1").fitted(rows)
    assert table.correction.operation_seconds == pytest.approx(2e-5, rel=0.2)
    twice = Context(batch=2, sequences=(8, 8))
    assert table.predict([SMALL, LARGE] * 2, twice) == table.predict([SMALL, LARGE], CONTEXT)


def test_bounds_follow_the_rows_that_are_off() -> None:
    table = TABLE.fitted([row(2.0, SMALL), row(6.0, LARGE), row(10.0, SMALL, LARGE)])
    assert table.error == pytest.approx(sum(table.errors))
    assert max(table.errors) > 0.05
    prediction, width = table.predict([SMALL, LARGE], CONTEXT), half_width(table.errors, COVERAGE)
    assert prediction.low == pytest.approx(prediction.seconds * (1 - width))
    assert prediction.high == pytest.approx(prediction.seconds * (1 + width))


def test_bounds_and_error_are_unknown_without_three_rows() -> None:
    for rows in ([], [row(2.0, SMALL)], [row(2.0, SMALL), row(8.0, LARGE)]):
        table = TABLE.fitted(rows)
        prediction = table.predict([SMALL], CONTEXT)
        assert table.error is None
        assert (prediction.low, prediction.high) == (0.0, math.inf)
    assert TABLE.fitted([row(2.0, SMALL)]).fitted([]) == TABLE


def test_json_round_trip_keeps_the_hash() -> None:
    table = TABLE.fitted([row(2.1, SMALL), row(6.3, LARGE)])
    copy = LatencyTable.from_json(json.loads(json.dumps(table.to_json())))
    assert copy == table
    assert copy.hash == table.hash
    assert table.hash != TABLE.hash


def test_hash_ignores_the_order_of_measurements() -> None:
    rows = [measured(SMALL, 1.0), measured(LARGE, 3.0), measured(HEAD, 0.5)]
    assert LatencyTable.from_measurements(rows[::-1], "cpu-1").hash == TABLE.hash


@pytest.mark.parametrize("content", [{}, {**TABLE.to_json(), "seconds": [1.0]}, {**TABLE.to_json(), "scale": None}])
def test_a_malformed_table_is_refused(content: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not a latency table"):
        LatencyTable.from_json(content)
