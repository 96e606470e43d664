"""The part of the study store that surrounds evaluations: notes, predictions, front snapshots and artifacts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, insert, select

from studies.database import Database
from studies.pareto import ParetoFront
from studies.records import Genotype, Objective, Value
from studies.rows import (
    FINISHED,
    architecture_ids,
    check_values,
    decode_genotype,
    find_evaluations,
    find_study,
    identity,
    require_evaluation,
    upsert,
)
from studies.schema import (
    ArchitectureRow,
    ArtifactRow,
    EvaluationRow,
    FrontMemberRow,
    FrontRow,
    NoteRow,
    PredictionRow,
    PredictorRow,
)
from studies.study_rows import objective_json, objective_of


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontSnapshot:
    """A front as it stood.

    Attributes:
        evaluations: how many evaluations of the study were over.
        reference: of the hypervolume, one number per objective; empty if there was none.
        members: `Evaluation.number` of those on the front, ascending.
    """

    taken_utc: datetime
    evaluations: int
    objectives: tuple[Objective, ...]
    reference: tuple[float, ...]
    hypervolume: float | None
    members: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What a predictor says about a network.

    Attributes:
        predictor: its name.
        training_hash: identity of what it was trained on.
        error: its own measured errors, such as ``{"mape": 0.03}``; to be shown beside the value.
        value: provenance ``predicted``.
    """

    predictor: str
    training_hash: str
    error: Mapping[str, float]
    genotype: Genotype
    value: Value


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """A file or directory made from an evaluation.

    Attributes:
        kind: such as ``checkpoint``.
        description: any JSON object.
        created_utc: set by the store.
    """

    genotype: Genotype
    kind: str
    uri: str
    sha256: str
    description: Mapping[str, object]
    created_utc: datetime | None = None


class StudyBook(Database):
    """What stages of a study leave for each other and for the reader."""

    def note(self, study_name: str, key: str, content: object) -> None:
        """Write any JSON content under a key of a study, replacing what was there."""
        with self.writing() as connection:
            study = find_study(connection, study_name)
            statement = upsert(connection, NoteRow).values(study_id=study.id, key=key, content=content)
            changes = {"content": statement.excluded.content}
            connection.execute(statement.on_conflict_do_update(index_elements=["study_id", "key"], set_=changes))

    def notes(self, study_name: str) -> dict[str, Any]:
        """All notes of a study, in order of key."""
        with self.reading() as connection:
            study = find_study(connection, study_name)
            query = select(NoteRow.key, NoteRow.content).where(NoteRow.study_id == study.id).order_by(NoteRow.key)
            return {row.key: row.content for row in connection.execute(query)}

    def add_predictions(
        self,
        study_name: str,
        predictor: str,
        predictions: Sequence[tuple[Genotype, Value]],
        *,
        training_hash: str,
        error: Mapping[str, float],
    ) -> None:
        """Store what one predictor says; said again, it replaces what the same predictor said before."""
        for genotype, value in predictions:
            check_values(genotype, [value])
            if value.provenance != "predicted":
                raise ValueError(f"predictions have provenance 'predicted', got {value.provenance!r} for {genotype}")
        with self.writing() as connection:
            study = find_study(connection, study_name)
            key = {"study_id": study.id, "name": predictor, "training_hash": training_hash}
            rest = {"error": dict(error), "created_utc": datetime.now(UTC)}
            predictor_id = identity(connection, PredictorRow, key, rest)
            architectures = architecture_ids(connection, study.space_id, [genotype for genotype, _ in predictions])
            unique = ["predictor_id", "architecture_id", "objective", "device"]
            statement = upsert(connection, PredictionRow)
            changes = {"number": statement.excluded.number, "spread": statement.excluded.spread}
            rows = [
                {
                    "predictor_id": predictor_id,
                    "architecture_id": architectures[genotype],
                    "objective": value.objective,
                    "device": value.device,
                    "number": value.number,
                    "spread": value.spread,
                }
                for genotype, value in predictions
            ]
            if rows:
                connection.execute(statement.on_conflict_do_update(index_elements=unique, set_=changes), rows)

    def predictions(self, study_name: str) -> list[Prediction]:
        """Everything predicted for a study, in order of predictor and of first mention."""
        with self.reading() as connection:
            study = find_study(connection, study_name)
            query = (
                select(PredictorRow, PredictionRow, ArchitectureRow.genotype)
                .join(PredictionRow, PredictionRow.predictor_id == PredictorRow.id)
                .join(ArchitectureRow, ArchitectureRow.id == PredictionRow.architecture_id)
                .where(PredictorRow.study_id == study.id)
                .order_by(PredictorRow.id, PredictionRow.id)
            )
            rows = connection.execute(query).all()
        return [
            Prediction(
                predictor=row.name,
                training_hash=row.training_hash,
                error=row.error,
                genotype=decode_genotype(row.genotype),
                value=Value(
                    objective=row.objective,
                    number=row.number,
                    spread=row.spread,
                    provenance="predicted",
                    device=row.device,
                ),
            )
            for row in rows
        ]

    def snapshot_front(
        self, study_name: str, front: ParetoFront, reference: Sequence[float] | None = None
    ) -> FrontSnapshot:
        """Store which evaluations are on a front now; with a reference point (own units) also its hypervolume."""
        volume = None if reference is None else front.hypervolume(reference)
        with self.writing() as connection:
            study = find_study(connection, study_name)
            finished = [EvaluationRow.study_id == study.id, EvaluationRow.status.in_(FINISHED)]
            content = {
                "taken_utc": datetime.now(UTC),
                "evaluations": connection.scalar(select(func.count()).select_from(EvaluationRow).where(*finished)),
                "objectives": [objective_json(objective) for objective in front.objectives],
                "reference": list(reference or ()),
                "hypervolume": volume,
            }
            front_id = connection.scalar(insert(FrontRow).values(study_id=study.id, **content).returning(FrontRow.id))
            keys = find_evaluations(connection, study, [evaluation.genotype for evaluation in front.evaluations])
            members = [{"front_id": front_id, "evaluation_id": key.id} for key in keys.values()]
            if members:
                connection.execute(insert(FrontMemberRow), members)
        return _snapshot(content, sorted(key.number for key in keys.values()))

    def fronts(self, study_name: str) -> list[FrontSnapshot]:
        """All front snapshots of a study, oldest first."""
        with self.reading() as connection:
            study = find_study(connection, study_name)
            members: dict[int, list[int]] = {}
            numbers = (
                select(FrontMemberRow.front_id, EvaluationRow.number)
                .join(EvaluationRow, EvaluationRow.id == FrontMemberRow.evaluation_id)
                .where(EvaluationRow.study_id == study.id)
                .order_by(EvaluationRow.number)
            )
            for front_id, number in connection.execute(numbers):
                members.setdefault(front_id, []).append(number)
            rows = connection.execute(select(FrontRow).where(FrontRow.study_id == study.id).order_by(FrontRow.id)).all()
        return [_snapshot(row._asdict(), members.get(row.id, [])) for row in rows]

    def put_artifact(self, study_name: str, artifact: Artifact) -> None:
        """Store where something made from an evaluation lies; the same kind at the same place is replaced."""
        content = {
            "sha256": artifact.sha256,
            "description": dict(artifact.description),
            "created_utc": artifact.created_utc or datetime.now(UTC),
        }
        with self.writing() as connection:
            evaluation = require_evaluation(connection, find_study(connection, study_name), artifact.genotype)
            statement = upsert(connection, ArtifactRow).values(
                evaluation_id=evaluation.id, kind=artifact.kind, uri=artifact.uri, **content
            )
            unique = ["evaluation_id", "kind", "uri"]
            connection.execute(statement.on_conflict_do_update(index_elements=unique, set_=content))

    def artifacts(self, study_name: str) -> list[Artifact]:
        """All artifacts of a study, in order of creation."""
        with self.reading() as connection:
            study = find_study(connection, study_name)
            query = (
                select(ArtifactRow, ArchitectureRow.genotype)
                .join(EvaluationRow, EvaluationRow.id == ArtifactRow.evaluation_id)
                .join(ArchitectureRow, ArchitectureRow.id == EvaluationRow.architecture_id)
                .where(EvaluationRow.study_id == study.id)
                .order_by(ArtifactRow.id)
            )
            rows = connection.execute(query).all()
        return [
            Artifact(
                genotype=decode_genotype(row.genotype),
                kind=row.kind,
                uri=row.uri,
                sha256=row.sha256,
                description=row.description,
                created_utc=row.created_utc,
            )
            for row in rows
        ]


def _snapshot(content: Mapping[str, Any], members: Sequence[int]) -> FrontSnapshot:
    return FrontSnapshot(
        taken_utc=content["taken_utc"],
        evaluations=content["evaluations"],
        objectives=tuple(objective_of(objective) for objective in content["objectives"]),
        reference=tuple(content["reference"]),
        hypervolume=content["hypervolume"],
        members=tuple(members),
    )
