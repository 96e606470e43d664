"""Studies and their objectives, rows ↔ records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from sqlalchemy import Row, Select, select

from studies.records import Objective, Study
from studies.schema import CheckpointRow, SearchSpaceRow, StudyRow


def study_query() -> Select[Any]:
    """Everything `study_of` needs."""
    return (
        select(
            *(column for column in StudyRow.__table__.c),
            SearchSpaceRow.fingerprint,
            SearchSpaceRow.content,
            CheckpointRow.weights_hash,
        )
        .join(SearchSpaceRow, SearchSpaceRow.id == StudyRow.space_id)
        .join(CheckpointRow, CheckpointRow.id == StudyRow.checkpoint_id)
        .order_by(StudyRow.id)
    )


def study_of(row: Row[Any]) -> Study:
    """The record of a row of `study_query`."""
    return Study(
        name=row.name,
        space_fingerprint=row.fingerprint,
        supernet_hash=row.weights_hash,
        data_hash=row.data_hash,
        objectives=tuple(objective_of(content) for content in row.objectives),
        algorithm=row.algorithm,
        seed=row.seed,
        budget=row.budget,
        constraints=row.constraints,
        latency_table_hash=row.latency_table_hash,
        space=row.content,
        settings=row.settings,
        versions=row.versions,
        created_utc=row.created_utc,
    )


def study_row(study: Study, space_id: int, checkpoint_id: int) -> dict[str, Any]:
    """The columns of a study; the inverse of `study_of`."""
    return {
        "name": study.name,
        "space_id": space_id,
        "checkpoint_id": checkpoint_id,
        "data_hash": study.data_hash,
        "objectives": [objective_json(objective) for objective in study.objectives],
        "constraints": dict(study.constraints),
        "algorithm": study.algorithm,
        "seed": study.seed,
        "budget": study.budget,
        "latency_table_hash": study.latency_table_hash,
        "settings": dict(study.settings),
        "versions": dict(study.versions),
        "created_utc": study.created_utc,
    }


def objective_json(objective: Objective) -> dict[str, Any]:
    """An objective as JSON."""
    return {field.name: getattr(objective, field.name) for field in fields(Objective)}


def objective_of(content: Mapping[str, Any]) -> Objective:
    """The inverse of `objective_json`."""
    objective = Objective(**content)
    return replace(objective, settings=tuple((str(name), str(value)) for name, value in objective.settings))
