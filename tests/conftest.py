"""Settings every test shares: offline, one thread, seeded, blind to the user's environment."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.toy_job import ToyJob

os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
)

import pytest
from hypothesis import settings

from cli.errors import foreign_kernels

settings.register_profile("house", deadline=None, derandomize=True, database=None, max_examples=50)
settings.load_profile("house")


def pytest_configure() -> None:
    """Refuse to run where another package answers to the name `kernels`."""
    if problem := foreign_kernels():
        raise pytest.UsageError(problem)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the `NAS_*` defaults of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("NAS_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> ToyJob:
    """A finished tiny job, shared by all tests: read it, copy it, never change it."""
    from tests.toy_job import fit_job, make_job

    job = make_job(tmp_path_factory.mktemp("job"))
    fit_job(job)
    return job
