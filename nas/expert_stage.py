"""From a mixture-of-experts checkpoint and some text to routing statistics, and on to a supernet that can be searched.

Text is split as the task `language-modelling` does: experts are judged by the training part, searched on the validation
part, and nobody has seen the test part.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nas.tuning import LENGTH_QUANTILES, absolute_paths, open_task, require_same
from supernets.calibration import calibrate
from supernets.checkpoint import (
    LanguageModel,
    is_language_model,
    load_language_model,
    read_supernet_record,
    save_supernet,
)
from supernets.evaluation import evaluate
from supernets.expert_bank import MoeLayer, moe_layers
from supernets.family import SpaceOptions
from supernets.free_memory import require_memory
from supernets.layer_stream import LayerStream, calibrate_streamed
from supernets.routing_statistics import RoutingStatistics
from supernets.supernet import Supernet
from supernets.task import TRAIN, VALIDATION, Task, TaskSettings

BATCH_SIZE = 8
_COMPARED, _ROUNDING = 8, 1e-3
"""Sampled tokens by which statistics are known again, and how far logits may be off by rounding."""
"""Blocks per forward pass of calibration and repair."""

OnDone = Callable[[float, float], None]
"""Receives how many blocks of text or steps are done, and how many there are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertRequest:
    """What a supernet of experts is made of.

    Attributes:
        model: a checkpoint with mixture-of-experts layers.
        task: text to calibrate on and to be judged by.
        space: what may vary, and by which operators.
        statistics: folder of routing statistics; None calibrates on the task's training text.
        protect: super experts must stay.
    """

    model: str
    task: TaskSettings
    space: SpaceOptions
    statistics: str | None = None
    protect: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "task": self.task.to_json(), "space": self.space.to_json()}


def load_experts(source: str) -> LanguageModel:
    """A checkpoint with mixture-of-experts layers.

    Raises:
        ValueError: no such checkpoint, one without experts, or one whose weights cannot be cut or merged.
        ResourceError: its weights do not fit into memory.
    """
    _require_experts(source)
    require_memory(source, "nas experts stats and reduce hold one layer at a time with --stream")
    loaded = load_language_model(source)
    moe_layers(loaded.model)
    return loaded


def stream_experts(source: str) -> LayerStream:
    """The same, to be run with one layer in memory.

    Raises:
        ValueError: as `load_experts`; or the source is no folder.
    """
    _require_experts(source)
    if not Path(source).is_dir():
        raise ValueError(f"--stream reads from a folder, got the name {source}; give the folder of the checkpoint")
    return LayerStream(Path(source))


def _require_experts(source: str) -> None:
    if not is_language_model(source):
        raise ValueError(f"{source} is no language model, which mixtures of experts are; give such a checkpoint")
    config = Path(source) / "config.json"
    if config.is_file() and "supernas_layers" in json.loads(config.read_text(encoding="utf-8")):
        raise ValueError(f"{source} has layers of different sizes already; start from the model that it was made of")


def model_statistics(
    source: str, settings: TaskSettings, name: str, on_done: OnDone | None = None, *, stream: bool = False
) -> RoutingStatistics:
    """Calibrate a checkpoint on the training text of some settings; with `stream` from one layer in memory at a time.

    Both ways give the same statistics. `on_done` receives blocks of text, or layers.
    """
    if not stream:
        model = load_experts(source).model
        return text_statistics(model, open_task(settings, source)[0], name, on_done)
    folder = stream_experts(source).folder
    task, _ = open_task(settings, source)
    batches = list(training_batches(task))
    return calibrate_streamed(folder, batches, task=name, seed=task.settings.seed, on_layer=on_done)


def text_statistics(model: Any, task: Task, name: str, on_done: OnDone | None = None) -> RoutingStatistics:
    """Calibrate on the training text; `name` says what it is about."""
    return calibrate(model, training_batches(task, on_done), task=name, seed=task.settings.seed)


def training_batches(task: Task, on_done: OnDone | None = None) -> Iterator[dict[str, Any]]:
    """The inputs of the training text, batch by batch, in a fixed order."""
    done = 0
    for batch in task.batches(TRAIN, BATCH_SIZE):
        yield batch.inputs
        done += len(batch)
        if on_done:
            on_done(done, task.size(TRAIN))


def stored_statistics(folder: str, model: Any) -> RoutingStatistics:
    """Routing statistics of a folder.

    Raises:
        ValueError: there are none, or they are those of a model with other experts.
    """
    statistics = RoutingStatistics.load(Path(folder))
    layers = moe_layers(model)
    own = {layer.index: layer.count for layer in layers}
    found = {index: layer.count for index, layer in statistics.layers.items()}
    if found != own:
        raise ValueError(
            f"the statistics in {folder} are of a model with other experts "
            f"(layers {sorted(found)} with {sorted(set(found.values()))}, not {sorted(own)} with "
            f"{sorted(set(own.values()))}); calibrate this model"
        )
    for layer in layers:
        require_own(layer, statistics, folder)
    return statistics


@torch.no_grad()
def require_own(layer: MoeLayer, statistics: RoutingStatistics, folder: str) -> None:
    """Refuse statistics whose sampled tokens this layer's router answers otherwise.

    Of a router that is not loaded yet only the width is compared: ask again when it is.
    """
    found = statistics.layers[layer.index]
    sample_RD, logits_RE = found.sample_RD[:_COMPARED], found.sample_logits_RE[:_COMPARED]
    if sample_RD.shape[1] == layer.router.weight.shape[1]:
        if layer.router.weight.is_meta:
            return
        worst = (layer.router(sample_RD)[0].float() - logits_RE).abs().max()
        if float(worst) <= _ROUNDING * max(1.0, float(logits_RE.abs().max())):
            return
    raise ValueError(
        f"the statistics in {folder} are of another model: its router of layer {layer.index} answers otherwise; "
        "calibrate this model"
    )


def expert_supernet(request: ExpertRequest, folder: Path, on_done: OnDone | None = None) -> Path:
    """Make the supernet folder of a request, or find that it is there already.

    Raises:
        ValueError: unusable checkpoint, text, statistics or space; or a folder that holds another supernet.
    """
    if folder.exists():
        require_same(read_supernet_record(folder).get("request"), request.to_json(), folder)
        return folder
    loaded = load_experts(request.model)
    task, tokenizer = open_task(request.task, request.model)
    if request.statistics is None:
        statistics = text_statistics(loaded.model, task, str(request.task.data), on_done)
    else:
        statistics = stored_statistics(request.statistics, loaded.model)
    supernet = Supernet.wrap(loaded.model, options=request.space, statistics=statistics, protect=request.protect)
    settings = replace(task.settings, data=absolute_paths(task.settings.data))
    record = {
        "request": request.to_json(),
        "task": settings.to_json(),
        "lengths": list(task.length_quantiles(TRAIN, LENGTH_QUANTILES)),
        "base_model": request.model,
        "teacher": None,
        "validation": {"largest": evaluate(supernet, task, VALIDATION, batch_size=BATCH_SIZE).metrics},
    }
    save_supernet(supernet, folder, tokenizer, record)
    return folder


def usage(statistics: RoutingStatistics) -> list[dict[str, object]]:
    """Per layer which experts the text uses most and least, those it never reaches, and super experts."""
    supers = statistics.super_experts()
    rows: list[dict[str, object]] = []
    for index, layer in sorted(statistics.layers.items()):
        counts = layer.counts_E.tolist()
        order = sorted(range(layer.count), key=lambda expert: (-counts[expert], expert))
        total = max(1.0, sum(counts))
        rows.append(
            {
                "layer": index,
                "experts": layer.count,
                "tokens": int(layer.tokens),
                "most used": order[0],
                "its share": counts[order[0]] / total,
                "least used": order[-1],
                "share of that": counts[order[-1]] / total,
                "dead": _listed(expert for expert in range(layer.count) if not counts[expert]),
                "super": _listed(sorted(expert for one, expert in supers if one == index)),
            }
        )
    return rows


def _listed(experts: Any) -> str:
    return " ".join(map(str, experts))
