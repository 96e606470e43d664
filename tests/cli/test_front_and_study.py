"""`nas front` and `nas study` over a small study with known values."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from cli.errors import ExitCode
from cli.main import run
from kernels.timing import TimingSettings
from studies.records import Evaluation, Objective, Provenance, Study, Value
from studies.store import StudyStore
from supernets.space import Choice, SearchSpace

ERROR = Objective(name="error", unit="fraction")
LATENCY = Objective(name="latency", unit="ms", settings=(("batch", "1"),))
SPACE = SearchSpace(
    "bert", 2, (0, 1), (Choice(axis="depth", options=(1, 2)), Choice(axis="heads", options=(2, 4, 8), layer=0))
)
STUDY = Study(
    name="demo",
    space_fingerprint=SPACE.fingerprint,
    supernet_hash="s",
    data_hash="d",
    objectives=(ERROR, LATENCY),
    algorithm="random",
    seed=7,
    budget=50,
    constraints={LATENCY.key: 12.0},
    space=SPACE.to_json(),
    settings={"batch": 20},
    created_utc=datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
)
POINTS: dict[tuple[int, ...], tuple[float, float, Provenance]] = {
    (0, 0): (0.30, 2.0, "extracted"),
    (0, 1): (0.16, 4.0, "extracted"),
    (0, 2): (0.17, 5.0, "extracted"),  # dominated
    (1, 2): (0.13, 9.0, "extracted"),
    (1, 0): (0.15, 3.0, "predicted"),
}


def evaluation(genotype: tuple[int, ...]) -> Evaluation:
    error, latency, provenance = POINTS[genotype]
    return Evaluation(
        genotype=genotype,
        values=(
            Value(objective=ERROR.key, number=error, provenance="supernet", spread=0.009, n=1500, data_hash="d"),
            Value(objective=LATENCY.key, number=latency, provenance=provenance, spread=0.05, n=10, device="cpu-1"),
        ),
    )


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url = f"sqlite:///{tmp_path / 'nas.db'}"
    with StudyStore.open(url) as store:
        store.create_or_resume(STUDY)
        store.append(STUDY.name, [evaluation(genotype) for genotype in POINTS])
        store.append(STUDY.name, [Evaluation(genotype=(1, 1), status="failed", failure="NaN loss")])
    monkeypatch.setenv("NAS_STORAGE", url)
    return url


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    code = run(arguments)
    out, err = capsys.readouterr()
    assert code == ExitCode.OK, err
    return out


def latencies(rows: list[dict[str, object]]) -> list[float]:
    return [float(str(row[LATENCY.key])) for row in rows]


@pytest.mark.usefixtures("storage")
def test_front_in_every_machine_format(capsys: pytest.CaptureFixture[str]) -> None:
    as_json = json.loads(output(capsys, "front", "-f", "json"))
    assert latencies(as_json) == [9.0, 4.0, 2.0]  # best error first
    assert [row["knee"] for row in as_json] == [False, True, False]
    assert as_json[0] == {
        "number": as_json[0]["number"],
        "error": 0.13,
        "error unit": "fraction",
        "error spread": 0.009,
        "error provenance": "supernet",
        "error device": "",
        LATENCY.key: 9.0,
        f"{LATENCY.key} unit": "ms",
        f"{LATENCY.key} spread": 0.05,
        f"{LATENCY.key} provenance": "extracted",
        f"{LATENCY.key} device": "cpu-1",
        "architecture": "0:heads=8;1:",
        "genotype": "1-2",
        "knee": False,
    }
    assert yaml.safe_load(output(capsys, "front", "-f", "yaml")) == as_json
    assert latencies(list(csv.DictReader(io.StringIO(output(capsys, "front", "-f", "csv"))))) == [9.0, 4.0, 2.0]


@pytest.mark.usefixtures("storage")
def test_front_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    header, *lines = output(capsys, "front", "--sort", "latency").splitlines()
    assert "latency:batch=1 [ms]" in header
    assert ["2 ± 0.05" in lines[0], "4 ± 0.05" in lines[1], "9 ± 0.05" in lines[2]] == [True] * 3
    assert lines[1].endswith("*")
    assert all("supernet extracted" in line for line in lines)


@pytest.mark.usefixtures("storage")
def test_costs_of_one_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(json.loads(output(capsys, "front", "-f", "json", "--measured-on", "cpu-1"))) == 3
    assert run(["front", "--measured-on", "cpu-2"]) == ExitCode.BAD_INPUT


def test_predicted_values_stand_apart_and_only_on_request(storage: str, capsys: pytest.CaptureFixture[str]) -> None:
    measured = json.loads(output(capsys, "front", "-f", "json", "--sort", LATENCY.key))
    with StudyStore.open(storage) as store:
        real = [(ERROR.key, 0.01), (LATENCY.key, 0.1)]  # of an evaluated network: predictions of it are not shown
        guesses = {(0, 1): real, (1, 1): [(ERROR.key, 0.1)]}
        store.delete(STUDY.name)
        store.create_or_resume(STUDY)
        store.append(STUDY.name, [evaluation(genotype) for genotype in POINTS])
        for name, training, numbers in (("ridge", "old", guesses), ("svr", "new", better_guesses())):
            values = [
                (genotype, Value(objective=key, number=number, provenance="predicted", spread=0.02))
                for genotype, given in numbers.items()
                for key, number in given
            ]
            store.add_predictions(STUDY.name, name, values, training_hash=training, error={"tau": 0.8})
    rows = json.loads(output(capsys, "front", "-f", "json", "--predicted", "--sort", LATENCY.key))
    standings = {
        standing: [row for row in rows if row["standing"] == standing] for row in rows if (standing := row["standing"])
    }
    assert [{k: v for k, v in row.items() if k != "standing"} for row in standings["measured"]] == measured
    assert latencies(standings["compared by the search"]) == [3.0]
    assert {row[f"{LATENCY.key} provenance"] for row in standings["compared by the search"]} == {"predicted"}
    (unseen,) = standings["never evaluated"]
    assert (unseen["number"], unseen["error"], unseen["error spread"], unseen["genotype"]) == (None, 0.2, 0.02, "1-1")
    table = output(capsys, "front", "--predicted").splitlines()
    assert [line for line in table if line[0].isalpha() and line.endswith(":")] == [
        "measured:",
        "compared by the search:",
        "never evaluated:",
    ]


def better_guesses() -> dict[tuple[int, ...], list[tuple[str, float]]]:
    """Of the latest predictor, which alone is heard."""
    return {(1, 1): [(ERROR.key, 0.2), (LATENCY.key, 2.5)]}


def test_timings_that_did_not_settle_are_counted(storage: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["front"]) == ExitCode.OK
    assert "settle" not in capsys.readouterr().err
    with StudyStore.open(storage) as store:
        restless = Value(objective=LATENCY.key, number=2.0, provenance="extracted", spread=0.07, n=30, device="cpu-1")
        store.add_values(STUDY.name, (0, 0), [restless])
    assert run(["front"]) == ExitCode.OK
    assert "1 latencies did not settle" in capsys.readouterr().err
    assert TimingSettings().tolerance == 0.03


def test_there_must_be_something_to_draw(storage: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Of another machine nothing was measured, nor predicted."""
    figure = tmp_path / "front.png"
    assert run(["front", "--predicted", "--measured-on", "cpu-2", "--plot", str(figure)]) == ExitCode.BAD_INPUT
    assert "no sub-network evaluated on all of its objectives" in capsys.readouterr().err
    assert not figure.exists()


@pytest.mark.usefixtures("storage")
@pytest.mark.parametrize("suffix", ["png", "svg"])
@pytest.mark.parametrize("options", [[], ["--predicted"]])
def test_front_as_a_figure(capsys: pytest.CaptureFixture[str], tmp_path: Path, suffix: str, options: list[str]) -> None:
    figure = tmp_path / f"front.{suffix}"
    output(capsys, "front", "--plot", str(figure), *options)
    assert figure.read_bytes().startswith(b"\x89PNG" if suffix == "png" else b"<?xml")
    assert sorted(path.name for path in tmp_path.iterdir() if "front" in path.name) == [figure.name]


@pytest.mark.usefixtures("storage")
@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (["front", "--study-name", "other"], ExitCode.BAD_INPUT, "other"),
        (["front", "--sort", "macs"], ExitCode.BAD_INPUT, "got 'macs'"),
        (["front", "--plot", "front.bmp"], ExitCode.BAD_INPUT, "front.bmp"),
        (["front", "--storage", "sqlite:///absent.db"], ExitCode.STORAGE, "absent.db"),
        (["study", "show", "other"], ExitCode.BAD_INPUT, "other"),
        (["study", "delete", "other", "--yes"], ExitCode.BAD_INPUT, "other"),
    ],
)
def test_bad_input(arguments: list[str], code: ExitCode, problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert problem in err
    assert err.count("\n") == 1


def test_a_front_without_measurements_says_what_to_do(storage: str, capsys: pytest.CaptureFixture[str]) -> None:
    with StudyStore.open(storage) as store:
        store.delete(STUDY.name)
        store.create_or_resume(STUDY)
        assert run(["front"]) == ExitCode.BAD_INPUT
        assert "run `nas search`" in capsys.readouterr().err
        assert run(["front", "--predicted"]) == ExitCode.BAD_INPUT
        assert "no sub-network evaluated" in capsys.readouterr().err
        store.append(STUDY.name, [evaluation((1, 0))])
    assert run(["front"]) == ExitCode.BAD_INPUT
    assert "--predicted" in capsys.readouterr().err


def test_two_studies_need_a_name(storage: str, capsys: pytest.CaptureFixture[str]) -> None:
    with StudyStore.open(storage) as store:
        store.create_or_resume(replace(STUDY, name="second"))
    assert run(["front"]) == ExitCode.BAD_INPUT
    assert "demo, second" in capsys.readouterr().err
    assert len(json.loads(output(capsys, "front", "--study-name", "demo", "-f", "json"))) == 3


@pytest.mark.usefixtures("storage")
def test_study_list_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    (listed,) = json.loads(output(capsys, "study", "list", "-f", "json"))
    assert (listed["name"], listed["done"], listed["failed"], listed["budget"]) == ("demo", 5, 1, 50)
    assert listed["objectives"] == "error latency:batch=1"
    (shown,) = json.loads(output(capsys, "study", "show", "demo", "-f", "json"))
    assert shown.items() >= {**listed, "seed": 7, "limit latency:batch=1": 12.0, "setting batch": 20}.items()
    table = output(capsys, "study", "show", "demo")
    assert "setting batch" in table


@pytest.mark.usefixtures("storage")
def test_study_delete(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert run(["study", "delete", "demo"]) == ExitCode.INTERRUPTED
    capsys.readouterr()
    output(capsys, "study", "delete", "demo", "--yes")
    assert json.loads(output(capsys, "study", "list", "-f", "json")) == []
