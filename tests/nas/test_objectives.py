"""Each objective against what it should have computed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernels.op_spec import Context
from nas.objective import EvaluationFailed, bind, context_from, parse_objective
from supernets.evaluation import evaluate
from tests.toy_bindings import CONTEXT, DEVICE, tiny_bindings


def test_an_objective_text_is_split_into_name_and_settings() -> None:
    assert parse_objective("error") == ("error", {})
    assert parse_objective(" latency:batch=8, sequence=64 ") == ("latency", {"batch": "8", "sequence": "64"})


@pytest.mark.parametrize("text", ["latency:batch", "latency:=3", "latency:batch=", "latency:batch=1,batch=2"])
def test_a_malformed_objective_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="name:setting=value"):
        parse_objective(text)


def test_settings_change_the_context() -> None:
    changed = context_from("latency", {"batch": "8", "sequence": "16+64", "dtype": "bfloat16"}, CONTEXT)
    assert changed == Context(batch=8, sequences=(16, 64), threads=CONTEXT.threads, dtype="bfloat16")
    assert context_from("latency", {}, CONTEXT) == CONTEXT
    with pytest.raises(ValueError, match="whole numbers"):
        context_from("latency", {"batch": "eight"}, CONTEXT)


def test_an_unknown_objective_names_the_known_ones_and_the_folder() -> None:
    with pytest.raises(ValueError, match=r"unknown objective 'speed'.*error, latency.*nas/objectives/"):
        bind("speed", tiny_bindings())


def test_error_is_that_of_the_extracted_network() -> None:
    bindings = tiny_bindings()
    supernet, objective = bindings.supernet, bind("error", bindings)
    genotype = supernet.space.middle
    value = objective.evaluate(genotype)
    network = supernet.extract(supernet.space.decode(genotype))
    assert value.number == evaluate(network, bindings.task, "validation").error
    assert (value.provenance, value.n, value.data_fraction) == ("supernet", bindings.task.size("validation"), 1.0)
    assert (value.weights_hash, value.data_hash) == (supernet.hash, bindings.task.data_hash("validation"))


def test_error_leaves_dropout_off_and_the_supernet_as_it_was() -> None:
    bindings = tiny_bindings()
    bindings.supernet.model.train()
    objective = bind("error", bindings)
    genotype = bindings.supernet.space.smallest
    assert objective.evaluate(genotype) == objective.evaluate(genotype)
    assert bindings.supernet.seam.architecture is None


def test_error_on_a_sample_says_so_and_is_not_reused() -> None:
    first, second = (bind("error", tiny_bindings(examples=8, seed=seed)) for seed in (1, 1))
    genotype = tiny_bindings().supernet.space.largest
    value = first.evaluate(genotype)
    assert value == second.evaluate(genotype)
    assert (value.n, value.data_fraction, value.seed) == (8, 0.25, 1)
    assert first.reuse is None
    with pytest.raises(ValueError, match="at least 1 example"):
        bind("error", tiny_bindings(examples=0))


def test_an_error_says_how_noisy_it_can_be() -> None:
    whole, sample = (bind("error", tiny_bindings(examples=examples)) for examples in (None, 8))
    assert (whole.noise, sample.noise) == pytest.approx((0.5 / 32**0.5, 0.5 / 8**0.5))
    spread = sample.evaluate(tiny_bindings().supernet.space.middle).spread
    assert spread is not None
    assert 0 <= spread <= sample.noise
    assert bind("macs", tiny_bindings()).noise == 0.0


def test_outputs_that_are_not_finite_are_a_failure() -> None:
    bindings = tiny_bindings()
    torch.nn.init.constant_(next(bindings.supernet.model.parameters()), float("nan"))
    objective = bind("error", bindings)
    with pytest.raises(EvaluationFailed, match="not finite"):
        objective.evaluate(bindings.supernet.space.largest)


def test_latency_is_the_tables_prediction_with_its_error() -> None:
    bindings = tiny_bindings()
    assert bindings.table is not None
    space, supernet = bindings.supernet.space, bindings.supernet
    value = bind("latency", bindings).evaluate(space.largest)
    seconds = bindings.table.predict(supernet.ops(space.decode(space.largest), CONTEXT), CONTEXT).seconds
    assert value.number == pytest.approx(1e3 * seconds)
    assert value.spread == pytest.approx(0.03 * value.number)
    assert (value.provenance, value.device, value.context) == ("predicted", DEVICE, CONTEXT.key)


def test_latency_of_its_own_context_is_another_objective() -> None:
    bound = bind("latency:sequence=16,batch=8", tiny_bindings())
    value = bound.evaluate(tiny_bindings().supernet.space.largest)
    assert bound.objective.key == value.objective == "latency:batch=8,sequence=16"
    assert value.context == Context(batch=8, sequences=(16,)).key


def test_latency_without_a_table_names_the_command() -> None:
    with pytest.raises(ValueError, match="nas measure"):
        bind("latency", replace(tiny_bindings(), table=None))


def test_counts_are_those_of_the_supernet() -> None:
    bindings = tiny_bindings()
    supernet, genotype = bindings.supernet, bindings.supernet.space.middle
    architecture = supernet.space.decode(genotype)
    network = supernet.extract(architecture)
    assert bind("parameters", bindings).evaluate(genotype).number == sum(p.numel() for p in network.parameters())
    assert bind("macs", bindings).evaluate(genotype).number == supernet.count_macs(architecture, CONTEXT)
    memory = bind("memory", bindings).evaluate(genotype).number
    assert memory * 2**20 == pytest.approx(supernet.memory_bytes(architecture, CONTEXT))
