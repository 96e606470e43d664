"""The demonstration's data: movie-review sentences rated positive or negative, from the VADER source distribution.

Source: C. J. Hutto and E. Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media
Text", ICWSM 2014. The wheel lacks the ratings, so the source distribution is fetched and read, never installed.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import os
import random
import tarfile
import tempfile
from pathlib import Path

from nas.package_data import download, move_into_place, verified

RELEASE = "vaderSentiment==3.3.2"
SDIST_NAME = "vaderSentiment-3.3.2.tar.gz"
SDIST_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
RATINGS_ARCHIVE = "hutto_ICWSM_2014.tar.gz"
RATINGS_FILE = "movieReviewSnippets_GroundTruth.txt"

SMALLEST_VALENCE = 0.5
"""Sentences rated nearer to neutral than this (on -4 to 4) are left out."""

TEST_ROWS = 1500
VALIDATION_ROWS = 1500
SPLIT_SEED = 2014

Rows = list[tuple[str, str]]


def prepare_movie_reviews(cache_dir: Path, sdist: Path | None = None) -> Path:
    """Folder with ``train.tsv``, ``validation.tsv`` and ``test.tsv``, columns ``text`` and ``label``.

    Made once: later calls return the same folder at once, without network. It appears complete or not at all.

    Args:
        cache_dir: where the folder is made; created if missing.
        sdist: the source distribution, if it is already here; None downloads it with pip.

    Raises:
        ValueError: the source distribution cannot be fetched, or is not the expected file.
    """
    folder = cache_dir / "movie_reviews"
    if folder.is_dir():
        return folder
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir) as scratch:
        rows = read_ratings(verified(sdist or _download(Path(scratch)), RELEASE, SDIST_SHA256))
        finished = Path(scratch) / "movie_reviews"
        finished.mkdir()
        for split, part in split_rows(drop_repeats(rows)).items():
            _write_tsv(finished / f"{split}.tsv", part)
        move_into_place(finished, folder)
    return folder


def read_ratings(sdist: bytes) -> Rows:
    """(text, label) of every sentence that is clearly positive or negative, in file order.

    Each line of the ratings is an id, the mean valence and the sentence, separated by tabs.
    """
    ratings = _member(_member(sdist, RATINGS_ARCHIVE), RATINGS_FILE).decode("utf-8")
    rows: Rows = []
    for line in ratings.splitlines():
        _, valence, text = line.split("\t", 2)
        if abs(float(valence)) >= SMALLEST_VALENCE:
            rows.append((" ".join(text.split()), "positive" if float(valence) > 0 else "negative"))
    return rows


def drop_repeats(rows: Rows) -> Rows:
    """The first of each set of sentences that differ only in case; none of a set that disagrees on the label."""
    alike: dict[str, Rows] = {}
    for text, label in rows:
        alike.setdefault(text.casefold(), []).append((text, label))
    return [same[0] for same in alike.values() if len({label for _, label in same}) == 1]


def split_rows(rows: Rows) -> dict[str, Rows]:
    """The demonstration's fixed split: shuffled once by a constant seed, test and validation cut off first."""
    shuffled = sorted(rows)
    random.Random(SPLIT_SEED).shuffle(shuffled)
    evaluation = TEST_ROWS + VALIDATION_ROWS
    return {
        "train": shuffled[evaluation:],
        "validation": shuffled[TEST_ROWS:evaluation],
        "test": shuffled[:TEST_ROWS],
    }


def _download(folder: Path) -> Path:
    """Fetch the source distribution with pip, which also looks at its metadata and needs setuptools for that."""
    isolation = ["--no-build-isolation"] if importlib.util.find_spec("setuptools") else []
    download(RELEASE, folder, ["--no-binary", RELEASE.split("==")[0], *isolation])
    return folder / SDIST_NAME


def _member(archive: bytes, name: str) -> bytes:
    """One file of a gzipped tar archive, found by its base name, without writing anything to disk."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        for entry in tar:
            if entry.isfile() and Path(entry.name).name == name:
                file = tar.extractfile(entry)
                assert file is not None
                return file.read()
    raise ValueError(f"the archive holds no {name}; fetch {RELEASE} again")


def _write_tsv(path: Path, rows: Rows) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(("text", "label"))
        writer.writerows(rows)
        file.flush()
        os.fsync(file.fileno())
