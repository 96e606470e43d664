"""The part of the study store that says what became of the experts of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, insert, select

from studies.database import Database
from studies.records import Genotype
from studies.rows import architecture_ids, decode_genotype, find_study, identity, upsert
from studies.schema import (
    ArchitectureRow,
    CheckpointRow,
    EvaluationRow,
    MoELayerRow,
    MoELayoutRow,
    StatisticsRow,
    StudyRow,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerExperts:
    """The experts of one kept mixture-of-experts layer.

    Attributes:
        layer: position in the largest network.
        operator: name of the expert reduction; empty where all are kept, or the first ones by a stored order.
        experts: how many are left.
        top_k: how many of them a token chooses.
        width: inner width of each.
        kept: for every expert that is left the original one that it is, or whose place it takes.
        merged: the groups of originals that became one, the kept one first; empty where experts were only dropped.
    """

    layer: int
    operator: str
    experts: int
    top_k: int
    width: int
    kept: tuple[int, ...]
    merged: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationRecord:
    """Statistics that expert reductions were planned from.

    Attributes:
        hash: identity by content.
        data_hash: identity of the text they were taken on, or what is known of it.
        uri: where they lie.
    """

    hash: str
    data_hash: str
    uri: str


class LayoutBook(Database):
    """Layouts of the architectures of a study's space in the study's weights; stored once, whichever study comes."""

    def put_layouts(
        self,
        study_name: str,
        layouts: Mapping[Genotype, Sequence[LayerExperts]],
        calibration: CalibrationRecord | None = None,
    ) -> None:
        """Store the layouts of architectures; those that are known stay as they are."""
        with self.writing() as connection:
            study = find_study(connection, study_name)
            checkpoint = connection.scalar(select(StudyRow.checkpoint_id).where(StudyRow.id == study.id))
            assert checkpoint is not None, "every study has weights"
            statistics = None if calibration is None else _statistics(connection, checkpoint, calibration)
            ids = architecture_ids(connection, study.space_id, layouts)
            for genotype, layers in layouts.items():
                place = {"architecture_id": ids[genotype], "checkpoint_id": checkpoint, "statistics_id": statistics}
                statement = upsert(connection, MoELayoutRow).values(**place)
                unknown = statement.on_conflict_do_nothing(index_elements=["architecture_id", "checkpoint_id"])
                layout = connection.scalar(unknown.returning(MoELayoutRow.id))
                if layout is not None and layers:
                    connection.execute(insert(MoELayerRow), [_row(layout, layer) for layer in layers])

    def layouts(self, study_name: str) -> dict[Genotype, tuple[LayerExperts, ...]]:
        """Layouts of the networks that a study evaluated, layers in forward order."""
        with self.reading() as connection:
            study = find_study(connection, study_name)
            query = (
                select(ArchitectureRow.genotype, *(column for column in MoELayerRow.__table__.c))
                .join(MoELayoutRow, MoELayoutRow.id == MoELayerRow.layout_id)
                .join(ArchitectureRow, ArchitectureRow.id == MoELayoutRow.architecture_id)
                .join(EvaluationRow, EvaluationRow.architecture_id == ArchitectureRow.id)
                .join(StudyRow, StudyRow.id == EvaluationRow.study_id)
                .where(StudyRow.id == study.id, MoELayoutRow.checkpoint_id == StudyRow.checkpoint_id)
                .order_by(EvaluationRow.number, MoELayerRow.layer)
            )
            found: dict[Genotype, list[LayerExperts]] = {}
            for row in connection.execute(query):
                found.setdefault(decode_genotype(row.genotype), []).append(
                    LayerExperts(
                        layer=row.layer,
                        operator=row.operator,
                        experts=row.experts,
                        top_k=row.top_k,
                        width=row.width,
                        kept=tuple(row.kept),
                        merged=tuple(tuple(group) for group in row.merged),
                    )
                )
        return {genotype: tuple(layers) for genotype, layers in found.items()}

    def calibrations(self, weights_hash: str) -> list[CalibrationRecord]:
        """What reductions of some weights were planned from, in order of storing."""
        query = (
            select(StatisticsRow.hash, StatisticsRow.data_hash, StatisticsRow.uri)
            .join(CheckpointRow, CheckpointRow.id == StatisticsRow.checkpoint_id)
            .where(CheckpointRow.weights_hash == weights_hash)
            .order_by(StatisticsRow.id)
        )
        with self.reading() as connection:
            return [CalibrationRecord(**row._asdict()) for row in connection.execute(query)]


def _statistics(connection: Connection, checkpoint: int, record: CalibrationRecord) -> int:
    rest = {"checkpoint_id": checkpoint, "data_hash": record.data_hash, "uri": record.uri}
    return identity(connection, StatisticsRow, {"hash": record.hash}, rest)


def _row(layout: int, layer: LayerExperts) -> dict[str, object]:
    return {
        "layout_id": layout,
        "layer": layer.layer,
        "operator": layer.operator,
        "experts": layer.experts,
        "top_k": layer.top_k,
        "width": layer.width,
        "kept": list(layer.kept),
        "merged": [list(group) for group in layer.merged],
    }
