"""Every network of a space at once, against one network at a time."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from nas.searching import open_supernet
from studies.store import StudyStore
from supernets.evaluation import predict_logits, resolve_precision
from supernets.space import FFN_WIDTH, HEADS
from supernets.supernet import Supernet
from tests.benchmarks import minilm_table
from tests.benchmarks.exhaustive import Exhaustive, every_genotype, part_of
from tests.benchmarks.race.tables import read_table, write_table
from tests.toy_job import QUICK, ToyJob
from tests.toy_task import ToyTask, tiny_space, tiny_supernet


def test_every_genotype_is_there_once() -> None:
    for space in (tiny_space(), tiny_space(order=(2, 0, 1)), part_of(tiny_space(), (2, 4), (16, 64))):
        found = every_genotype(space)
        assert len(found) == len(set(found)) == space.size
        assert all(space.canonical(genotype) == genotype for genotype in found)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_shared_layers_predict_what_single_networks_do(order: tuple[int, ...]) -> None:
    supernet = Supernet.wrap(tiny_supernet(initializer_range=0.5).unwrap(), tiny_space(order=order))
    space = part_of(supernet.space, (1, 4), (16, 64))
    genotypes = random.Random(0).sample(every_genotype(space), 40)
    task, tree = ToyTask(), Exhaustive(supernet, space, genotypes)
    assert tree.layers_run < sum(space.depth_of(genotype) for genotype in genotypes)
    shared_NS = np.empty((len(genotypes), task.size("validation")), dtype=int)
    for batch in task.batches("validation", 12):
        shared_NS[:, batch.indices.numpy()] = tree.classes(batch)
    assert 0.1 < shared_NS.mean() < 0.9
    for row_S, genotype in zip(shared_NS, genotypes, strict=True):
        with supernet.active(space.decode(genotype)):
            logits, _ = predict_logits(supernet, task, "validation", batch_size=12)
        assert row_S.tolist() == logits.argmax(-1).tolist()


def test_a_part_offers_only_what_the_whole_does() -> None:
    with pytest.raises(ValueError, match="not every layer offers heads"):
        part_of(tiny_space(), (2, 3), (16,))


def test_a_table_holds_every_network_and_goes_on_where_it_stopped(
    fitted: ToyJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minilm_table, "TIMING", QUICK)
    monkeypatch.setattr(minilm_table, "BATCH", 5)
    opened = open_supernet(fitted.workspace.supernet)
    heads, widths = ({c.axis: c.options for c in opened.supernet.space.choices}[axis] for axis in (HEADS, FFN_WIDTH))
    job = minilm_table.Job.of(opened, tmp_path, heads=heads, widths=widths)
    assert len(job.genotypes) == opened.supernet.space.size == 20
    wrong = job.wrong()
    assert wrong.shape == (20, opened.task.size("validation"))
    assert job.differing(99) == 0.0
    written = {path: path.stat().st_mtime_ns for path in job.folder.glob("batch-*.npy")}
    (lost, *kept) = sorted(written)
    lost.unlink()
    again = minilm_table.Job.of(opened, tmp_path, heads=heads, widths=widths)
    assert again.wrong().tolist() == wrong.tolist()
    assert all(path.stat().st_mtime_ns == written[path] for path in kept)
    with StudyStore.open(f"sqlite:///{tmp_path / 'l.db'}") as store:
        latencies = job.latencies(store)
        measured = latencies.measured_N
        assert job.latencies(store).measured_N.tolist() == measured.tolist()
    assert (measured > 0).all()
    assert (latencies.composed_N > 0).all()
    shapes = [minilm_table.shape_of(job.space.decode(genotype)) for genotype in job.genotypes]
    assert latencies.shapes == len(set(shapes)) == len(set(measured.tolist())) < len(shapes)
    table = job.table(wrong, measured)
    write_table(tmp_path / "t.npz", table)
    assert read_table(tmp_path / "t.npz", "minilm").hash == table.hash
    for genotype, row in table.rows.items():
        with opened.supernet.active(opened.supernet.space.decode(genotype)):
            logits, labels = predict_logits(
                opened.supernet, opened.task, "validation", batch_size=5, precision=resolve_precision("auto", "cpu")
            )
        errs = (logits.argmax(-1) != labels).numpy()[job.positions]
        assert table.columns[0].seen[row] == errs[: job.half].mean()
        assert table.columns[0].scored[row] == errs[job.half :].mean()
