"""Folders that appear complete or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from supernets.staging import staged_folder


def write_half(target: Path) -> None:
    with staged_folder(target) as staged:
        (staged / "half").write_text("x")
        raise KeyboardInterrupt


def test_a_staged_folder_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    with pytest.raises(KeyboardInterrupt):
        write_half(target)
    assert not list(tmp_path.iterdir())
    target.mkdir()
    with staged_folder(target) as staged:
        (staged / "whole").write_text("x")
        assert not list(target.iterdir())
    assert [path.name for path in target.iterdir()] == ["whole"]
    shutil.rmtree(target)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_writer_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, foreign = tmp_path / "folder", tmp_path / ".folder-of-somebody"
    foreign.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            write_half(target)
    (abandoned,) = set(tmp_path.iterdir()) - {foreign}
    with staged_folder(target):
        assert not abandoned.exists()
    assert set(tmp_path.iterdir()) == {target, foreign}


def test_two_writers_do_not_disturb_each_other(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    with staged_folder(target) as first:
        (first / "first").write_text("x")
        with pytest.raises(KeyboardInterrupt):
            write_half(target)
    assert [path.name for path in target.iterdir()] == ["first"]
