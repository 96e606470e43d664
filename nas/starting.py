"""Begins or resumes a study: its question, what it knows from elsewhere, and its algorithm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from nas.algorithm import Generation, Search, SearchProblem, load_algorithm
from nas.evaluator import Evaluator
from nas.settings import SearchSettings
from nas.warm_start import WarmStart, freeze, frozen, warm_start
from studies.records import Study
from studies.store import StudyStore

OnGeneration = Callable[[Generation], None]
"""Receives what an algorithm says of itself; algorithms that say nothing never call it."""


def begin(
    settings: SearchSettings,
    problem: SearchProblem,
    full: Evaluator,
    study: Study,
    store: StudyStore,
    on_generation: OnGeneration | None = None,
) -> tuple[Study, Search]:
    """Create or resume a study and start its algorithm.

    What other studies know is looked up once, when the study is created, and frozen into it.

    Args:
        full: evaluates on all of the data; says which stored values are as good as new ones.

    Raises:
        ValueError: the stored study asks another question, or a source of the warm start does not fit.
    """
    told = frozen(study.name, store)
    if told is None and settings.warm_start:
        told = warm_start(settings.warm_start, problem, full.columns, store, study.name)
    told = told or WarmStart()
    study = store.create_or_resume(replace(study, algorithm=f"{study.algorithm}{told.mark}"))
    if settings.warm_start:
        freeze(told, study.name, store)
    instructed = replace(settings.algorithm_settings, known=told.known, related=told.related, observe=on_generation)
    return study, load_algorithm(settings.algorithm)(problem, instructed)
