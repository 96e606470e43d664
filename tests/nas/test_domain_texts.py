"""The text of eight domains, from wheels made here in the published layout."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from nas import domain_texts
from nas.domain_texts import DOMAINS, LANGUAGES, prepare_domain_texts, read_messages, split_documents

CATALOGUE = r"""# a comment
msgid ""
msgstr ""
"Project-Id-Version: x\n"
"Content-Type: text/plain; charset=UTF-8\n"

msgid "ignored"
msgctxt "ignored"
msgstr "one \"quoted\"\n"
"and more"

#, fuzzy
msgid "ignored"
msgid_plural "ignored"
msgstr[0] "singular"
msgstr[1] "plural\\n"

msgid "untranslated"
msgstr ""

#~ msgstr "obsolete"
"""


def test_messages_are_the_translations() -> None:
    assert read_messages(CATALOGUE) == ['one "quoted"\nand more', "singular", r"plural\n"]


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    known, paths = {}, []
    for release, (name, _) in domain_texts.WHEELS.items():
        path = tmp_path / name
        with zipfile.ZipFile(path, "w") as archive:
            for domain, code in LANGUAGES.items():
                lines = [f'msgid "x"\nmsgstr "{domain} number {n}"\n' for n in range(400)]
                archive.writestr(f"package/locale/{code}/LC_MESSAGES/django.po", "\n".join(lines))
            for number in range(30):
                archive.writestr(f"package/{number}.py", f"# {name} {number}\n" * 40)
                archive.writestr(f"package/{number}.js", f"// {name} {number}\n" * 40)
        known[release] = (name, hashlib.sha256(path.read_bytes()).hexdigest())
        paths.append(path)
    monkeypatch.setattr(domain_texts, "WHEELS", known)
    return paths


def test_every_domain_has_four_disjoint_texts(tmp_path: Path, wheels: list[Path]) -> None:
    folder = prepare_domain_texts(tmp_path / "cache", wheels)
    assert sorted(path.name for path in folder.iterdir()) == sorted(DOMAINS)
    for domain in DOMAINS:
        texts = {path.stem: path.read_text(encoding="utf-8") for path in (folder / domain).iterdir()}
        assert sorted(texts) == ["calibration", "test", "train", "validation"]
        total = sum(map(len, texts.values()))
        assert len(texts["test"]) > 0.11 * total
        assert len(texts["train"]) > 0.5 * total
        lines = [set(text.splitlines()) for text in texts.values()]
        assert sum(map(len, lines)) == len(set.union(*lines))
        assert len(set.union(*lines)) == (400 if domain in LANGUAGES else 30)  # no message of a second wheel
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["domain_texts"]
    for path in wheels:
        path.unlink()
    assert prepare_domain_texts(tmp_path / "cache") == folder  # made once


def test_another_wheel_is_refused_and_leaves_nothing(tmp_path: Path, wheels: list[Path]) -> None:
    wheels[1].write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"\.whl has SHA-256 .*, expected .*; fetch wagtail==8\.0\.1 again"):
        prepare_domain_texts(tmp_path / "cache", wheels)
    assert list((tmp_path / "cache").iterdir()) == []


def test_documents_are_dealt_out_until_a_split_has_its_share() -> None:
    documents = [f"{number:09}\n" for number in range(100)]
    texts = split_documents(documents)
    assert {split: len(text) // 10 for split, text in texts.items()} == {
        "train": 70,
        "test": 12,
        "validation": 10,
        "calibration": 8,
    }
    assert sorted("".join(texts.values()).splitlines(keepends=True)) == documents
