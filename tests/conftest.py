"""Settings every test shares: offline, one thread, seeded, blind to the user's environment."""

from __future__ import annotations

import os

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
