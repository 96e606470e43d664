"""The deltas and routers of a mixture on disk: one safetensors file beside the model's own weights."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from supernets.architecture_encoding import ArchitectureEncoding
from supernets.mixture import Mixture, MixtureSettings
from supernets.supernet import Supernet

MIXTURE_FILE = "mixture.safetensors"
"""Its name in a supernet's folder."""


def save_mixture(mixture: Mixture, supernet: Supernet, path: Path) -> None:
    """Write parameters, settings, encoding and the fingerprint of the space."""
    metadata = {
        "settings": json.dumps(asdict(mixture.settings)),
        "encoding": json.dumps(mixture.encoding.to_json()),
        "space": supernet.space.fingerprint,
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in mixture.state_dict().items()}
    save_file(tensors, path, metadata=metadata)


def load_mixture(path: Path, supernet: Supernet) -> Mixture:
    """Turn a supernet into the mixture that `save_mixture` wrote.

    Raises:
        ValueError: the file is damaged, or its routers read architectures of another space.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        settings = MixtureSettings(**json.loads(metadata["settings"]))
        encoding = ArchitectureEncoding.from_json(json.loads(metadata["encoding"]))
        space = metadata["space"]
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a readable mixture ({error}); make the supernet again") from error
    if space != supernet.space.fingerprint:
        raise ValueError(
            f"the routers in {path} read architectures of the space {space}, but this supernet's space is "
            f"{supernet.space.fingerprint}; use them with the supernet they were trained in"
        )
    mixture = Mixture(supernet, settings, encoding=encoding)
    try:
        mixture.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(f"the mixture in {path} is not one of this model: {reason}") from error
    supernet.adopt(mixture)
    return mixture
