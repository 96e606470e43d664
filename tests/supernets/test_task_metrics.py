"""Metrics against scikit-learn, their standard error against the leave-one-out loop, labels and batch orders."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as oracle

from supernets.data.batching import LENGTH_MULTIPLE, evaluation_order, padded_length, training_order
from supernets.data.labels import class_names, label_ids, require_classes
from supernets.data.metrics import METRICS, confusion, f1, jackknife_error, matthews

PAIRS = st.integers(2, 4).flatmap(
    lambda classes: st.tuples(
        st.just(classes),
        st.lists(st.tuples(st.integers(0, classes - 1), st.integers(0, classes - 1)), min_size=1, max_size=30),
    )
)


@given(case=PAIRS)
def test_metrics_agree_with_scikit_learn(case: tuple[int, list[tuple[int, int]]]) -> None:
    classes, pairs = case
    true, predicted = (np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True))
    counts = confusion(true, predicted, classes)
    assert counts.tolist() == oracle.confusion_matrix(true, predicted, labels=range(classes)).tolist()
    average = "binary" if classes == 2 else "macro"
    assert math.isclose(f1(counts), oracle.f1_score(true, predicted, average=average, zero_division=0.0))
    assert math.isclose(METRICS["accuracy"](counts), float(np.mean(true == predicted)))
    if len(set(true.tolist()) | set(predicted.tolist())) > 1:  # scikit-learn warns about a single label
        assert math.isclose(matthews(counts), oracle.matthews_corrcoef(true, predicted), abs_tol=1e-12)


@pytest.mark.parametrize("name", METRICS)
@given(case=PAIRS)
def test_jackknife_is_the_leave_one_out_loop(name: str, case: tuple[int, list[tuple[int, int]]]) -> None:
    classes, pairs = case
    true, predicted = (np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True))
    n, metric = len(pairs), METRICS[name]
    if n == 1:
        assert jackknife_error(metric, confusion(true, predicted, classes)) == math.inf
        return
    left = [metric(confusion(np.delete(true, i), np.delete(predicted, i), classes)) for i in range(n)]
    expected = math.sqrt((n - 1) ** 2 / n * np.var(left, ddof=1))
    assert math.isclose(jackknife_error(metric, confusion(true, predicted, classes)), expected, abs_tol=1e-9)


def test_jackknife_of_accuracy_is_binomial() -> None:
    counts = np.array([[700, 100], [50, 150]])
    expected = math.sqrt(0.85 * 0.15 / 999)
    assert math.isclose(jackknife_error(METRICS["accuracy"], counts), expected)


def test_matthews_does_not_overflow() -> None:
    assert math.isclose(matthews(np.array([[10**9, 0], [0, 10**9]])), 1.0)


def test_metrics_need_an_example() -> None:
    with pytest.raises(ValueError, match="at least one labelled example"):
        confusion(np.array([], dtype=np.int64), np.array([], dtype=np.int64), 2)


def test_classes_are_in_order_of_value_then_name() -> None:
    assert class_names({"train": ["10", "9", "b", "10", "a", "b", "9", "a", ""]}, "x") == ("9", "10", "a", "b")


@pytest.mark.parametrize(
    ("labels_of", "message"),
    [
        ({"train": ["a", "a", ""]}, r"column must hold two classes or more, got \['a'\]"),
        ({"train": []}, r"column must hold two classes or more, got \[\]"),
        ({"train": ["a", "b", "c", "d"]}, "column holds 4 different values in 4 rows; name a column of classes"),
        ({"train": ["a", "b"], "test": ["c"]}, r"column has \['c'\] in test but never in train"),
    ],
)
def test_unusable_labels_are_named(labels_of: dict[str, list[str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        class_names(labels_of, "column")


def test_labels_match_a_head_by_name_case_or_number() -> None:
    names = ("neg", "POS")
    assert label_ids(["POS", "neg", ""], names, "x") == [1, 0, -100]
    assert label_ids(["pos", "Neg"], names, "x") == [1, 0]
    assert label_ids(["1", "0"], names, "x") == [1, 0]
    assert label_ids(["1", "0"], ("1", "0"), "x") == [0, 1]  # a name wins over a number
    assert label_ids(["1", "2"], ("1", "2", "3"), "x", among=["0", "1", "2"]) == [1, 2]  # other splits hold numbers
    assert label_ids(["a", "A"], ("a", "A"), "x") == [0, 1]
    with pytest.raises(ValueError, match=r"x holds \['maybe'\], which the classes \['neg', 'POS'\] lack"):
        label_ids(["maybe", "neg"], names, "x")


LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=300)


@given(lengths=LENGTHS, batch_size=st.integers(1, 5), seed=st.integers(0, 9))
def test_every_index_is_in_one_batch(lengths: list[int], batch_size: int, seed: int) -> None:
    indices = range(0, len(lengths), 2)
    for order in (
        training_order(lengths, indices, batch_size, seed),
        evaluation_order(lengths, indices, batch_size),
    ):
        assert sorted(i for batch in order for i in batch) == list(indices)
        assert len(order) == -(-len(indices) // batch_size)
    assert training_order(lengths, list(indices)[::-1], batch_size, seed) == training_order(
        lengths, indices, batch_size, seed
    )
    flat = [lengths[i] for batch in evaluation_order(lengths, indices, batch_size) for i in batch]
    assert flat == sorted(flat, reverse=True)


def test_training_batches_are_shuffled_and_of_like_length() -> None:
    lengths = [1 + (i * 7919) % 64 for i in range(1000)]
    order = training_order(lengths, range(1000), 10, seed=0)
    assert order != training_order(lengths, range(1000), 10, seed=1)
    assert max(max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in order) <= 6
    means = [sum(lengths[i] for i in batch) for batch in order]
    assert means != sorted(means)
    assert means != sorted(means, reverse=True)


@given(longest=st.integers(1, 600), max_length=st.integers(1, 600))
def test_padding_is_short_and_never_beyond_the_limit(longest: int, max_length: int) -> None:
    length = padded_length(longest, max_length)
    assert longest <= length < longest + LENGTH_MULTIPLE
    assert length <= max(longest, max_length)
    assert length % LENGTH_MULTIPLE == 0 or length == max(longest, max_length)


def test_a_batch_size_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size must be positive, got 0"):
        evaluation_order([1], [0], 0)


def test_a_head_must_have_the_classes_in_the_order_of_the_task() -> None:
    require_classes(("LABEL_0", "LABEL_1"), ("bad", "good"), "x")
    require_classes(("Bad", "GOOD"), ("bad", "good"), "x")
    with pytest.raises(ValueError, match=r"x has a head for 3 classes .* but the task has 2"):
        require_classes(("a", "b", "c"), ("a", "b"), "x")
    mnli, ours = ("CONTRADICTION", "NEUTRAL", "ENTAILMENT"), ("contradiction", "entailment", "neutral")
    with pytest.raises(ValueError, match=r"x has the classes .* the task has them in another order"):
        require_classes(mnli, ours, "x")
