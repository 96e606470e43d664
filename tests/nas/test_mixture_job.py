"""A whole job whose supernet is a mixture: tuned, stopped, resumed, searched and exported like any other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nas.checking import check
from nas.fit import fit
from nas.searching import open_supernet
from nas.tune_request import TuneRequest
from nas.tuning import tune_supernet
from nas.workspace import Workspace
from studies.store import StudyStore
from supernets.checkpoint import load_exported, read_supernet_record
from supernets.finetune import TuneProgress
from supernets.mixture import Mixture, MixtureSettings
from supernets.supernet import SOURCE
from tests.toy_job import ToyJob, make_job, provenance
from tests.toy_task import tiny_inputs

MIXTURE = MixtureSettings(kind="neuron", experts=3, rank=2, modules=("attention", "ffn"), hidden=8)


def mixed_request(job: ToyJob, **changes: Any) -> TuneRequest:
    return job.request(mixture=MIXTURE, **changes)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> ToyJob:
    """A finished job with a mixture."""
    made = make_job(tmp_path_factory.mktemp("mixture"))
    fit(replace(made.fit_request(budget=4), tune=mixed_request(made), recovery_steps=0))
    return made


def test_the_job_searches_and_exports_plain_checkpoints(job: ToyJob) -> None:
    opened = open_supernet(job.workspace.supernet)
    assert isinstance(opened.supernet.trained_source, Mixture)
    assert opened.supernet.trained_source.settings == MIXTURE
    exports = sorted((job.workspace.root / "exports").iterdir())
    assert exports
    for folder in exports:
        network, said = load_exported(folder), provenance(folder)
        assert not [name for name in network.state_dict() if SOURCE in name]
        architecture = opened.supernet.space.decode(said["genotype"])
        assert opened.supernet.count_parameters(architecture) == sum(p.numel() for p in network.parameters())
        with torch.no_grad(), opened.supernet.active(architecture):
            assert torch.equal(network(**tiny_inputs()).logits, opened.supernet(**tiny_inputs()).logits)
    with StudyStore.open(job.workspace.storage) as store:
        assert store.study("study").supernet_hash == opened.supernet.hash


def test_a_finished_mixture_is_not_tuned_again_and_another_one_is_refused(job: ToyJob) -> None:
    before = read_supernet_record(job.workspace.supernet)["hash"]
    tune_supernet(mixed_request(job), job.workspace)
    assert read_supernet_record(job.workspace.supernet)["hash"] == before
    with pytest.raises(ValueError, match="was made with another mixture"):
        tune_supernet(job.request(), job.workspace)


class StoppedError(Exception):
    """Stands for a kill."""


def test_tuning_stopped_in_the_middle_ends_with_the_same_weights(job: ToyJob, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "work")

    def stop(name: str, progress: TuneProgress) -> None:
        if name == "supernet" and progress.step == 4:
            raise StoppedError

    request = mixed_request(job, tuning={"save_seconds": 0.0})
    with pytest.raises(StoppedError):
        tune_supernet(request, workspace, stop)
    tune_supernet(request, workspace)
    found, expected = (read_supernet_record(folder)["hash"] for folder in (workspace.supernet, job.workspace.supernet))
    assert found == expected


def test_a_mixture_is_no_model_to_tune(job: ToyJob, tmp_path: Path) -> None:
    request = replace(mixed_request(job), model=str(job.workspace.supernet))
    with pytest.raises(ValueError, match="is a mixture of supernets"):
        tune_supernet(request, Workspace(tmp_path / "work"))
    assert not (tmp_path / "work").exists()


def test_check_states_what_a_mixture_adds(job: ToyJob) -> None:
    plain, mixed = check(job.request()), check(mixed_request(job))
    assert plain.mixture_parameters is None
    assert mixed.mixture_parameters is not None
    assert mixed.estimate.memory_bytes - plain.estimate.memory_bytes >= 16 * mixed.mixture_parameters
    assert mixed.space == plain.space
