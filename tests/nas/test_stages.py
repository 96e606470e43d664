"""The chain tune, measure, search, export on a toy checkpoint, stopped and resumed at every stage."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from nas.checking import check
from nas.fit import Listener, fit
from nas.judging import JudgeRequest, judge
from nas.search import compared_share
from nas.searching import open_supernet, search_supernet
from nas.tune_request import Duration
from nas.tuning import prepare, tune_supernet
from nas.workspace import Workspace
from studies.errors import LimitError
from studies.records import MEASURED, Evaluation
from studies.store import StudyStore
from supernets.checkpoint import read_supernet_record
from supernets.finetune import TuneProgress
from supernets.recipe import Recipe, load_recipe
from supernets.task import TaskSettings
from tests.toy_job import QUICK, STEPS, ToyJob, copied, provenance, write_checkpoint, write_data


class Stopped(Exception):
    """Stands for a kill."""


def never(*_: object) -> None:
    raise AssertionError("a finished stage was repeated")


def files(folder: Path) -> dict[str, int]:
    """Every file and when it was written; the database's own bookkeeping is left out."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "study.db" not in path.name
    }


def evaluations(workspace: Workspace, study: str = "study") -> list[Evaluation]:
    with StudyStore.open(workspace.storage) as store:
        return store.evaluations(study)


def test_a_job_leaves_what_it_promises(fitted: ToyJob) -> None:
    workspace = fitted.workspace
    record = read_supernet_record(workspace.supernet)
    assert record["teacher"] == str(workspace.teacher)
    assert set(record["validation"]["teacher"]) >= {"accuracy", "f1", "matthews"}
    assert not list((workspace.root / "training").iterdir())
    with StudyStore.open(workspace.storage) as store:
        front = store.front("study")
        assert len(store.artifacts("study")) == len(list((workspace.root / "exports").iterdir())) >= 1
    assert len(front) >= 1
    assert all(front.value(e, o).provenance in MEASURED for e in front.evaluations for o in front.objectives)


def test_a_finished_job_repeats_nothing(fitted: ToyJob) -> None:
    before, known = files(fitted.workspace.root), evaluations(fitted.workspace)
    seen: list[int] = []
    listener = Listener(
        on_estimate=never,
        on_tuned=never,
        on_measured=never,
        on_recovered=never,
        on_searched=lambda progress: seen.append(progress.replayed),
    )
    result = fit(fitted.fit_request(), listener)
    assert seen == list(range(1, len(seen) + 1))
    assert files(fitted.workspace.root) == before
    assert evaluations(fitted.workspace) == known
    assert "knee" in {role for export in result.exports for role in export.role.split(",")}
    assert {export.folder for export in result.exports} == set((fitted.workspace.root / "exports").iterdir())


def test_lost_exports_are_made_again(fitted: ToyJob, tmp_path: Path) -> None:
    """Also from another folder: the study does not care where the weights lie."""
    job = copied(fitted, tmp_path)
    kept, *lost = sorted((job.workspace.root / "exports").iterdir())
    for folder in lost or [kept]:
        shutil.rmtree(folder)
    request = replace(job.fit_request(), tune=fitted.request())
    result = fit(request, Listener(on_tuned=never, on_measured=never))
    assert all(provenance(export.folder)["evaluation"] == export.evaluation.number for export in result.exports)
    assert all(export.evaluation.value("error", frozenset({"exported"})) for export in result.exports)


def test_a_kill_between_writing_and_recording_loses_nothing(
    fitted: ToyJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise Stopped

    job = copied(fitted, tmp_path)
    shutil.rmtree(job.workspace.root / "exports")
    with StudyStore.open(job.workspace.storage) as store:
        store.delete("study")
    request = replace(job.fit_request(), tune=fitted.request())
    with monkeypatch.context() as patch:
        patch.setattr("nas.export.record_export", stop)
        with pytest.raises(Stopped):
            fit(request)
    assert not any(value.provenance == "exported" for e in evaluations(job.workspace) for value in e.values)
    result = fit(request)
    with StudyStore.open(job.workspace.storage) as store:
        assert {Path(one.uri) for one in store.artifacts("study")} == {export.folder for export in result.exports}
    assert evaluations(job.workspace) == evaluations(fitted.workspace)


def test_a_search_stopped_in_the_middle_proposes_what_it_would_have(fitted: ToyJob, tmp_path: Path) -> None:
    opened = open_supernet(fitted.workspace.supernet)
    request = fitted.fit_request(study_name="study").search
    with StudyStore.open(fitted.workspace.storage) as whole, StudyStore.open(f"sqlite:///{tmp_path / 'n.db'}") as store:
        for device in whole.devices():
            store.put_measurements(whole.measurements(device))

        def stop(progress: object) -> None:
            if len(store.evaluations("study")) == 7:
                raise Stopped

        with pytest.raises(Stopped):
            search_supernet(request, opened, store, on_measured=never, on_progress=stop)
        search_supernet(request, opened, store, on_measured=None)
        trace = [evaluation.genotype for evaluation in store.evaluations("study")]
    assert trace == [evaluation.genotype for evaluation in evaluations(fitted.workspace)]


@pytest.mark.parametrize("objectives", [("error", "latency"), ("error", "macs")])
def test_the_best_on_a_sample_are_judged_on_all_examples(
    fitted: ToyJob, tmp_path: Path, objectives: tuple[str, ...]
) -> None:
    opened = open_supernet(fitted.workspace.supernet)
    asked = fitted.fit_request(algorithm="random", objectives=objectives).search
    request = replace(asked, evaluation_examples=5, finalists=2)
    share = 5 / opened.task.size("validation")
    with StudyStore.open(fitted.workspace.storage) as whole, StudyStore.open(f"sqlite:///{tmp_path / 'n.db'}") as store:
        for device in whole.devices():
            store.put_measurements(whole.measurements(device))
        fronts = [search_supernet(request, opened, store) for _ in range(2)]
        grown = search_supernet(replace(request, search=replace(request.search, budget=14)), opened, store)
        evaluations = store.evaluations("study")
        predictions = store.predictions("study")
    assert fronts[0] == fronts[1]
    for front in (*fronts, grown):
        assert len(front) >= 1
        assert {front.value(e, front.objectives[0]).data_fraction for e in front.evaluations} == {1.0}
    qualities = [[v.data_fraction for v in e.values if v.objective == "error"] for e in evaluations]
    assert all(fractions in ([share], [share, 1.0]) for fractions in qualities)
    assert 2 <= qualities.count([share, 1.0]) <= len(qualities) - 2, "finalists, and the full network"
    assert compared_share(evaluations) == share
    assert {one.value.provenance for one in predictions} == {"predicted"}


def test_a_job_for_another_machine_waits_for_it(fitted: ToyJob, tmp_path: Path) -> None:
    opened = open_supernet(fitted.workspace.supernet)
    request = fitted.fit_request().search
    with StudyStore.open(fitted.workspace.storage) as whole, StudyStore.open(f"sqlite:///{tmp_path / 'n.db'}") as store:
        (device,) = whole.devices()
        elsewhere = replace(request, target="cpu-elsewhere")
        with pytest.raises(ValueError, match="were not measured on cpu-elsewhere"):
            search_supernet(elsewhere, opened, store)
        store.put_measurements([replace(one, device="cpu-elsewhere") for one in whole.measurements(device)])
        front = search_supernet(elsewhere, opened, store, on_measured=never)
        latencies = [front.value(evaluation, front.objectives[1]) for evaluation in front.evaluations]
    assert {(value.provenance, value.device) for value in latencies} == {("predicted", "cpu-elsewhere")}


@pytest.mark.parametrize("network", ["teacher", "supernet"])
def test_training_stopped_in_the_middle_ends_with_the_same_weights(
    fitted: ToyJob, tmp_path: Path, network: str
) -> None:
    workspace = Workspace(tmp_path / "work")
    request = fitted.request(tuning={"save_seconds": 0.0})

    def stop(name: str, progress: TuneProgress) -> None:
        if name == network and progress.step == STEPS // 2:
            raise Stopped

    with pytest.raises(Stopped):
        tune_supernet(request, workspace, stop)
    assert not workspace.supernet.exists()
    if network == "supernet":
        with pytest.raises(ValueError, match=r"supernet\.safetensors was made with another teacher"):
            tune_supernet(replace(request, teacher=str(workspace.teacher)), workspace)
    steps: list[tuple[str, int]] = []
    tune_supernet(request, workspace, lambda name, p: steps.append((name, p.step)), on_estimate=never)
    assert (network, 1) not in steps
    found, expected = (read_supernet_record(w.supernet) for w in (workspace, fitted.workspace))
    assert found["hash"] == expected["hash"]


def test_a_kill_after_training_leaves_no_state(fitted: ToyJob, tmp_path: Path) -> None:
    job = copied(fitted, tmp_path)
    state = job.workspace.training_state("supernet")
    state.touch()
    tune_supernet(fitted.request(), job.workspace, never)
    assert not state.exists()


def test_another_request_is_refused(fitted: ToyJob) -> None:
    request = fitted.request(tuning={"seed": 1})
    with pytest.raises(ValueError, match="was made with another tuning; use the same settings, or another --output"):
        tune_supernet(request, fitted.workspace)


def test_a_teacher_of_another_request_is_refused(fitted: ToyJob, tmp_path: Path) -> None:
    """Also before there is a supernet that could tell; the same request goes on with it."""
    job = copied(fitted, tmp_path)
    shutil.rmtree(job.workspace.supernet)
    request = fitted.request()
    slower = replace(request, tuning=replace(request.tuning, learning_rate=1e-5))
    with pytest.raises(ValueError, match="was fine-tuned with other settings; use the same, or another output folder"):
        tune_supernet(slower, job.workspace)
    assert json.loads(job.workspace.plan.read_text())["request"] == request.to_json(), "nor does it change the plan"
    before = files(job.workspace.teacher)
    tune_supernet(request, job.workspace)
    assert files(job.workspace.teacher) == before
    assert job.workspace.supernet.exists()


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"latency": 1e-6}, r"no sub-network can meet latency 1e-06 ms; the smallest measured is [\d.e-]+ ms"),
        ({"memory": 1e-6}, "no sub-network can meet memory 1e-06 MiB; the smallest"),
        ({"parameters": 10.0}, "no sub-network can meet parameters 10 parameters; the smallest"),
    ],
)
def test_impossible_limits_are_found_before_training(
    fitted: ToyJob, tmp_path: Path, limits: dict[str, float], message: str
) -> None:
    request = fitted.fit_request(tmp_path / "work", limits=limits)
    with pytest.raises(LimitError, match=message):
        fit(request, Listener(on_tuned=never, on_estimate=never))
    assert not (tmp_path / "work" / "supernet").exists()
    assert not (tmp_path / "work" / "teacher").exists()


def test_a_time_budget_decides_the_steps_once(fitted: ToyJob, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    request = replace(fitted.request(), duration=Duration(seconds=5.0), tuning=fitted.request().tuning)
    told: list[int] = []

    def stop(name: str, progress: TuneProgress) -> None:
        raise Stopped

    for _ in range(2):
        with pytest.raises(Stopped):
            tune_supernet(request, workspace, stop, on_estimate=lambda estimate: told.append(estimate.steps))
        plan = workspace.plan.read_text()
    assert f'"steps": {told[0]}' in plan
    assert told == [told[0]] * 2
    too_short = replace(request, duration=Duration(seconds=1e-9))
    with pytest.raises(ValueError, match="too short: one step takes"):
        tune_supernet(too_short, Workspace(tmp_path / "other"))


@pytest.mark.parametrize(
    "given",
    [{}, {"epochs": 1.0, "seconds": 1.0}, {"epochs": 1.0, "passes": 1.0}, {"epochs": 0.0}, {"seconds": float("nan")}],
)
def test_a_duration_is_one_positive_number(given: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="a positive number of epochs, seconds or passes"):
        Duration(**given)


def test_equal_passes_are_equal_work_on_every_machine(fitted: ToyJob) -> None:
    """A recipe with cheaper steps takes more of them."""

    def steps(name: str) -> int:
        request = fitted.request(tuning={"recipe": load_recipe(name)}, duration=Duration(passes=64))
        return check(request).estimate.steps

    counted = {name: steps(name) for name in ("single-path", "sandwich", "sandwich-distilled")}
    assert counted["single-path"] > 64 > counted["sandwich"] == counted["sandwich-distilled"] > 64 / 3


def test_check_tells_what_tuning_would_do(fitted: ToyJob) -> None:
    found = check(replace(fitted.request(), duration=Duration(epochs=2)))
    assert found.labels == ("no", "yes")
    assert (found.has_head, found.teacher, found.trains_teacher) == (False, None, True)
    assert found.summary.splits["train"].examples == 48
    assert found.estimate.steps == 2 * 48 // 8
    assert found.space.networks == open_supernet(fitted.workspace.supernet).supernet.space.size
    alone = check(fitted.request(tuning={"recipe": Recipe(gamma=0.0)}))
    assert not alone.trains_teacher
    assert alone.estimate.memory_bytes == found.estimate.memory_bytes


def test_a_head_teaches_unlabelled_text(tmp_path: Path) -> None:
    job = ToyJob(tmp_path)
    write_checkpoint(job.model, head=True, id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1})
    write_data(job.data)
    task = TaskSettings(kind="text-classification", data=str(job.data), label=None)
    folder = tune_supernet(job.request(task=task), job.workspace)
    record = read_supernet_record(folder)
    assert record["teacher"] == str(job.model)
    assert not job.workspace.teacher.exists()
    assert record["validation"]["teacher"]["accuracy"] == 1.0, "it agrees with itself"
    assert open_supernet(folder).task.summary().splits["validation"].unlabelled == 0


def test_inputs_are_cut_to_what_the_model_takes(tmp_path: Path) -> None:
    job = ToyJob(tmp_path)
    write_checkpoint(job.model, max_position_embeddings=6)
    write_data(job.data)
    summary = prepare(job.request()).task.summary().splits["train"]
    assert summary.max_tokens == 6
    assert summary.truncated_share > 0.2
    longer = replace(job.request().task, max_length=7)
    with pytest.raises(ValueError, match="takes inputs of at most 6 tokens, got a maximum of 7"):
        prepare(job.request(task=longer))


def test_any_checkpoint_can_be_judged(fitted: ToyJob, tmp_path: Path) -> None:
    task = TaskSettings(kind="text-classification", data=str(fitted.data))
    exports = sorted((fitted.workspace.root / "exports").iterdir())
    for checkpoint in (fitted.workspace.teacher, *exports):
        found = judge(JudgeRequest(checkpoint=str(checkpoint), task=task, sequences=(8,), timing=QUICK))
        assert found.split == "test"
        assert found.quality.examples == 6
        assert found.latency.seconds > 0
    free = next(folder for folder in exports if provenance(folder)["layout"] == "free")
    changed = tmp_path / "changed"
    shutil.copytree(free, changed)
    (module,) = changed.glob("*.py")
    module.write_text(module.read_text() + "\n# more\n")
    request = JudgeRequest(checkpoint=str(changed), task=task, sequences=(8,), timing=QUICK)
    with pytest.raises(ValueError, match="code that this version did not write; read it, then pass"):
        judge(request)
    expected = judge(replace(request, checkpoint=str(free)))
    assert judge(replace(request, trust_remote_code=True)).quality == expected.quality
    with pytest.raises(ValueError, match="has no classification head to judge"):
        judge(replace(request, checkpoint=str(fitted.model)))
