"""Begins or resumes a study: its question, what it knows from elsewhere, and its algorithm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from nas.algorithm import Generation, Search, SearchProblem, load_algorithm
from nas.evaluator import Evaluator
from nas.settings import SearchSettings
from nas.warm_start import freeze_rows, frozen_rows, known_rows, rows_hash
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
    known = frozen_rows(study.name, store)
    if known is None and settings.warm_start:
        known = known_rows(settings.warm_start, problem, full.columns, store, study.name)
    if known:
        study = replace(study, algorithm=f"{study.algorithm},known={rows_hash(known)}")
    study = store.create_or_resume(study)
    if known:
        freeze_rows(known, study.name, store)
    told = replace(settings.algorithm_settings, known=known or {}, observe=on_generation)
    return study, load_algorithm(settings.algorithm)(problem, told)
