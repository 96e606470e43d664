"""Groups of options that verbs share: declared once, spread over a verb's command line, turned into requests here.

A verb takes a group as one parameter, ``task: TaskOptions``; `spread` shows typer the group's fields instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_type_hints

import typer

if TYPE_CHECKING:
    from kernels.op_spec import Context
    from kernels.timing import TimingSettings
    from nas.searching import SearchRequest
    from nas.settings import SearchSettings
    from nas.tune_request import Duration, TuneRequest
    from supernets.mixture import MixtureSettings
    from supernets.task import TaskSettings

DEFAULT_EPOCHS = 3.0


def spread(verb: Callable[..., None], before: Callable[[], None] = lambda: None) -> Callable[..., None]:
    """The verb with the fields of its option groups as parameters of their own; `before` is called first."""
    hints = get_type_hints(verb, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters: list[Parameter] = []
    for parameter in signature(verb).parameters.values():
        if parameter.name in groups:
            parameters += _parameters(groups[parameter.name])
        else:
            parameters.append(parameter.replace(annotation=hints[parameter.name], kind=Parameter.KEYWORD_ONLY))

    def run(**values: Any) -> None:
        gathered = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        before()
        verb(**values, **gathered)

    run.__name__, run.__doc__ = verb.__name__, verb.__doc__
    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _parameters(group: Any) -> list[Parameter]:
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        (option,) = hints[field.name].__metadata__
        option.rich_help_panel = group.panel
    return [
        Parameter(
            field.name,
            Parameter.KEYWORD_ONLY,
            annotation=hints[field.name],
            default=Parameter.empty if field.default is MISSING else field.default,
        )
        for field in fields(group)
    ]


ModelArgument = Annotated[str, typer.Argument(help="Pre-trained checkpoint: a folder, or a name in the local cache.")]
SupernetArgument = Annotated[Path, typer.Argument(help="Folder made by nas tune or nas fit (work/supernet).")]
OutputOption = Annotated[Path, typer.Option("--output", "-o", help="Folder of the job; a stopped job resumes there.")]
MovedDataOption = Annotated[
    list[str] | None, typer.Option("--data", help="Where the data are now, if not where they were while tuning.")
]


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """What is learnt, from which data."""

    panel: ClassVar[str] = "Data and task"
    data: Annotated[
        list[str],
        typer.Option(help="TSV, CSV, JSONL or Parquet file or data-set folder; or, repeated, SPLIT=FILE."),
    ]
    task: Annotated[str, typer.Option(help="Kind of task.")] = "text-classification"
    text: Annotated[str, typer.Option(help="Column of the text.")] = "text"
    pair: Annotated[str | None, typer.Option(help="Column of the second text, for pairs.")] = None
    label: Annotated[str, typer.Option(help="Column of the label; '' for unlabelled text.")] = "label"
    max_length: Annotated[int | None, typer.Option(help="Longest input in tokens; default: what the model takes.")] = (
        None
    )
    metric: Annotated[str, typer.Option(help="accuracy, f1 or matthews.")] = "accuracy"
    class_weights: Annotated[str | None, typer.Option(help="'balanced' weighs rare classes more.")] = None
    limit: Annotated[int | None, typer.Option(help="Use at most so many examples of each split.")] = None

    def settings(self) -> TaskSettings:
        """The task, not yet opened."""
        from supernets.task import TaskSettings

        return TaskSettings(
            kind=self.task,
            data=data_paths(self.data),
            text=(self.text,) if self.pair is None else (self.text, self.pair),
            label=self.label or None,
            max_length=self.max_length,
            metric=self.metric,
            class_weights=self.class_weights,
            limit=self.limit,
        )


def data_paths(given: list[str]) -> str | dict[str, str]:
    """One path, or split → path; ValueError for a mixture."""
    if len(given) == 1 and "=" not in given[0]:
        return given[0]
    pairs = [text.partition("=") for text in given]
    if not all(equals for _, equals, _ in pairs):
        raise ValueError(f"--data takes one path, or SPLIT=FILE for every split, got {' '.join(given)}")
    return {split: path for split, _, path in pairs}


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """On what everything runs."""

    panel: ClassVar[str] = "Machine"
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu"
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"], typer.Option(help="auto: bfloat16 where the device has it.")
    ] = "auto"
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0

    def __post_init__(self) -> None:
        from kernels.device import load_backend

        load_backend(self.device.partition(":")[0]).detect()


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How the supernet is trained, and how finely it is cut."""

    panel: ClassVar[str] = "Training"
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None
    epochs: Annotated[float | None, typer.Option(help="Passes over the data instead of steps; default 3.")] = None
    time_budget: Annotated[
        str | None, typer.Option(help="As many steps as fit, such as 20m or 1h30m; a teacher's training included.")
    ] = None
    passes: Annotated[
        float | None, typer.Option(help="As many steps as cost so many passes of the full network, there and back.")
    ] = None
    batch_size: Annotated[int, typer.Option(help="Examples per step.")] = 32
    learning_rate: Annotated[float, typer.Option(help="Its peak, after warm-up.")] = 2e-4
    recipe: Annotated[str, typer.Option(help="Way to train: a file in supernets/recipes.")] = "instatune"
    alpha: Annotated[float | None, typer.Option(help="Share of the hard-label loss; default: the recipe's.")] = None
    gamma: Annotated[
        float | None, typer.Option(help="1 distils from a teacher, 0 from the supernet itself; default: the recipe's.")
    ] = None
    rho: Annotated[float | None, typer.Option(help="Distillation temperature; default: the recipe's.")] = None
    subnets: Annotated[int | None, typer.Option(help="Random sub-networks per step; default: the recipe's.")] = None
    sampling: Annotated[
        Literal["full", "single-path", "instatune", "sandwich", "smallest"] | None,
        typer.Option(help="Which networks a step trains; default: the recipe's."),
    ] = None
    train_embeddings: Annotated[bool, typer.Option("--train-embeddings", help="Also train embeddings.")] = False
    teacher: Annotated[str | None, typer.Option(help="Fine-tuned checkpoint to distil from; default: make one.")] = None
    start: Annotated[
        Literal["teacher", "pretrained"],
        typer.Option(help="Weights to start from: the teacher that is made here, or the model's own."),
    ] = "teacher"
    save_seconds: Annotated[float, typer.Option(help="Most training that a crash can cost.")] = 60.0
    min_depth: Annotated[float, typer.Option(help="Share of the layers the shallowest network keeps.")] = 1 / 3
    head_options: Annotated[int, typer.Option(help="Head counts per layer.")] = 4
    width_options: Annotated[int, typer.Option(help="Feed-forward widths per layer.")] = 6
    mixture: Annotated[
        Literal["none", "layer", "neuron"],
        typer.Option(help="Weights of its own for every network, blended by layer or by neuron."),
    ] = "none"
    experts: Annotated[int | None, typer.Option(help="Weights that a mixture blends; default 2.")] = None
    rank: Annotated[int | None, typer.Option(help="Rank by which a mixture's experts differ; default full.")] = None
    mixed: Annotated[
        list[str] | None, typer.Option(help="What a mixture blends: ffn or attention; repeated; default ffn.")
    ] = None
    uniform: Annotated[bool, typer.Option("--uniform", help="Same sizes in all layers: stock classes load all.")] = (
        False
    )

    def request(self, model: str, task: TaskOptions, run: RunOptions) -> TuneRequest:
        """What is to be tuned; ValueError if the duration is given twice, or a setting is out of range."""
        from nas.tune_request import TuneRequest
        from supernets.family import SpaceOptions
        from supernets.finetune import TuneSettings
        from supernets.recipe import load_recipe

        names = ("alpha", "gamma", "rho", "subnets", "sampling")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        recipe = replace(load_recipe(self.recipe), **given)
        tuning = TuneSettings(
            steps=1 if self.steps is None else self.steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            recipe=recipe,
            freeze_embeddings=not self.train_embeddings,
            device=run.device,
            precision=run.precision,
            seed=run.seed,
            save_seconds=self.save_seconds,
        )
        space = SpaceOptions(
            min_depth_fraction=self.min_depth,
            head_options=self.head_options,
            width_options=self.width_options,
            uniform=self.uniform,
        )
        return TuneRequest(
            model=model,
            task=task.settings(),
            tuning=tuning,
            duration=self._duration(),
            space=space,
            mixture=self._mixture(),
            teacher=self.teacher,
            start=self.start,
        )

    def _mixture(self) -> MixtureSettings | None:
        from supernets.mixture import MixtureSettings

        modules = tuple(self.mixed) if self.mixed else None
        chosen = {"experts": self.experts, "rank": self.rank, "modules": modules}
        given: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
        if self.mixture != "none":
            return MixtureSettings(kind=self.mixture, **given)
        if given:
            raise ValueError("--experts, --rank and --mixed need --mixture layer or --mixture neuron")
        return None

    def _duration(self) -> Duration | None:
        from nas.tune_request import Duration

        given = {
            "--steps": self.steps,
            "--epochs": self.epochs,
            "--time-budget": self.time_budget,
            "--passes": self.passes,
        }
        if len(named := [name for name, value in given.items() if value is not None]) > 1:
            raise ValueError(f"how long to train is said once, got {' and '.join(named)}")
        if self.time_budget is not None:
            return Duration(seconds=parse_duration(self.time_budget))
        if self.passes is not None:
            return Duration(passes=self.passes)
        if self.epochs is not None:
            return Duration(epochs=self.epochs)
        return None if self.steps is not None else Duration(epochs=DEFAULT_EPOCHS)


def parse_duration(text: str) -> float:
    """Seconds of ``90s``, ``20m``, ``1.5h`` or ``1h30m``."""
    number = r"(\d+(?:\.\d+)?)"
    match = re.fullmatch(rf"(?:{number}h)?(?:{number}m)?(?:{number}s)?", text.strip())
    if not match or not any(match.groups()):
        raise ValueError(f"a duration reads 90s, 20m, 1.5h or 1h30m, got {text!r}")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return 3600 * hours + 60 * minutes + seconds


@dataclass(frozen=True, kw_only=True)
class LatencyOptions:
    """Under which circumstances a latency holds."""

    panel: ClassVar[str] = "Latency"
    batch: Annotated[int, typer.Option(help="Texts per call.")] = 1
    sequence: Annotated[str, typer.Option(help="Tokens per text: 64, 16+64, or data for the lengths of yours.")] = (
        "data"
    )
    threads: Annotated[int, typer.Option(help="Threads of one call.")] = 1
    dtype: Annotated[str, typer.Option(help="float32, or bfloat16 where the device has it.")] = "float32"
    rounds: Annotated[int, typer.Option(help="Samples per timing at most; fewer are faster and noisier.")] = 30

    def sequences(self) -> tuple[int, ...]:
        """Lengths; empty for those of the data."""
        if self.sequence == "data":
            return ()
        try:
            return tuple(int(length) for length in self.sequence.split("+"))
        except ValueError as error:
            raise ValueError(f"--sequence reads 64, 16+64 or data, got {self.sequence!r}") from error

    def context(self, quantiles: Sequence[int]) -> Context:
        """The context, with the lengths of the user's data where none are given."""
        from kernels.op_spec import Context

        return Context(
            batch=self.batch, sequences=self.sequences() or tuple(quantiles), threads=self.threads, dtype=self.dtype
        )

    def timing(self) -> TimingSettings:
        """When a measurement is good enough."""
        from kernels.timing import TimingSettings

        return TimingSettings(min_rounds=min(TimingSettings().min_rounds, self.rounds), max_rounds=self.rounds)


@dataclass(frozen=True, kw_only=True)
class LimitOptions:
    """What an acceptable network costs at most."""

    panel: ClassVar[str] = "Limits"
    max_latency_ms: Annotated[float | None, typer.Option(help="Slowest acceptable network.")] = None
    max_memory_mib: Annotated[float | None, typer.Option(help="Largest acceptable network in memory.")] = None
    max_memory_gib: Annotated[float | None, typer.Option(help="The same in GiB.")] = None
    max_parameters: Annotated[float | None, typer.Option(help="Most parameters.")] = None

    def limits(self) -> dict[str, float]:
        """Objective name → largest value."""
        memory = self.max_memory_mib
        if self.max_memory_gib is not None:
            if memory is not None:
                raise ValueError("the largest memory is said once, got --max-memory-mib and --max-memory-gib")
            memory = 1024 * self.max_memory_gib
        given = {"latency": self.max_latency_ms, "memory": memory, "parameters": self.max_parameters}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """What is searched for, and how."""

    panel: ClassVar[str] = "Search"
    objective: Annotated[
        list[str] | None,
        typer.Option(
            help="error, nll, divergence, latency, macs, parameters, active-parameters, memory, "
            "routing-consistency or cache-hit-rate; repeated; default error and latency."
        ),
    ] = None
    algorithm: Annotated[str, typer.Option(help="guided, linas, nsga2, tpe or random.")] = "guided"
    budget: Annotated[int, typer.Option(help="Networks that are evaluated at most.")] = 200
    examples: Annotated[int | None, typer.Option(help="Validation examples per evaluation; default all.")] = None
    target: Annotated[
        str | None, typer.Option(help="Fingerprint of the machine the networks are for, if it is not this one.")
    ] = None
    finalists: Annotated[int, typer.Option(help="Networks of the front to time whole and judge on all data.")] = 8
    low_fidelity: Annotated[
        float | None,
        typer.Option(help="Share of the validation examples tried first; only those with a chance get the rest."),
    ] = None
    warm_start: Annotated[
        list[str] | None, typer.Option(help="Study to start from, repeated; auto: all others of the same space.")
    ] = None
    explain: Annotated[bool, typer.Option("--explain", help="Say before every proposal what is trusted, and why.")] = (
        False
    )

    def settings(
        self, limits: LimitOptions, run: RunOptions, study_name: str | None, problem: str | None = None
    ) -> SearchSettings:
        """The search; ValueError for unknown names. A problem of one's own says itself what is searched for."""
        from nas.settings import SearchSettings

        return SearchSettings(
            objectives=tuple(self.objective or (() if problem else ("error", "latency"))),
            problem=problem,
            limits=limits.limits(),
            algorithm=self.algorithm,
            budget=self.budget,
            seed=run.seed,
            low_fidelity=self.low_fidelity,
            warm_start=tuple(self.warm_start or ()),
            study_name=study_name or "study",
        )

    def request(
        self, settings: SearchSettings, latency: LatencyOptions, run: RunOptions, record: Mapping[str, object]
    ) -> SearchRequest:
        """The search with its circumstances; `record` is kept with the study."""
        from nas.searching import SearchRequest

        return SearchRequest(
            search=settings,
            batch=latency.batch,
            sequences=latency.sequences(),
            threads=latency.threads,
            dtype=latency.dtype,
            device=run.device,
            precision=run.precision,
            target=self.target,
            evaluation_examples=self.examples,
            finalists=self.finalists,
            timing=latency.timing(),
            record=record,
        )
