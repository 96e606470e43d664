"""Which networks correct a latency table."""

from hypothesis import given
from hypothesis import strategies as st

from kernels.op_spec import Context
from nas.measuring import CALIBRATION_NETWORKS, calibration_genotypes, calibration_networks
from studies.records import Genotype
from supernets.space import FFN_WIDTH, Choice, SearchSpace
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
