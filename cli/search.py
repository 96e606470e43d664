"""`nas search`: the front of a supernet."""

from __future__ import annotations

import typer

from cli.config import DEFAULT_STORAGE, ConfigOption, StorageOption, StudyNameOption, record
from cli.options import (
    LatencyOptions,
    LimitOptions,
    MovedDataOption,
    RunOptions,
    SearchOptions,
    SupernetArgument,
    data_paths,
)
from cli.watch import Watch


def search(
    context: typer.Context,
    supernet: SupernetArgument,
    search: SearchOptions,
    limits: LimitOptions,
    latency: LatencyOptions,
    run: RunOptions,
    data: MovedDataOption = None,
    storage: StorageOption = DEFAULT_STORAGE,
    study_name: StudyNameOption = None,
    config: ConfigOption = None,
) -> None:
    """Search a supernet for the networks that no other one beats; a stopped search resumes.

    Measures what is missing first, and times the best networks as a whole afterwards.
    """
    settings = search.settings(limits, run, study_name)
    from nas.searching import open_supernet, search_supernet
    from studies.store import StudyStore

    request = search.request(settings, latency, run, record(context))
    with StudyStore.open(storage) as store, Watch() as watch:
        opened = open_supernet(supernet, data_paths(data) if data else None)
        front = search_supernet(request, opened, store, on_measured=watch.measured, on_progress=watch.searched)
    if not len(front):
        typer.echo("no network within the limits was found; relax them, or raise --budget", err=True)
    typer.echo(f"{len(front)} networks on the front of study {settings.study_name!r}; see nas front", err=True)
