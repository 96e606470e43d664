"""The part of the study store that outlives studies: checkpoints, machines and what was measured on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from sqlalchemy import select

from studies.database import Database
from studies.records import Measurement
from studies.rows import upsert
from studies.schema import Base, CheckpointRow, DeviceRow, MeasurementRow

MEASUREMENT_FIELDS = tuple(field.name for field in fields(Measurement))


class DeviceBook(Database):
    """Devices, operator latencies and checkpoints, each under its own identity; writing one again replaces it."""

    def put_device(self, fingerprint: str, description: Mapping[str, object]) -> None:
        """Describe a device by any JSON object."""
        self._replace(DeviceRow, ["fingerprint"], [{"fingerprint": fingerprint, "description": dict(description)}])

    def devices(self) -> dict[str, dict[str, Any]]:
        """Fingerprint → description, in order of fingerprint."""
        with self.reading() as connection:
            rows = connection.execute(
                select(DeviceRow.fingerprint, DeviceRow.description).order_by(DeviceRow.fingerprint)
            )
            return {row.fingerprint: row.description for row in rows}

    def put_measurements(self, measurements: Sequence[Measurement]) -> None:
        """Store timings in one transaction; a newer one replaces that of the same device and operation."""
        rows = [
            {name: getattr(m, name) for name in MEASUREMENT_FIELDS} | {"versions": dict(m.versions)}
            for m in measurements
        ]
        self._replace(MeasurementRow, ["device", "op_key"], rows)

    def measurements(self, device: str, prefix: str = "") -> list[Measurement]:
        """Timings of one device whose operation key begins with `prefix`, in order of key."""
        columns = [getattr(MeasurementRow, name) for name in MEASUREMENT_FIELDS]
        query = (
            select(*columns)
            .where(MeasurementRow.device == device, MeasurementRow.op_key.startswith(prefix, autoescape=True))
            .order_by(MeasurementRow.op_key)
        )
        with self.reading() as connection:
            rows = connection.execute(query).all()
        # LIKE ignores case on SQLite
        return [Measurement(**row._asdict()) for row in rows if row.op_key.startswith(prefix)]

    def put_checkpoint(self, weights_hash: str, uri: str) -> None:
        """Remember where weights were last seen."""
        self._replace(CheckpointRow, ["weights_hash"], [{"weights_hash": weights_hash, "uri": uri}])

    def checkpoint(self, weights_hash: str) -> str | None:
        """Where weights were last seen, None if nobody said."""
        with self.reading() as connection:
            return (
                connection.scalar(select(CheckpointRow.uri).where(CheckpointRow.weights_hash == weights_hash)) or None
            )

    def _replace(self, table: type[Base], key: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        if not rows:
            return
        with self.writing() as connection:
            statement = upsert(connection, table)
            changes = {name: statement.excluded[name] for name in rows[0] if name not in key}
            connection.execute(statement.on_conflict_do_update(index_elements=list(key), set_=changes), rows)
