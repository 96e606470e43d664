"""Checkpoints: load a pre-trained model, keep a supernet, write a stand-alone network, verify it by reloading.

Weights travel as safetensors only. Folders appear complete or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from studies.errors import VerificationError
from supernets.data.labels import require_classes
from supernets.family import Family, Layout
from supernets.mixture import Mixture
from supernets.mixture_file import MIXTURE_FILE, load_mixture, save_mixture
from supernets.routing_statistics import RoutingStatistics
from supernets.space import SearchSpace
from supernets.staging import staged_folder
from supernets.supernet import Supernet, belongs_to_source, family_for, known_model_types

SUPERNET_FILE = "supernet.json"
PROVENANCE_FILE = "supernas.json"
TEACHER_FILE = "teacher_logits.safetensors"
STATISTICS_FOLDER = "routing_statistics"
_VERIFIER = Path(__file__).with_name("verify_export.py")


@dataclass(frozen=True, kw_only=True, slots=True)
class Classifier:
    """A loaded sequence classifier.

    Attributes:
        labels: class names in id order if the checkpoint already had a trained head, otherwise None.
        source: where it was loaded from.
    """

    model: nn.Module
    tokenizer: Any
    labels: tuple[str, ...] | None
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageModel:
    """A loaded causal language model, in evaluation mode."""

    model: nn.Module
    tokenizer: Any
    source: str


def load_tokenizer(source: str) -> Any:
    """The tokenizer of a checkpoint; ValueError if it has none."""
    from transformers import AutoTokenizer

    _require_checkpoint(source)
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"cannot load a tokenizer from {source}: {_first_line(error)}") from error


def head_labels(source: str) -> tuple[str, ...] | None:
    """Class names of a checkpoint that already has a classification head, in id order; None without a head."""
    config = _config(source)
    if not any(name.endswith("ForSequenceClassification") for name in config.architectures or ()):
        return None
    return tuple(config.id2label[i] for i in sorted(config.id2label))


def is_language_model(source: str) -> bool:
    """Whether a checkpoint is a causal language model."""
    return any(name.endswith("ForCausalLM") for name in _config(source).architectures or ())


def input_limit(source: str) -> int:
    """Longest input in tokens that a checkpoint's position embeddings allow."""
    config = _config(source)
    return family_for(config.model_type).input_limit(config)


def _config(source: str) -> Any:
    """The configuration of a supported checkpoint."""
    from transformers import AutoConfig

    _require_checkpoint(source)
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"cannot read the configuration of {source}: {_first_line(error)}") from error
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{source} is an encoder with a decoder ({config.model_type}), but a supernet is made of one stack of "
            f"layers; supported are encoders and decoder-only language models: {', '.join(known_model_types())}"
        )
    family_for(config.model_type)
    return config


def load_classifier(source: str, labels: tuple[str, ...], seed: int = 0) -> Classifier:
    """Load a checkpoint as a classifier; a head it already has is kept, otherwise a new one is drawn from `seed`.

    Raises:
        ValueError: no checkpoint there, an unsupported model type, corrupt or incomplete weights, or a head whose
            classes are not the task's; or a mixture, of which no single model is to be had.
    """
    if (Path(source) / MIXTURE_FILE).is_file():
        raise ValueError(
            f"{source} is a mixture of supernets, and its model's own weights are but the mean of its experts; "
            "give the model it was made from, or a network exported from it"
        )
    return _classifier(source, labels, seed)


def _classifier(source: str, labels: tuple[str, ...], seed: int = 0) -> Classifier:
    existing = head_labels(source)
    if existing is not None:
        require_classes(existing, labels, source)
    torch.manual_seed(seed)
    names = dict(enumerate(labels)) if existing is None else dict(enumerate(existing))
    model, missing = _load_weights(
        "AutoModelForSequenceClassification",
        source,
        id2label=names,
        label2id={name: i for i, name in names.items()},
        ignore_mismatched_sizes=existing is None,
    )
    body = f"{model.base_model_prefix}."
    if existing is None:  # the new head and pooler are drawn
        missing = [name for name in missing if name.startswith(body) and ".pooler." not in name]
    _require_all(source, missing)
    return Classifier(model=model.eval(), tokenizer=load_tokenizer(source), labels=existing, source=source)


def load_language_model(source: str) -> LanguageModel:
    """Load a causal language model of a supported type in 32 bits.

    Raises:
        ValueError: no checkpoint there, an unsupported model type, or corrupt, incomplete or quantised weights.
    """
    require_unquantised(_config(source), source)
    model, missing = _load_weights("AutoModelForCausalLM", source)
    _require_all(source, missing)
    for parameter in model.parameters():  # as loaded they may lie unaligned, and round differently than copies
        parameter.data = parameter.data.clone()
    return LanguageModel(model=model.eval(), tokenizer=load_tokenizer(source), source=source)


def require_unquantised(config: Any, source: str) -> None:
    """ValueError where the configuration of a checkpoint says that its weights are quantised."""
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(f"the weights of {source} are quantised, which cannot be cut or merged; load them in 16 bits")


def _load_weights(auto_class: str, source: str, **options: Any) -> tuple[Any, list[str]]:
    """A model in 32 bits and the names of the weights that its checkpoint lacks."""
    import transformers

    try:
        model, info = getattr(transformers, auto_class).from_pretrained(
            source, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
        )
    except Exception as error:  # safetensors, OSError, ValueError, RuntimeError: all mean the same to the user
        raise ValueError(f"cannot load the weights of {source}: {_first_line(error)}") from error
    return model, sorted([*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])])


def _require_all(source: str, missing: list[str]) -> None:
    if missing:
        raise ValueError(f"the checkpoint {source} lacks {len(missing)} weights, such as {missing[0]}")


def _require_checkpoint(source: str) -> None:
    path = Path(source)
    if path.is_dir() and not (path / "config.json").is_file():
        raise ValueError(f"{source} holds no config.json: give a folder written by save_pretrained")
    if not path.is_dir() and (path.is_absolute() or source.startswith(".") or path.exists()):
        raise ValueError(f"there is no checkpoint folder at {source}")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


# -- supernets ------------------------------------------------------------------------------------------------------


def save_supernet(
    supernet: Supernet,
    folder: Path,
    tokenizer: Any,
    record: Mapping[str, Any],
    teacher_logits_NC: Tensor | None = None,
    *,
    has_head: bool = True,
) -> None:
    """Write weights, configuration, tokenizer and ``supernet.json`` (space, hash and `record`) as one folder.

    The experts and routers of a mixture have a file of their own beside the model's weights. The teacher's logits on
    the training examples are kept for networks that recover later, routing statistics for reductions that are asked
    for later. A model without `has_head` is marked as a bare encoder, so that nobody takes its untrained head for a
    classifier.
    """
    with staged_folder(folder) as staged:
        if supernet.statistics is not None:
            supernet.statistics.save(staged / STATISTICS_FOLDER)
        if teacher_logits_NC is not None:
            save_file({"logits": teacher_logits_NC.contiguous()}, staged / TEACHER_FILE)
        _write_model(supernet.model, staged, tokenizer, has_head)
        if isinstance(supernet.trained_source, Mixture):
            save_mixture(supernet.trained_source, supernet, staged / MIXTURE_FILE)
        content = {"space": supernet.space.to_json(), "hash": supernet.hash, "protect": supernet.protect, **record}
        (staged / SUPERNET_FILE).write_text(json.dumps(content, indent=2) + "\n")


def save_classifier(model: nn.Module, folder: Path, tokenizer: Any) -> None:
    """Write a whole model and its tokenizer as a checkpoint folder."""
    with staged_folder(folder) as staged:
        _write_model(model, staged, tokenizer)


def _write_model(model: Any, folder: Path, tokenizer: Any, has_head: bool = True) -> None:
    tied = getattr(model, "all_tied_weights_keys", {})  # their other name is enough
    state = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if name not in tied and not belongs_to_source(name)
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.architectures = [type(model if has_head else model.base_model).__name__]
    model.config.save_pretrained(folder)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def read_supernet_record(folder: Path) -> dict[str, Any]:
    """The JSON record of a supernet folder, without loading weights."""
    try:
        record = json.loads((folder / SUPERNET_FILE).read_text())
    except FileNotFoundError as error:
        raise ValueError(f"{folder} is not a supernet: it holds no {SUPERNET_FILE}; make one with nas tune") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{folder / SUPERNET_FILE} is not valid JSON ({error}); make the supernet again") from error
    if not isinstance(record, dict) or not {"space", "hash"} <= record.keys():
        raise ValueError(f"{folder / SUPERNET_FILE} lacks the space or the hash; make the supernet again")
    return record


def load_teacher_logits(folder: Path) -> Tensor | None:
    """The teacher's logits on the training examples [N, C] that a supernet folder keeps; None without a teacher."""
    path = folder / TEACHER_FILE
    if not path.exists():
        return None
    try:
        return load_file(path)["logits"]
    except (SafetensorError, OSError, KeyError) as error:
        raise ValueError(f"{path} cannot be read ({error}); delete it, and the teacher is asked again") from error


def load_supernet(folder: Path) -> tuple[Supernet, Any, dict[str, Any]]:
    """Supernet (in evaluation mode), tokenizer and record of a folder; ValueError if its weights were changed."""
    record = read_supernet_record(folder)
    source, statistics = str(folder), None
    loaded: Classifier | LanguageModel
    if is_language_model(source):
        loaded = load_language_model(source)
    else:
        loaded = _classifier(source, head_labels(source) or tuple(record.get("task", {}).get("labels") or ()))
    if (folder / STATISTICS_FOLDER).is_dir():
        statistics = RoutingStatistics.load(folder / STATISTICS_FOLDER)
    space, protect = SearchSpace.from_json(record["space"]), bool(record.get("protect", False))
    supernet = Supernet(loaded.model, space, statistics=statistics, protect=protect)
    if (folder / MIXTURE_FILE).is_file():
        load_mixture(folder / MIXTURE_FILE, supernet)
    if supernet.hash != record["hash"]:
        raise ValueError(
            f"the weights in {folder} are not the ones its record describes (hash {supernet.hash}, "
            f"record {record['hash']}); make the supernet again"
        )
    return supernet, loaded.tokenizer, record


# -- stand-alone networks -------------------------------------------------------------------------------------------


def write_network(
    network: nn.Module,
    folder: Path,
    tokenizer: Any,
    *,
    family: Family,
    layout: Layout,
    card: str,
    provenance: Mapping[str, Any],
    check_inputs: Mapping[str, Tensor],
    files: Mapping[str, str] | None = None,
) -> None:
    """Write an extracted network as a checkpoint folder and prove it before it takes its place.

    A fresh process reloads the folder with plain transformers and must reproduce the network's logits on
    `check_inputs` bit for bit (same machine, same threads) and its number of parameters. `files` are texts by name
    that lie beside it.

    Raises:
        VerificationError: the reloaded checkpoint computes something else; nothing is left behind.
        ResourceError: the disk is full; nothing is left behind.
    """
    network.eval()
    with torch.no_grad():
        logits = network(**check_inputs).logits.float()
    with staged_folder(folder) as staged:
        model: Any = network
        if layout == "free":
            bring_modeling(model, family, staged)
        model.save_pretrained(staged, save_original_format=layout != "free")
        write_companions(staged, tokenizer, {"README.md": card, **(files or {})}, {**provenance, "layout": layout})
        verify_network(staged, check_inputs, logits, sum(p.numel() for p in network.parameters()))


def bring_modeling(network: Any, family: Family, folder: Path) -> None:
    """Put the modelling file of a free layout beside its weights, and its name into the network's configuration."""
    modeling, name = f"modeling_supernas_{family.name}", type(network).__name__
    network.config.auto_map = {_auto_class(name): f"{modeling}.{name}"}
    shutil.copyfile(family.modeling_file, folder / f"{modeling}.py")


def write_companions(folder: Path, tokenizer: Any, texts: Mapping[str, str], provenance: Mapping[str, Any]) -> None:
    """What lies beside weights and configuration: tokenizer, texts by file name, and where it all comes from."""
    tokenizer.save_pretrained(folder)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / PROVENANCE_FILE).write_text(json.dumps(provenance, indent=2) + "\n")


def _auto_class(architecture: str) -> str:
    """The class of transformers that loads an architecture by its configuration."""
    return "AutoModelForCausalLM" if architecture.endswith("ForCausalLM") else "AutoModelForSequenceClassification"


def verify_network(folder: Path, inputs: Mapping[str, Tensor], logits: Tensor, parameters: int) -> None:
    """Reload a checkpoint in a fresh process that sees only transformers, and compare.

    Raises:
        VerificationError: it does not load, or computes something else.
    """
    with tempfile.TemporaryDirectory() as scratch:
        reference = Path(scratch) / "reference.safetensors"
        save_file({**{f"input.{k}": v.contiguous() for k, v in inputs.items()}, "logits": logits}, reference)
        environment = {**os.environ, "HF_MODULES_CACHE": scratch, "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-I", str(_VERIFIER), str(folder), str(reference), str(parameters)]
        done = subprocess.run(
            [*command, str(torch.get_num_threads())], capture_output=True, text=True, env=environment, check=False
        )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise VerificationError(f"the exported checkpoint does not reproduce the sub-network: {reason}")


def load_exported(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """A stand-alone checkpoint of ours as a network in evaluation mode.

    The modelling file of a free layout must be, byte for byte, the one this package ships, which then runs in its
    place; another one runs only if the caller trusts it.

    Raises:
        ValueError: not a checkpoint, unreadable weights, or code of its own.
    """
    import transformers

    _require_checkpoint(str(folder))
    config = json.loads((folder / "config.json").read_text())
    network_class: Any = getattr(transformers, _auto_class(config["architectures"][0]))
    if "auto_map" in config and not trust_remote_code:
        family = family_for(config["model_type"])
        if [path.read_bytes() for path in folder.glob("*.py")] != [family.modeling_file.read_bytes()]:
            raise ValueError(
                f"{folder} brings code that this version did not write; read it, then pass --trust-remote-code"
            )
        network_class = getattr(family.modeling, config["architectures"][0])
    try:
        return network_class.from_pretrained(
            folder, trust_remote_code=trust_remote_code, use_safetensors=True, dtype=torch.float32
        ).eval()
    except Exception as error:  # as in `load_classifier`
        raise ValueError(f"cannot load the weights of {folder}: {_first_line(error)}") from error
