"""MoE operations: FLOPs against torch's counter, bytes against the tensors that are read, keys, and the module."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from kernels.experts import experts_reference
from kernels.moe_layer import MoeLayer, build_moe
from kernels.op_cost import moe, spread_widths
from kernels.op_spec import Context, OpSpec
from kernels.reference import build, build_input, build_module
from kernels.routing_profile import RoutingProfile, histogram, positions

CONTEXT = Context(batch=3, sequences=(7,))
SKEWED = RoutingProfile(busy=3, imbalance="skewed")
SPECS = [
    moe(16, 4, 2, 32, CONTEXT),
    moe(16, 4, 2, 32, CONTEXT, shared=48, profile=SKEWED, implementation="torch"),
    moe(16, 6, 1, [16, 32, 16, 48, 16, 32], CONTEXT, profile=SKEWED, implementation="torch"),
    moe(16, 4, 2, [16, 32, 48, 16], CONTEXT, implementation="triton"),
    moe(32, 8, 2, 16, Context(batch=1, sequences=(1,))),
]


def layer_of(spec: OpSpec) -> MoeLayer:
    with torch.random.fork_rng(devices=[]):
        return build_moe(spec).eval()


def in_loop(layer: MoeLayer) -> None:
    """Let torch's counter see every product as a plain one."""

    def loop(x: torch.Tensor, chosen: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return experts_reference(x, layer.gate_up_proj, layer.down_proj, chosen, weight, widths=layer.widths)

    layer.compute = loop


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.key)
@torch.inference_mode()
def test_flops_are_what_torch_counts(spec: OpSpec) -> None:
    layer, x = layer_of(spec), build_input(spec)
    in_loop(layer)

    def matrix_vector(matrix: torch.Size, vector: torch.Size, **_: object) -> int:
        return 2 * matrix[0] * matrix[1]

    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.mv: matrix_vector})
    with counter:
        layer(x)
    assert spec.flops == counter.get_total_flops()


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.key)
def test_bytes_are_what_busy_experts_router_and_both_ends_hold(spec: OpSpec) -> None:
    layer, x = layer_of(spec), build_input(spec)
    busy = set(layer.chosen_Tk.flatten().tolist())
    shared = [one.weight.numel() for one in (layer.shared_up, layer.shared_down) if one is not None]
    used = sum(3 * layer.widths[expert] * spec.size["hidden"] for expert in busy)
    assert spec.bytes == 4 * (layer.router.weight.numel() + used + sum(shared) + 2 * x.numel())


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.key)
def test_the_layer_is_routed_like_its_profile(spec: OpSpec) -> None:
    layer, profile = layer_of(spec), RoutingProfile.parse(spec.routing)
    counts = torch.bincount(layer.chosen_Tk.flatten(), minlength=spec.size["experts"]).tolist()
    tokens, top_k = layer.chosen_Tk.shape
    assert [counts[one] for one in positions(profile.busy, len(counts))] == list(histogram(tokens, top_k, profile))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.key)
@torch.inference_mode()
def test_every_implementation_computes_the_same(spec: OpSpec) -> None:
    layer, x = layer_of(spec), build_input(spec)
    result = layer(x)
    in_loop(layer)
    torch.testing.assert_close(result, layer(x), rtol=1e-5, atol=1e-6)
    assert build(spec)().shape == x.shape


def test_shared_experts_are_added() -> None:
    spec = SPECS[1]
    layer, x = build_module(spec), build_input(spec)
    assert isinstance(layer, MoeLayer)
    assert layer.shared_up is not None
    assert layer.shared_down is not None
    alone = MoeLayer(16, layer.chosen_Tk, layer.widths)
    alone.load_state_dict(layer.state_dict(), strict=False)
    gate, up = layer.shared_up(x).chunk(2, -1)
    torch.testing.assert_close(layer(x), alone(x) + layer.shared_down(torch.nn.functional.silu(gate) * up))


def test_keys_tell_routing_widths_and_implementation_apart() -> None:
    assert SPECS[0].key == "moe[experts=4,hidden=16,top_k=2,width=32]@b3,s7,t1,float32#stock#e4,even"
    assert SPECS[1].key == "moe[experts=4,hidden=16,shared=48,top_k=2,width=32]@b3,s7,t1,float32#torch#e3,skewed"
    mixed = "moe[experts=6,hidden=16,top_k=1,width_16=3,width_32=2,width_48=1]@b3,s7,t1,float32#torch#e3,skewed"
    assert SPECS[2].key == mixed
    assert moe(16, 6, 1, [48, 32, 32, 16, 16, 16], CONTEXT, profile=SKEWED, implementation="torch") == SPECS[2]


def test_launches_grow_with_busy_experts_unless_one_kernel_runs_all() -> None:
    assert [spec.launches for spec in SPECS] == [20, 22, 17, 7, 20]


class _Launches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations, views not among them."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aliases = [each.alias_info for each in func._schema.returns]
        self.count += not any(alias is not None and not alias.is_write for alias in aliases)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("experts", [4, 16])
@pytest.mark.parametrize("shared", [0, 32])
def test_launches_of_the_stock_layer_are_those_torch_makes(experts: int, shared: int) -> None:
    spec = moe(16, experts, 2, 32, CONTEXT, shared=shared)
    layer, x = layer_of(spec), torch.randn(CONTEXT.batch, CONTEXT.sequences[0], 16)
    launches = _Launches()  # type: ignore[no-untyped-call]
    with torch.no_grad(), launches:
        layer(x)
    assert spec.launches == launches.count


def test_widths_are_spread() -> None:
    assert spread_widths([8, 8, 8, 8, 4, 4]) == (8, 4, 8, 8, 4, 8)
    assert spread_widths([3] * 5) == (3,) * 5


def test_mixed_widths_are_not_stock() -> None:
    with pytest.raises(AssertionError, match=r"stock experts have one width, got \[16, 32\]"):
        moe(16, 2, 1, [16, 32], CONTEXT)


def test_unknown_implementation() -> None:
    with pytest.raises(ValueError, match="not as 'magic'"):
        build(moe(16, 2, 1, 16, CONTEXT, implementation="magic"))
