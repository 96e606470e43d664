"""The duplicate rule and the default split: nothing leaks, nothing is lost without being counted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supernets.data.data_sets import WHOLE
from supernets.data.splits import Example, examples_of, sample, separate, split_examples
from supernets.data.table_files import Table

WORDS = st.sampled_from(["a", "A", "b", " b", "c  d", "c d", "e", "F", "f", "g"])
EXAMPLES = st.builds(Example, st.tuples(WORDS), st.sampled_from(["x", "y", ""]))
MANY = st.lists(EXAMPLES, max_size=40)


def _keys(examples: list[Example]) -> set[str]:
    return {example.key for example in examples}


@given(examples=MANY, seed=st.integers(0, 3))
def test_default_split_keeps_duplicates_together_and_counts_the_rest(examples: list[Example], seed: int) -> None:
    splits, dropped = split_examples({WHOLE: examples}, seed)
    train, validation, test = (splits[name] for name in ("train", "validation", "test"))
    assert not _keys(train) & _keys(validation)
    assert not _keys(train) & _keys(test)
    assert not _keys(validation) & _keys(test)
    kept = train + validation + test
    assert len(kept) + sum(dropped.values()) == len(examples)
    assert max(Counter(kept).values(), default=1) == 1
    # Slow oracle of rule 1: an example stays if its duplicates agree, and it is labelled or none of them is.
    expected = set()
    for example in examples:
        labels = {other.label for other in examples if other.key == example.key} - {""}
        if len(labels) == 0 or labels == {example.label}:
            expected.add(example)
    assert set(kept) == expected


@given(train=MANY, validation=MANY, test=MANY)
def test_given_splits_do_not_leak(train: list[Example], validation: list[Example], test: list[Example]) -> None:
    splits, dropped = split_examples({"train": train, "validation": validation, "test": test})
    assert splits["test"] == test
    assert splits["validation"] == [example for example in validation if example.key not in _keys(test)]
    assert not _keys(splits["train"]) & (_keys(test) | _keys(validation))
    assert sum(map(len, splits.values())) + sum(dropped.values()) == len(train) + len(validation) + len(test)


def test_default_split_is_stratified_and_independent_of_order() -> None:
    examples = [Example((f"text {i}",), "rare" if i % 5 == 0 else "common") for i in range(500)]
    splits, dropped = split_examples({WHOLE: examples})
    counts = {name: Counter(example.label for example in rows) for name, rows in splits.items()}
    assert counts == {
        "train": {"common": 320, "rare": 80},
        "validation": {"common": 40, "rare": 10},
        "test": {"common": 40, "rare": 10},
    }
    assert dropped == {}
    again, _ = split_examples({WHOLE: examples[::-1]})
    assert {name: set(rows) for name, rows in again.items()} == {name: set(rows) for name, rows in splits.items()}
    other, _ = split_examples({WHOLE: examples}, seed=1)
    assert set(other["test"]) != set(splits["test"])
    assert splits["train"] == [example for example in examples if example in set(splits["train"])]


def test_validation_is_cut_from_training_if_it_is_missing() -> None:
    train = [Example((f"text {i}",), "ab"[i % 2]) for i in range(40)]
    test = [Example(("text 3",), "b")]
    splits, dropped = split_examples({"train": train, "test": test})
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 35, "validation": 4, "test": 1}
    assert dropped == {"also in another split": 1}


def test_sample_is_a_fixed_part_in_order() -> None:
    examples = [Example((f"text {i}",), "x") for i in range(50)]
    part = sample(examples, 10)
    assert part == sample(examples, 10)
    assert part == [example for example in examples if example in part]
    assert len(part) == 10
    assert part != sample(examples, 10, seed=1)
    assert sample(examples, 99) == sample(examples, None) == examples


def test_a_split_column_is_honoured() -> None:
    whole = Table(Path("a.csv"), {"text": list("abcd"), "split": ["train", "Test", "dev", "train"]})
    tables = separate({WHOLE: whole})
    assert {name: table.columns["text"] for name, table in tables.items()} == {
        "train": ["a", "d"],
        "validation": ["c"],
        "test": ["b"],
    }
    strange = Table(Path("a.csv"), {"text": ["a"], "split": ["banana"]})
    with pytest.raises(ValueError, match=r"a\.csv: column 'split' must say train, validation, test .* \['banana'\]"):
        separate({WHOLE: strange})


def test_rows_without_text_are_left_out_and_pairs_need_one_side() -> None:
    table = Table(Path("a.csv"), {"q": ["a", " ", ""], "r": ["", "b", ""], "label": ["1 ", "0", "1"]})
    examples, empty = examples_of(table, ("q", "r"), "label")
    assert examples == [Example(("a", ""), "1"), Example((" ", "b"), "0")]
    assert empty == 1
    assert examples_of(table, ("q",), None)[0] == [Example(("a",), "")]
