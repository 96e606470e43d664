"""What the cache of generated weights promises, for every kind of mixture: bounded, idle in training, never stale."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from supernets.finetune import make_optimizer
from supernets.mixture import Mixture
from supernets.space import Architecture
from supernets.supernet import Supernet
from supernets.weight_cache import WeightCache
from tests.toy_mixture import (
    KINDS,
    SETTINGS,
    a_mixed_module,
    active_logits,
    architectures,
    logits,
    loss_of,
    mixed,
    scrambled,
    source_of,
)
from tests.toy_task import tiny_model, tiny_space


@dataclass
class Changes:
    """What may happen to a supernet between two evaluations."""

    supernet: Supernet
    options: dict[str, Any]

    def step(self) -> None:
        optimizer = make_optimizer(dict(self.supernet.model.named_parameters()), SETTINGS)
        loss_of(self.supernet, architectures(self.supernet)[0]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    def there_and_back(self) -> None:
        self.supernet.model.to(torch.bfloat16).to(torch.float32)

    def one_layer_there_and_back(self) -> None:
        self.supernet.model.get_submodule("bert.encoder.layer.0").to(torch.bfloat16).to(torch.float32)

    def double(self) -> None:
        self.supernet.model.double()

    def single(self) -> None:
        self.supernet.model.float()

    def load(self) -> None:
        self.supernet.model.load_state_dict(scrambled(mixed(self.options)).model.state_dict())

    def assign(self) -> None:
        self.supernet.model.load_state_dict(scrambled(mixed(self.options)).model.state_dict(), assign=True)

    def reorder(self) -> None:
        self.supernet.reorder({(g.axis, g.layer): list(reversed(range(g.units))) for g in self.supernet.groups})

    def train_and_back(self) -> None:
        self.supernet.model.train()
        logits(self.supernet)
        self.supernet.model.eval()


NAMES = sorted(name for name in vars(Changes) if not name.startswith("_") and callable(getattr(Changes, name)))
EVENTS = st.lists(st.one_of(st.sampled_from(NAMES), st.integers(0, 4)), min_size=2, max_size=8)


@settings(max_examples=12)
@given(events=EVENTS, kind=st.sampled_from(sorted(KINDS)))
def test_the_cache_is_never_stale(events: list[str | int], kind: str) -> None:
    """Numbers switch to a network, names change the supernet; every answer equals one without a cache."""
    supernet = scrambled(mixed(KINDS[kind]))
    changes, chosen = Changes(supernet, KINDS[kind]), architectures(supernet, 3)
    current = chosen[0]
    for event in events:
        if isinstance(event, int):
            current = chosen[event]
        else:
            getattr(changes, event)()
        found = [active_logits(supernet, current) for _ in range(2)]
        assert all(torch.equal(one, without_cache(supernet, current)) for one in found)
        assert len(source_of(supernet).cache) <= source_of(supernet).cache.architectures


def without_cache(supernet: Supernet, architecture: Architecture) -> Tensor:
    mixture = source_of(supernet)
    kept, mixture.cache = mixture.cache, WeightCache(0)
    try:
        return active_logits(supernet, architecture)
    finally:
        mixture.cache = kept


@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_answers_in_evaluation_and_never_in_training(kind: str) -> None:
    trained = scrambled(mixed(KINDS[kind]))
    mixture, chosen = source_of(trained), architectures(trained)
    linear = a_mixed_module(trained)

    def twice(architecture: Architecture) -> Iterator[int]:
        for _ in range(2):
            yield mixture.weights(linear.slot, linear.weight, linear.bias, architecture)[0].data_ptr()

    with torch.no_grad():
        assert len(set(twice(chosen[0]))) == 1
        for architecture in chosen:
            active_logits(trained, architecture)
        assert len(mixture.cache) == mixture.cache.architectures < len(chosen)
        trained.model.train()
        mixture.cache.clear()
        list(twice(chosen[0]))
        assert not len(mixture.cache)
    trained.model.eval()
    loss_of(trained, chosen[0]).backward()  # type: ignore[no-untyped-call]
    assert not len(mixture.cache)


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_is_a_mixture_of_its_own(kind: str) -> None:
    trained = scrambled(mixed(KINDS[kind]))
    architecture = architectures(trained)[0]
    before = active_logits(trained, architecture)
    copy = deepcopy(trained)
    assert torch.equal(active_logits(copy, architecture), before)
    scrambled(copy)
    assert not torch.equal(active_logits(copy, architecture), before)
    assert torch.equal(active_logits(trained, architecture), before)


@pytest.mark.parametrize("kind", KINDS)
def test_views_kept_from_before_mixing_are_forgotten(kind: str) -> None:
    supernet = Supernet.wrap(tiny_model(), tiny_space())
    architecture = supernet.space.decode(supernet.space.smallest)
    plain = active_logits(supernet, architecture)
    Mixture.over(supernet, **KINDS[kind])
    scrambled(supernet)
    assert not torch.equal(active_logits(supernet, architecture), plain)
    assert torch.equal(active_logits(supernet, architecture), logits(supernet.extract(architecture)))
