"""Opening a study database: whose it is, which version it has, and how it is read and written."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, select, table, text
from sqlalchemy import column as sql_column
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    DataError,
    IntegrityError,
    NoSuchModuleError,
    OperationalError,
    ProgrammingError,
)

from studies.errors import StorageError
from studies.schema import REVISION, VERSION_TABLE

BUSY_SECONDS = 60
"""How long a writer waits for another one on SQLite."""
_RETRY_SECONDS = 0.02

UPGRADE_LOCK = 7_305_814
"""Number of the PostgreSQL advisory lock that lets one process at a time create or upgrade the tables."""


class Database:
    """An open study database; every read and every write is one transaction.

    Reads see one snapshot. On SQLite a write takes the single writer's lock at its start, the journal is a write-ahead
    log and every commit reaches the disk (``synchronous=FULL``).
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._writer = engine.execution_options(begin="BEGIN IMMEDIATE")
        is_sqlite = engine.dialect.name == "sqlite"
        self._reader = engine if is_sqlite else engine.execution_options(isolation_level="REPEATABLE READ")

    @classmethod
    def open(cls, url: str, create: bool = True) -> Self:
        """Open a database by URL, create its tables or upgrade them to this version.

        Args:
            url: ``sqlite:///study.db`` or ``postgresql://user@host/name``.
            create: make a new study database where there is none.

        Raises:
            StorageError: unknown URL, out of reach, no study database (without `create`), a database of another
                program, of a newer version, or corrupt.
        """
        parsed = _parse(url)
        if parsed.get_backend_name() == "sqlite":
            _check_file(parsed, create)
        try:
            database = cls(_connect(parsed))
        except ModuleNotFoundError as error:
            raise StorageError(f"{url} needs the package {error.name}; pip install 'supernas[postgresql]'") from error
        try:
            database._prepare(create)
        except BaseException:
            database.close()
            raise
        return database

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def name(self) -> str:
        """The URL without its password."""
        return self._engine.url.render_as_string(hide_password=True)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One read-only look at one state of the database."""
        with self._one_line_errors(), self._reader.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction: committed at the end, undone on any error."""
        with self._one_line_errors(), self._writer.begin() as connection:
            yield connection

    @contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        try:
            yield
        except DatabaseError as error:
            if isinstance(error, IntegrityError | ProgrammingError | DataError):
                raise
            cause = " ".join(str(error.orig).split())
            raise StorageError(
                f"cannot use the study database {self.name}: {cause}; check the address, its permissions and free space"
            ) from error

    def _prepare(self, create: bool) -> None:
        with self.reading() as connection:
            revision = _revision(connection, self.name)
        if revision == REVISION:
            return
        if revision is None:
            if not create:
                raise StorageError(f"{self.name} holds no studies yet; check the address or run a search first")
            self._use_write_ahead_log()
        with self.writing() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text(f"SELECT pg_advisory_xact_lock({UPGRADE_LOCK})"))
            _upgrade(connection, _revision(connection, self.name), self.name)

    def _use_write_ahead_log(self) -> None:
        """The mode stays with the file; it cannot be set inside a transaction.

        Beside another writer SQLite refuses at once, however long its timeout is.
        """
        if self._engine.dialect.name != "sqlite":
            return
        until = time.monotonic() + BUSY_SECONDS
        with self._one_line_errors(), self._engine.execution_options(begin=None).connect() as connection:
            while True:
                try:
                    connection.exec_driver_sql("PRAGMA journal_mode=WAL")
                    return
                except OperationalError as error:
                    if getattr(error.orig, "sqlite_errorname", "") != "SQLITE_BUSY" or time.monotonic() > until:
                        raise
                time.sleep(_RETRY_SECONDS)


def _parse(url: str) -> URL:
    remedy = "use sqlite:///study.db or postgresql://user@host/name"
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, NoSuchModuleError) as error:
        raise StorageError(f"{url!r} is not a database address; {remedy}") from error
    if backend not in ("sqlite", "postgresql"):
        raise StorageError(f"studies are kept in SQLite or PostgreSQL, not {backend}; {remedy}")
    return parsed.set(drivername="postgresql+psycopg") if backend == "postgresql" else parsed


def _check_file(url: URL, create: bool) -> None:
    """Connecting would create a missing file, or fail without saying why."""
    if not url.database or url.database == ":memory:":
        return
    path = Path(url.database)
    if not path.exists() and not create:
        raise StorageError(f"there is no study database at {path}; check --storage or run a search first")
    if path.is_dir() or not path.parent.is_dir():
        raise StorageError(f"{path} cannot be a database file; name a file in a folder that exists")


def _connect(url: URL) -> Engine:
    return _connect_sqlite(url) if url.get_backend_name() == "sqlite" else _connect_postgresql(url)


def _connect_postgresql(url: URL) -> Engine:
    engine = create_engine(url, pool_pre_ping=True)

    @event.listens_for(engine, "connect")
    def set_up(connection, _) -> None:  # type: ignore[no-untyped-def]
        # A plan made while a table was small reads all of it for every foreign key of a large batch.
        connection.execute("SET plan_cache_mode = force_custom_plan")
        connection.commit()

    return engine


def _connect_sqlite(url: URL) -> Engine:
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS})

    @event.listens_for(engine, "connect")
    def set_up(connection, _) -> None:  # type: ignore[no-untyped-def]
        connection.isolation_level = None  # the driver must not begin transactions on its own
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA synchronous=FULL")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        if statement := connection.get_execution_options().get("begin", "BEGIN"):
            connection.exec_driver_sql(statement)

    return engine


def _revision(connection: Connection, name: str) -> str | None:
    """Revision of our tables, None for an empty database; StorageError for somebody else's."""
    tables = inspect(connection).get_table_names()
    if VERSION_TABLE in tables:
        return connection.scalar(select(sql_column("version_num")).select_from(table(VERSION_TABLE)))
    if tables:
        raise StorageError(
            f"{name} belongs to another program (it has a table {min(tables)!r}); choose another database for studies"
        )
    return None


def _upgrade(connection: Connection, revision: str | None, name: str) -> None:
    """Run the missing revisions. alembic is imported here only: opening an up-to-date store stays quick."""
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", "studies:migrations")
    config.set_main_option("path_separator", "os")
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if revision is not None and revision not in known:
        raise StorageError(
            f"{name} was written by a newer supernas (schema {revision}, this one knows {REVISION}); upgrade supernas"
        )
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
