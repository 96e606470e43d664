"""Variants by file name."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from studies import discovery
from studies.discovery import VariantFolder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VariantFolder:
    package = tmp_path / "toy_variants"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "_helper.py").touch()
    (package / "small_one.py").write_text("thing = 1\n")
    (package / "broken.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return VariantFolder(package="toy_variants", attribute="thing", kind="toy")


def test_names_come_from_files_without_importing_them(folder: VariantFolder) -> None:
    assert folder.names() == ("broken", "small-one")


def test_loads_by_either_spelling(folder: VariantFolder) -> None:
    assert folder.load("small-one") == folder.load("small_one") == 1


def test_an_unknown_name_names_the_known_ones_and_the_folder(folder: VariantFolder) -> None:
    for refuse in (folder.load, folder.check):
        with pytest.raises(ValueError, match=r"unknown toy 'big'; known are broken, small-one .*toy_variants/.*thing"):
            refuse("big")


def test_other_distributions_add_variants(folder: VariantFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def offered(group: str) -> list[EntryPoint]:
        return [EntryPoint("their_own", "math:pi", group)] if group == "supernas.toy_variants" else []

    monkeypatch.setattr(discovery, "entry_points", offered)
    assert folder.names() == ("broken", "small-one", "their-own")
    assert folder.load("their-own") == pytest.approx(3.14159, abs=1e-5)


def test_listing_algorithms_and_objectives_imports_no_heavy_library() -> None:
    code = (
        "import sys; from nas.settings import SearchSettings; SearchSettings();"
        "print([m for m in ('torch', 'transformers', 'sklearn', 'optuna', 'pymoo') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
