"""`nas experts stats|reduce|search`: mixture-of-experts models with fewer experts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from cli.config import ConfigOption, StudyNameOption, record
from cli.options import (
    LatencyOptions,
    LimitOptions,
    ModelArgument,
    OutputOption,
    RunOptions,
    SearchOptions,
    data_paths,
    spread,
)
from cli.output import Format, FormatOption, quiet_libraries, write_rows
from cli.watch import Watch

if TYPE_CHECKING:
    from nas.expert_reduction import Reduced
    from supernets.family import SpaceOptions
    from supernets.task import TaskSettings

DEFAULT_OPERATORS = ("reap", "easy-ep", "ean")
DEFAULT_OBJECTIVES = ["nll", "memory"]

app = typer.Typer(
    help="Fewer experts in mixture-of-experts models: who is used, one reduction, a search.", no_args_is_help=True
)
StatisticsOption = Annotated[Path | None, typer.Option("--stats", help="Folder that nas experts stats wrote.")]
ProtectOption = Annotated[bool, typer.Option("--protect", help="Super experts stay as they are.")]


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """Text of the task: what experts are judged by."""

    panel: ClassVar[str] = "Text"
    text: Annotated[str, typer.Option(help="Column of the text, in tables.")] = "text"
    max_length: Annotated[int | None, typer.Option(help="Tokens of a block; default 512, or what the model takes.")] = (
        None
    )
    limit: Annotated[int | None, typer.Option(help="Use at most so many blocks of each split.")] = None

    def settings(self, data: list[str], seed: int = 0) -> TaskSettings:
        """The text, not yet opened."""
        from supernets.task import TaskSettings

        return TaskSettings(
            kind="language-modelling",
            data=data_paths(data),
            text=(self.text,),
            label=None,
            max_length=self.max_length,
            metric="nll",
            limit=self.limit,
            seed=seed,
        )


@dataclass(frozen=True, kw_only=True)
class ExpertOptions:
    """What may vary in every layer."""

    panel: ClassVar[str] = "Experts"
    operator: Annotated[
        list[str] | None, typer.Option(help="Way to reduce experts, repeated; default reap, easy-ep and ean.")
    ] = None
    expert_options: Annotated[int, typer.Option(help="Expert counts per layer.")] = 8
    multiple_of: Annotated[
        int, typer.Option(help="Counts are multiples of this: 8, or the devices that share the experts.")
    ] = 1
    top_k_options: Annotated[int, typer.Option(help="Numbers of experts per token, up to the model's own.")] = 1
    also: Annotated[
        list[str] | None,
        typer.Option(help="What else varies, repeated: depth, kv_groups or expert_width."),
    ] = None
    uniform: Annotated[bool, typer.Option("--uniform", help="Same sizes in all layers: stock classes load all.")] = (
        False
    )

    def space(self) -> SpaceOptions:
        """The space; ValueError for an unknown operator."""
        from supernets.family import SpaceOptions
        from supernets.reduction import REDUCTIONS

        operators = tuple(self.operator or DEFAULT_OPERATORS)
        for name in operators:
            REDUCTIONS.check(name)
        return SpaceOptions(
            operators=operators,
            expert_options=self.expert_options,
            expert_multiple=self.multiple_of,
            top_k_options=self.top_k_options,
            axes=tuple(self.also or ()),
            uniform=self.uniform,
        )


DataOption = Annotated[
    list[str],
    typer.Option("--data", help="Text file, folder of them, or table; or, repeated, SPLIT=FILE."),
]
OptionalDataOption = Annotated[list[str] | None, typer.Option("--data", help="Text to repair with and to judge by.")]


def stats(
    model: ModelArgument,
    data: DataOption,
    text: TextOptions,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the statistics; must not exist.")],
    stream: Annotated[
        bool,
        typer.Option(
            "--stream",
            help="For models larger than memory: takes no more than one layer, in 32 bits, and the hidden states of "
            "the text.",
        ),
    ] = False,
    style: FormatOption = Format.TABLE,
    config: ConfigOption = None,
) -> None:
    """Run a model over text once and keep what its experts do; shows who is used, who never, and super experts."""
    from nas.expert_stage import model_statistics, usage
    from supernets.staging import require_free

    require_free(output)
    with Watch() as watch:
        statistics = model_statistics(model, text.settings(data), " ".join(data), watch.calibrated, stream=stream)
    statistics.save(output)
    write_rows(usage(statistics), style)


def reduce(
    model: ModelArgument,
    text: TextOptions,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the checkpoint; must not exist.")],
    statistics: StatisticsOption = None,
    operator: Annotated[str, typer.Option(help="Way to reduce experts.")] = "reap",
    keep: Annotated[str, typer.Option(help="Experts per layer, such as 12, or their share, such as 50%.")] = "50%",
    repair: Annotated[str | None, typer.Option(help="Way to heal afterwards, such as router-kd; needs --data.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the repair.")] = None,
    data: OptionalDataOption = None,
    protect: ProtectOption = False,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream",
            help="For models larger than memory: takes one layer, in 32 bits, its reduced copy twice, and the hidden "
            "states of the text.",
        ),
    ] = False,
    style: FormatOption = Format.TABLE,
    config: ConfigOption = None,
) -> None:
    """Reduce the experts of every layer alike, and write a checkpoint, reloaded and compared before this returns 0.

    Stock classes load it, unless experts were merged behind a router that kept all its rows.
    """
    from nas.expert_reduction import ReductionRequest, reduce_checkpoint
    from nas.streamed_reduction import reduce_streamed
    from supernets.staging import require_free

    request = ReductionRequest(
        model=model,
        folder=output,
        operator=operator,
        keep=keep,
        statistics=None if statistics is None else str(statistics),
        repair=repair,
        task=text.settings(data) if data else None,
        steps=steps,
        protect=protect,
    )
    require_free(output)
    with Watch() as watch:
        done = reduce_streamed(request, watch.show) if stream else reduce_checkpoint(request, watch.repaired)
    write_rows([_reduced(done)], style)


def search(
    context: typer.Context,
    model: ModelArgument,
    data: DataOption,
    text: TextOptions,
    experts: ExpertOptions,
    limits: LimitOptions,
    latency: LatencyOptions,
    search: SearchOptions,
    run: RunOptions,
    statistics: StatisticsOption = None,
    protect: ProtectOption = False,
    output: OutputOption = Path("work"),
    storage: Annotated[
        str | None, typer.Option(envvar="NAS_STORAGE", help="Study database; default OUTPUT/study.db.")
    ] = None,
    study_name: StudyNameOption = None,
    config: ConfigOption = None,
) -> None:
    """Search operator, expert count and top-k of every layer together; a stopped search resumes.

    Calibrates where no statistics are given, keeps OUTPUT/supernet, and goes on as nas search does.
    """
    from nas.expert_stage import ExpertRequest, expert_supernet
    from nas.searching import open_supernet, search_supernet
    from nas.workspace import Workspace
    from studies.store import StudyStore

    asked = replace(search, objective=search.objective or DEFAULT_OBJECTIVES)
    settings = asked.settings(limits, run, study_name)
    request = ExpertRequest(
        model=model,
        task=text.settings(data),
        space=experts.space(),
        statistics=None if statistics is None else str(statistics),
        protect=protect,
    )
    workspace = Workspace(output)
    with Watch(search.explain) as watch:
        folder = expert_supernet(request, workspace.supernet, watch.calibrated)
        database = storage or workspace.storage
        with StudyStore.open(database) as store:
            front = search_supernet(
                asked.request(settings, latency, run, record(context)),
                open_supernet(folder),
                store,
                on_measured=watch.measured,
                on_progress=watch.searched,
                on_generation=watch.explained,
            )
    if not len(front):
        typer.echo("no network within the limits was found; relax them, or raise --budget", err=True)
    shown = f"nas front --storage {database} --study-name {settings.study_name}"
    typer.echo(f"{len(front)} networks on the front; see {shown}", err=True)


for _verb in (stats, reduce, search):
    app.command(_verb.__name__)(spread(_verb, quiet_libraries))


def _reduced(done: Reduced) -> dict[str, object]:
    """Losses of validation text where there is some."""
    return {
        "folder": str(done.folder),
        "layout": done.layout,
        "experts": f"{done.experts[1]} of {done.experts[0]}",
        "parameters": done.parameters[1],
        "parameters before": done.parameters[0],
        **{f"nll {stage}": one.metrics["nll"] for stage, one in done.quality.items()},
    }
