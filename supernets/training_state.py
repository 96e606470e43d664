"""The state of a training run on disk: one safetensors file, replaced atomically.

Model tensors, optimiser moments and the JSON bookkeeping (as the file's metadata) travel together, so that no crash can
leave one without the other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from studies.errors import ResourceError

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(slots=True)
class TrainingState:
    """How far a run has come.

    Attributes:
        identity: hash of settings, task and space; another run's state is refused.
        layer_order: importance order of the layers once measured.
        seconds: training time, earlier runs included.
    """

    identity: str
    step: int = 0
    layer_order: tuple[int, ...] | None = None
    seconds: float = 0.0


def save_state(
    path: Path,
    state: TrainingState,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
) -> None:
    """Write the state beside `path` and move it there in one step.

    Raises:
        ResourceError: it cannot be written, such as on a full disk; the state that was there stays.
    """
    tensors = {f"model.{name}": weight.contiguous() for name, weight in _weights(model).items()}
    for name, parameter in parameters.items():
        for kind in MOMENTS:
            if parameter in optimizer.state:
                tensors[f"{kind}.{name}"] = optimizer.state[parameter][kind].contiguous()
    metadata = {
        "identity": state.identity,
        "step": str(state.step),
        "layer_order": json.dumps(state.layer_order),
        "seconds": str(state.seconds),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    try:
        save_file(tensors, partial, metadata=metadata)
        os.replace(partial, path)
    except (SafetensorError, OSError) as error:
        partial.unlink(missing_ok=True)
        raise ResourceError(f"cannot write the training state {path} ({error}); make room and run again") from error


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Everything a model holds, weights that are tied to others once."""
    distinct: dict[object, str] = {}
    state = model.state_dict()
    for name, weight in state.items():
        distinct.setdefault((weight.data_ptr(), weight.shape, weight.stride()) if weight.numel() else name, name)
    return {name: state[name] for name in distinct.values()}


def load_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    identity: str,
) -> TrainingState:
    """Put a saved run back into the model and its optimiser.

    Raises:
        ValueError: the file is unreadable, or belongs to a run with other settings, data or space.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a readable training state ({error}); delete it to start again") from error
    if metadata.get("identity") != identity:
        raise ValueError(
            f"{path} belongs to a run with other settings, data or space ({metadata.get('identity')}, not {identity}); "
            "choose another output folder or delete it"
        )
    weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    # Of tied weights one is there; anything else that is missing or too much raises.
    model.load_state_dict(weights, strict=weights.keys() != _weights(model).keys())
    for name, parameter in parameters.items():
        if f"step.{name}" in tensors:
            moments = {kind: tensors[f"{kind}.{name}"] for kind in MOMENTS}
            device_moments = {k: v if k == "step" else v.to(parameter.device) for k, v in moments.items()}
            optimizer.state[parameter] = device_moments
    order = json.loads(metadata["layer_order"])
    return TrainingState(
        identity=identity,
        step=int(metadata["step"]),
        layer_order=None if order is None else tuple(order),
        seconds=float(metadata["seconds"]),
    )
