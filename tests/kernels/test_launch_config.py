"""Launch settings: a function of its arguments, legal on every architecture, clear about what it does not know."""

from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kernels.launch_config import ARCHITECTURES, ELEMENT_TYPES, KERNELS, architecture, architecture_name, config_for

LEGAL: dict[str, Any] = {"kernel": "moe_up", "rows": 64, "width": 64, "dtype": "bfloat16", "arch": "sm_90"}


@pytest.mark.parametrize("kernel", KERNELS)
def test_blocks_are_powers_of_two(kernel: str) -> None:
    """Triton's ranges take nothing else, and matrix products at least 16 of each."""
    for rows, width, dtype, arch in product((1, 16, 17, 64, 65, 10**6), (16, 64, 128), ELEMENT_TYPES, ARCHITECTURES):
        config = config_for(kernel, rows=rows, width=width, dtype=dtype, arch=arch)
        assert all(block & (block - 1) == 0 for block in config.blocks.values())
        assert kernel == "weight_blend" or min(config.blocks.values()) >= 16
        assert config == config_for(kernel, rows=rows, width=width, dtype=dtype, arch=arch)


def test_few_rows_take_low_tiles() -> None:
    found = [config_for("moe_up", rows=r, width=64, dtype="bfloat16", arch="sm_90") for r in (1, 16, 17, 64, 65)]
    assert [config.block_m for config in found] == [16, 16, 64, 64, 128]


@pytest.mark.parametrize("rows", [1, 40, 500])
@pytest.mark.parametrize("dtype", ELEMENT_TYPES)
def test_both_products_of_an_expert_share_their_tiles(rows: int, dtype: str) -> None:
    up, down = (config_for(kernel, rows=rows, width=64, dtype=dtype, arch="sm_90") for kernel in ("moe_up", "moe_down"))
    assert up.block_m == down.block_m


def test_a_relative_has_the_settings_of_a_listed_architecture() -> None:
    assert architecture("sm_89") is ARCHITECTURES["sm_120"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arch": "sm_70"}, "unknown GPU architecture 'sm_70'; known: sm_80"),
        ({"dtype": "float64"}, "no kernel computes in 'float64'; choose one of bfloat16"),
        ({"kernel": "conv"}, "unknown kernel 'conv'; known: attention"),
        ({"kernel": "attention", "width": 256}, "heads of up to 128 features, got 256"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_for(**{**LEGAL, **change})


@pytest.mark.parametrize(("hip", "name"), [(None, "sm_90"), ("6.4", "gfx942")])
def test_architecture_name(hip: str | None, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(major=9, minor=0, gcnArchName="gfx942:sramecc+:xnack-")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.version, "hip", hip)
    architecture_name.cache_clear()
    assert architecture_name(torch.device("cuda", 0)) == name
    architecture_name.cache_clear()
