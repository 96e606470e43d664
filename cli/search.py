"""`nas search`: the front of a supernet, ours or any other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.config import DEFAULT_STORAGE, ConfigOption, StorageOption, StudyNameOption, record
from cli.options import LatencyOptions, LimitOptions, MovedDataOption, RunOptions, SearchOptions, data_paths
from cli.watch import Watch

if TYPE_CHECKING:
    from nas.searching import SearchRequest
    from studies.pareto import ParetoFront
    from studies.store import StudyStore


def search(
    context: typer.Context,
    search: SearchOptions,
    limits: LimitOptions,
    latency: LatencyOptions,
    run: RunOptions,
    supernet: Annotated[
        Path | None, typer.Argument(help="Folder made by nas tune or nas fit (work/supernet); none with --problem.")
    ] = None,
    problem: Annotated[
        str | None, typer.Option(help="Search package.module:Class, a super-network of your own, instead.")
    ] = None,
    data: MovedDataOption = None,
    storage: StorageOption = DEFAULT_STORAGE,
    study_name: StudyNameOption = None,
    config: ConfigOption = None,
) -> None:
    """Search a supernet for the networks that no other one beats; a stopped search resumes.

    Measures what is missing first, and times the best networks as a whole afterwards.
    """
    if (supernet is None) == (problem is None):
        raise ValueError("name what is searched: the folder of a supernet, or --problem package.module:Class")
    if problem is not None and data:
        raise ValueError("a problem of one's own has its own data: leave out --data")
    settings = search.settings(limits, run, study_name, problem)
    from studies.store import StudyStore

    request = search.request(settings, latency, run, record(context))
    with StudyStore.open(storage) as store, Watch(search.explain) as watch:
        if supernet is not None:
            front = _search_supernet(request, supernet, data, store, watch)
        else:
            front = _search_problem(request, str(problem), store, watch)
    if not len(front):
        typer.echo("no network within the limits was found; relax them, or raise --budget", err=True)
    typer.echo(f"{len(front)} networks on the front of study {settings.study_name!r}; see nas front", err=True)


def _search_supernet(
    request: SearchRequest, folder: Path, data: list[str] | None, store: StudyStore, watch: Watch
) -> ParetoFront:
    from nas.searching import open_supernet, search_supernet

    return search_supernet(
        request,
        open_supernet(folder, data_paths(data) if data else None),
        store,
        on_measured=watch.measured,
        on_progress=watch.searched,
        on_generation=watch.explained,
    )


def _search_problem(request: SearchRequest, text: str, store: StudyStore, watch: Watch) -> ParetoFront:
    from nas.custom_problem import load_problem
    from nas.custom_search import search_problem

    return search_problem(
        request,
        load_problem(text),
        store,
        on_measured=watch.measured,
        on_progress=watch.searched,
        on_generation=watch.explained,
    )
