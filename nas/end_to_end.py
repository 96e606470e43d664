"""Times whole sub-networks as the user will run them: extracted, on the device, one forward pass per call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kernels import op_cost
from kernels.device import DeviceBackend
from kernels.op_spec import BYTES_PER_ELEMENT, Context, OpSpec
from kernels.timing import TimingSettings
from predictors.measure import CHUNK, Reference, measure
from studies.records import Measurement, content_hash
from supernets.space import Architecture
from supernets.supernet import Supernet

MOST_BYTES = 2 * 2**30
"""Of weights of the networks that are timed in turns."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkLatency:
    """Latency of one extracted sub-network, the mean over the lengths of a context.

    Attributes:
        seconds: of one forward pass of a batch.
        seconds_iqr: mean of the interquartile ranges.
        repeats: samples behind every length, at least.
        noisy: the protocol could not reach its stop rule at some length.
    """

    seconds: float
    seconds_iqr: float
    repeats: int
    noisy: bool


def measure_networks(
    supernet: Supernet,
    architectures: Sequence[Architecture],
    context: Context,
    backend: DeviceBackend,
    *,
    settings: TimingSettings | None = None,
    stored: Sequence[Measurement] = (),
    calibrated_by: Sequence[Measurement] = (),
    on_measured: Callable[[Measurement], None] | None = None,
    on_progress: Callable[[float, int], None] | None = None,
) -> list[NetworkLatency]:
    """Extract and time sub-networks, several in turns, so that they meet the same moods of the machine.

    They are paired with the smallest network of their space, since nothing else slows down as networks do: against a
    block of matrix products, the same small networks of experts differ by 4 % from one minute to the next, against
    another network by 0.5 %.

    Args:
        stored: earlier measurements. A network whose rows are among them is not measured again.
        calibrated_by: further ones, which only say how long the reference takes on this machine.
        on_measured: called with each new measurement as soon as it is final, to store it.
        on_progress: called with how many networks are done, fractions included, and how many there are.
    """
    device = backend.detect()
    known = {row.op_key: row for row in stored if row.device == device.fingerprint}
    wanted = {network_specs(supernet, architecture, context): architecture for architecture in architectures}
    missing = {specs: a for specs, a in wanted.items() if not all(spec.key in known for spec in specs)}
    done = len(architectures) - len(missing)
    reference = _reference(supernet, context, device.kind) if missing else None
    for together in _together(supernet, missing, context):
        calls: dict[str, Callable[[], object]] = {}
        for specs in together:
            network = _network(supernet, missing[specs], context, device.kind)
            calls |= {spec.key: _call(network, device.kind, spec) for spec in specs if spec.key not in known}
        rows = measure(
            [spec for at_length in zip(*together, strict=True) for spec in at_length if spec.key in calls],
            backend,
            runner=partial(_prepared, calls),
            reference=reference,
            settings=settings,
            stored=[*calibrated_by, *known.values()],
            on_measured=on_measured,
            on_progress=_after(done, len(together), len(architectures), on_progress),
        )
        known |= {row.op_key: row for row in rows}
        done += len(together)
    return [_mean([known[spec.key] for spec in network_specs(supernet, a, context)]) for a in architectures]


def _reference(supernet: Supernet, context: Context, device: str) -> Reference:
    """The smallest network at the middle length."""
    smallest = supernet.space.decode(supernet.space.smallest)
    specs = network_specs(supernet, smallest, context)
    spec = specs[len(specs) // 2]
    return Reference(key=spec.key, call=_call(_network(supernet, smallest, context, device), device, spec))


def _network(supernet: Supernet, architecture: Architecture, context: Context, device: str) -> nn.Module:
    extracted: nn.Module = supernet.extract(architecture)
    return extracted.to(device=device, dtype=getattr(torch, context.dtype))


def _together(
    supernet: Supernet, missing: Mapping[tuple[OpSpec, ...], Architecture], context: Context
) -> Iterator[list[tuple[OpSpec, ...]]]:
    """The networks to time in turns: at most `CHUNK`, and no more than `MOST_BYTES` of weights beyond the first."""
    chunk: list[tuple[OpSpec, ...]] = []
    total = 0
    for specs, architecture in missing.items():
        size = supernet.count_parameters(architecture) * BYTES_PER_ELEMENT[context.dtype]
        if chunk and (len(chunk) == CHUNK or total + size > MOST_BYTES):
            yield chunk
            chunk, total = [], 0
        chunk.append(specs)
        total += size
    if chunk:
        yield chunk


def measure_network(
    network: nn.Module,
    context: Context,
    backend: DeviceBackend,
    *,
    settings: TimingSettings | None = None,
    on_progress: Callable[[float, int], None] | None = None,
) -> NetworkLatency:
    """Time one network that is already extracted or loaded; it is moved to the device and dtype of the context."""
    device = backend.detect().kind
    network = network.eval().to(device=device, dtype=getattr(torch, context.dtype))
    specs = [op_cost.model("network", context.at(length)) for length in context.sequences]
    runner = partial(_call, network, device)
    return _mean(measure(specs, backend, runner=runner, settings=settings, on_progress=on_progress))


def network_specs(supernet: Supernet, architecture: Architecture, context: Context) -> tuple[OpSpec, ...]:
    """The end-to-end rows of a sub-network, one per length; their identity is its shape, not its weights."""
    shapes = [(name, list(parameter.shape)) for name, parameter in supernet.model.named_parameters()]
    tag = content_hash([supernet.family.name, shapes, architecture.key])
    return tuple(op_cost.model(tag, context.at(length)) for length in context.sequences)


def example_inputs(config: Any, context: Context, device: str) -> dict[str, Tensor]:
    """Random text without padding, ``[batch, sequence]`` at the context's one length."""
    (length,) = context.sequences
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (context.batch, length), generator=generator)
    return {"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids).to(device)}


def _after(
    done: int, count: int, total: int, on_progress: Callable[[float, int], None] | None
) -> Callable[[float, int], None] | None:
    """Progress over all networks from the progress over the rows of some."""
    return (lambda rows, of: on_progress(done + count * rows / of, total)) if on_progress else None


def _call(network: nn.Module, device: str, spec: OpSpec) -> Callable[[], object]:
    inputs = example_inputs(network.config, spec.context, device)

    @torch.inference_mode()
    def run() -> object:
        return network(**inputs)

    return run


def _prepared(calls: Mapping[str, Callable[[], object]], spec: OpSpec) -> Callable[[], object]:
    return calls[spec.key]


def _mean(rows: Sequence[Measurement]) -> NetworkLatency:
    return NetworkLatency(
        seconds=sum(row.seconds_median for row in rows) / len(rows),
        seconds_iqr=sum(row.seconds_iqr for row in rows) / len(rows),
        repeats=min(row.repeats for row in rows),
        noisy=any(row.noisy for row in rows),
    )
