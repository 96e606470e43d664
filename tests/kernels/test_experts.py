"""Every path of the CPU experts against the slow loop in float64, and its gradients against autograd through that."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from kernels import experts as module
from kernels.experts import experts, experts_reference, product
from kernels.experts_rule import BLOCK, Form, Path

FORMS: tuple[Form, ...] = ("plain", "skinny", "blocked")


@dataclass
class Case:
    """A random layer and tokens; `chosen` may leave experts without rows."""

    x: Tensor
    up: Tensor
    down: Tensor
    chosen: Tensor
    weight: Tensor
    bank: list[int]
    widths: list[int]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.x, self.up, self.down, self.chosen, self.weight

    def run(self, path: Path | None = None) -> Tensor:
        return experts(*self.tensors, bank=self.bank, widths=self.widths, path=path)

    def expected(self) -> Tensor:
        x, up, down, weight = (one.double() for one in (self.x, self.up, self.down, self.weight))
        return experts_reference(x, up, down, self.chosen, weight, bank=self.bank, widths=self.widths).float()


def make_case(
    tokens: int,
    top_k: int,
    bank: list[int],
    *,
    stored_experts: int = 6,
    model: int = 16,
    stored: int = 32,
    widths: list[int] | None = None,
    used: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Case:
    generator = torch.Generator().manual_seed(tokens + 7 * top_k)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    scores = torch.rand(tokens, used or len(bank), generator=generator)
    return Case(
        x=normal(tokens, model),
        up=normal(stored_experts, 2 * stored, model) / model**0.5,
        down=normal(stored_experts, model, stored) / stored**0.5,
        chosen=scores.topk(top_k).indices,
        weight=normal(tokens, top_k),
        bank=bank,
        widths=widths or [stored] * len(bank),
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    count = draw(st.integers(1, 6))
    used = draw(st.integers(1, count))
    stored = draw(st.sampled_from([4, 8, 24, 32]))
    width = st.integers(1, stored)
    widths = draw(st.one_of(st.none(), st.lists(width, min_size=count, max_size=count)))
    return make_case(
        draw(st.integers(0, 40)),
        draw(st.integers(1, used)),
        draw(st.permutations(range(6)))[:count],
        model=draw(st.sampled_from([4, 12, 16])),
        stored=stored,
        widths=widths,
        used=used,
    )


def close(result: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


@given(cases())
@settings(max_examples=60, deadline=None)
def test_chosen_path_equals_the_slow_loop(case: Case) -> None:
    close(case.run(), case.expected())


@given(cases(), st.sampled_from(FORMS), st.sampled_from(FORMS))
@settings(max_examples=80, deadline=None)
def test_every_pair_of_forms_equals_the_slow_loop(case: Case, up: Form, down: Form) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_form", lambda rows, weight, threads, turned=False: down if turned else up)
        close(case.run("expert"), case.expected())


@given(cases())
@settings(max_examples=40, deadline=None)
def test_loop_equals_the_slow_loop(case: Case) -> None:
    close(case.run("loop"), case.expected())


@pytest.mark.parametrize("bank", [[0, 1, 2, 3, 4, 5], [4, 1, 5]], ids=["whole", "kept"])
@pytest.mark.parametrize("width", [32, 16])
@pytest.mark.parametrize("used", [2, 3])
def test_grouped_product_equals_the_slow_loop(bank: list[int], width: int, used: int) -> None:
    case = make_case(19, 2, bank, widths=[width] * len(bank), used=used)
    close(case.run("grouped"), case.expected())


@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17])
@pytest.mark.parametrize("form", FORMS)
def test_forms_are_the_same_product(rows: int, form: Form) -> None:
    weight_MK, x_RK = torch.randn(24, 12), torch.randn(rows, 12)
    close(product(weight_MK, x_RK, form), (x_RK.double() @ weight_MK.double().t()).float())


def test_neighbours_in_padding_do_not_leak() -> None:
    case = make_case(BLOCK + 1, 1, [0, 1])
    case.x[case.chosen[:, 0] == 1] = float("nan")
    clean = case.chosen[:, 0] == 0
    assert clean.any()
    assert not clean.all()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_form", lambda *_, **__: "blocked")
        close(case.run("expert")[clean], case.expected()[clean])


@pytest.mark.parametrize("path", ["grouped", "loop", None])
@pytest.mark.parametrize("width", [32, 16])
def test_gradients_are_those_of_the_slow_loop(path: Path | None, width: int) -> None:
    case = make_case(9, 2, [3, 0, 5], widths=[width] * 3)
    leaves = [one.requires_grad_() for one in (case.x, case.up, case.down, case.weight)]
    target = torch.randn(9, 16)
    found = torch.autograd.grad(case.run(path), leaves, target)
    expected = torch.autograd.grad(case.expected(), leaves, target)
    for one, other in zip(found, expected, strict=True):
        close(one, other)


def test_gradient_of_a_plain_sum() -> None:
    case = make_case(9, 2, [0, 1, 2, 3, 4, 5])
    case.up.requires_grad_()
    (found,) = torch.autograd.grad(case.run("grouped").sum(), case.up)
    (expected,) = torch.autograd.grad(case.expected().sum(), case.up)
    close(found, expected)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 2e-2), (torch.float16, 4e-3)]
)
@pytest.mark.parametrize("widths", [[32, 32, 32], [16, 32, 24]], ids=["one width", "mixed"])
def test_other_element_types(dtype: torch.dtype, tolerance: float, widths: list[int]) -> None:
    case = make_case(11, 2, [0, 2, 4], widths=widths, dtype=dtype)
    result = case.run()
    assert result.dtype == dtype
    expected = experts_reference(
        *(one.double() if one.is_floating_point() else one for one in case.tensors), bank=case.bank, widths=widths
    )
    torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=tolerance)


def test_another_activation() -> None:
    case = make_case(5, 2, [0, 1, 2])
    expected = experts_reference(*case.tensors, bank=case.bank, act=functional.relu)
    close(experts(*case.tensors, bank=case.bank, act=functional.relu), expected)
    assert not torch.equal(case.run(), expected)


def test_no_weight_is_copied_by_a_smaller_layer() -> None:
    case = make_case(1, 1, [3], widths=[8])
    layer = module._layer(case.up, case.down, case.bank, case.widths, functional.silu)
    for view, whole in ((layer.halves(0)[0], case.up), (layer.halves(0)[1], case.up), (layer.down_of(0), case.down)):
        assert view.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()


@pytest.mark.parametrize(
    ("path", "dtype", "width", "message"),
    [
        ("expert", torch.float64, 32, "computes float32"),
        ("grouped", torch.float64, 32, "needs one width and 16-byte strides"),
        ("grouped", torch.float32, 7, "needs one width and 16-byte strides"),
    ],
)
def test_a_path_that_cannot_run_says_so(path: Path, dtype: torch.dtype, width: int, message: str) -> None:
    case = make_case(3, 1, [0], dtype=dtype, widths=[width])
    with pytest.raises(ValueError, match=message):
        case.run(path)


def test_forced_inference_path_refuses_gradients() -> None:
    case = make_case(3, 1, [0])
    case.up.requires_grad_()
    with pytest.raises(ValueError, match=r"use 'loop', or torch\.no_grad"):
        case.run("expert")
    with torch.no_grad():
        case.run("expert")


@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize("path", ["expert", "grouped", "loop"])
def test_autocast_changes_nothing(path: Path, tokens: int) -> None:
    case = make_case(tokens, 2, list(range(6)))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        close(experts(case.x, case.up, case.down, case.chosen, case.weight, path=path), case.expected())
