"""The rule that picks forms and paths: its shape, and that it is what the stored measurements say."""

import pytest

from kernels.experts_rule import BLOCK, form_for, padded, path_for
from tests.benchmarks import expert_products


def test_padding_goes_to_whole_blocks() -> None:
    assert [padded(rows) for rows in (1, BLOCK, BLOCK + 1, 3 * BLOCK)] == [BLOCK, BLOCK, 2 * BLOCK, 3 * BLOCK]


@pytest.mark.parametrize("rows", [1, 2])
def test_one_or_two_rows_are_skinny_whatever_the_weight(rows: int) -> None:
    assert {form_for(rows, size, size) for size in (16, 128, 1024, 8192)} == {"skinny"}


def test_full_blocks_on_a_large_weight_are_blocked_and_small_weights_plain() -> None:
    assert form_for(64, 1024, 512) == "blocked"
    assert form_for(64, 64, 64) == "plain"


def test_a_result_that_must_be_turned_makes_blocked_dearer() -> None:
    straight = [form_for(64, outputs, 512) for outputs in range(64, 1024, 16)]
    turned = [form_for(64, outputs, 512, turned=True) for outputs in range(64, 1024, 16)]
    assert 0 < turned.count("blocked") < straight.count("blocked")


def test_fixed_cost_weighs_more_on_more_threads() -> None:
    assert form_for(64, 256, 512) == "blocked"
    assert form_for(64, 256, 512, threads=16) == "plain"


@pytest.mark.parametrize(
    ("tokens", "top_k", "experts", "model", "width", "path"),
    [
        (1, 2, 16, 512, 512, "expert"),
        (16, 8, 64, 512, 256, "expert"),
        (32, 2, 8, 64, 64, "grouped"),
        (32, 2, 8, 256, 256, "grouped"),
        (256, 2, 8, 256, 512, "expert"),
        (256, 8, 64, 256, 128, "grouped"),
        (512, 2, 16, 512, 512, "expert"),
        (256, 2, 8, 1024, 1024, "expert"),
    ],
)
def test_paths(tokens: int, top_k: int, experts: int, model: int, width: int, path: str) -> None:
    assert path_for(tokens, top_k, experts, model, width) == path


@pytest.mark.parametrize(("dtype", "path"), [("float64", "loop"), ("bfloat16", "grouped"), ("float16", "grouped")])
def test_paths_of_other_element_types(dtype: str, path: str) -> None:
    assert path_for(512, 2, 16, 512, 512, dtype=dtype) == path


def test_constants_are_the_fit_to_the_stored_measurements() -> None:
    fitted, used = expert_products.fit(expert_products.stored()), expert_products.in_use()
    assert fitted.keys() == used.keys()
    for name, constants in used.items():
        assert fitted[name] == pytest.approx(constants, rel=0.01)


def test_the_rule_loses_little_against_the_best_form_of_every_stored_case() -> None:
    table = expert_products.stored()
    assert expert_products.regret(table) < 1.05
    assert min(expert_products.regret(table, "plain"), expert_products.regret(table, "blocked")) > 1.2
