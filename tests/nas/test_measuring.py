"""Which networks correct a latency table, and how well they are timed."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from kernels.op_spec import Context
from kernels.timing import TimingSettings
from nas.end_to_end import network_specs
from nas.measuring import CALIBRATION_NETWORKS, calibration_genotypes, calibration_networks, latency_table
from nas.repeating import repeatability
from studies.records import Genotype
from studies.store import StudyStore
from supernets.space import FFN_WIDTH, Choice, SearchSpace
from tests.toy_device import CallCounter
from tests.toy_families import toy_family_supernet
from tests.toy_search import toy_space


@given(st.integers(1, 5), st.integers(1, 4))
def test_a_few_distinct_networks_from_cheap_to_costly(layers: int, options: int) -> None:
    steps = tuple(range(1, options + 1))
    choices = tuple(Choice(axis=FFN_WIDTH, layer=layer, options=steps) for layer in range(layers))
    space = SearchSpace("toy", layers, tuple(range(layers)), choices)
    chosen = calibration_genotypes(space, sum)
    assert chosen == calibration_genotypes(space, sum)
    assert 1 <= len(set(chosen)) == len(chosen) <= CALIBRATION_NETWORKS
    assert len(chosen) == CALIBRATION_NETWORKS or options**layers < 2 * CALIBRATION_NETWORKS
    assert [sum(genotype) for genotype in chosen] == sorted(map(sum, chosen))


def test_the_cheapest_and_the_most_costly_drawn_are_among_them() -> None:
    asked = list[float]()

    def cost(genotype: Genotype) -> float:
        asked.append(sum(genotype))
        return asked[-1]

    chosen = calibration_genotypes(toy_space(), cost)
    assert len(asked) > 2 * CALIBRATION_NETWORKS
    assert (sum(chosen[0]), sum(chosen[-1])) == (min(asked), max(asked))


def test_networks_are_ordered_by_multiply_accumulates() -> None:
    supernet, context = toy_family_supernet("bert"), Context(batch=2, sequences=(8,))
    costs = [supernet.count_macs(architecture, context) for architecture in calibration_networks(supernet, context)]
    assert len(set(costs)) > 2
    assert costs == sorted(costs)


def test_calibration_networks_get_every_sample_and_operations_as_few_as_suffice(tmp_path: Path) -> None:
    supernet, context, backend = toy_family_supernet("bert"), Context(batch=2, sequences=(8,)), CallCounter()
    settings = TimingSettings(min_rounds=2, max_rounds=7)
    networks = {network_specs(supernet, a, context)[0].key for a in calibration_networks(supernet, context)}
    with StudyStore.open(f"sqlite:///{tmp_path}/s.db") as store:
        latency_table(supernet, [context], store, backend, settings=settings)
        rows = {row.op_key: row.repeats for row in store.measurements(backend.detect().fingerprint)}
        assert {rows[key] for key in networks} == {7}
        assert {repeats for key, repeats in rows.items() if key not in networks} == {2}
        compared = repeatability(supernet, context, store, backend, settings=settings)
    assert {latency.repeats for latency in compared.stored} == {7}
    assert {latency.repeats for latency in compared.again} == {2}


def test_the_first_of_two_passes_is_thorough_where_the_store_lacks_it(tmp_path: Path) -> None:
    supernet, context = toy_family_supernet("bert"), Context(batch=2, sequences=(8,))
    with StudyStore.open(f"sqlite:///{tmp_path}/s.db") as store:
        settings = TimingSettings(min_rounds=2, max_rounds=7)
        compared = repeatability(supernet, context, store, CallCounter(), settings=settings)
    assert {latency.repeats for latency in compared.stored} == {7}
    assert {latency.repeats for latency in compared.again} == {2}
