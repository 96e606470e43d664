"""Checkpoints: what is refused, what survives, and that nothing unverified or half-written is left behind."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from studies.errors import ResourceError, VerificationError
from supernets import checkpoint
from supernets.checkpoint import (
    PROVENANCE_FILE,
    SUPERNET_FILE,
    head_labels,
    load_classifier,
    load_supernet,
    load_tokenizer,
    read_supernet_record,
    save_supernet,
    write_network,
)
from supernets.family import Layout
from supernets.space import FFN_WIDTH, HEADS, Architecture, LayerChoice
from supernets.supernet import Supernet
from tests.toy_task import tiny_inputs, tiny_supernet, tiny_tokenizer

LABELS = ("absent", "present")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def pretrained(tmp_path: Path, tokenizer: Any) -> Path:
    """A checkpoint without a head, as pre-training leaves it."""
    folder = tmp_path / "pretrained"
    model: Any = tiny_supernet().unwrap()
    model.bert.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def fine_tuned(tmp_path: Path, tokenizer: Any) -> Path:
    """A checkpoint with a head and class names."""
    folder = tmp_path / "fine_tuned"
    model: Any = tiny_supernet(id2label=dict(enumerate(LABELS))).unwrap()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def supernet_folder(tmp_path: Path, tokenizer: Any) -> Path:
    supernet = tiny_supernet(id2label=dict(enumerate(LABELS)))
    supernet.space = supernet.space.reordered((2, 0, 1))
    save_supernet(supernet, tmp_path / "supernet", tokenizer, {"task": {"kind": "toy"}})
    return tmp_path / "supernet"


def change_weights(folder: Path, change: Any) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


# -- loading --------------------------------------------------------------------------------------------------------


def test_a_head_that_exists_is_kept(fine_tuned: Path) -> None:
    loaded = load_classifier(str(fine_tuned), LABELS)
    assert loaded.labels == LABELS == head_labels(str(fine_tuned))
    expected = tiny_supernet().model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.model.state_dict().items())
    assert not loaded.model.training


def test_a_new_head_is_a_function_of_the_seed(pretrained: Path) -> None:
    assert head_labels(str(pretrained)) is None
    heads = [load_classifier(str(pretrained), ("a", "b", "c"), seed) for seed in (0, 0, 1)]
    weights = [loaded.model.get_parameter("classifier.weight") for loaded in heads]
    assert heads[0].labels is None
    assert weights[0].shape == (3, 32)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    config: Any = heads[0].model.config
    assert config.id2label == {0: "a", 1: "b", 2: "c"}


def test_a_head_for_other_classes_is_refused(fine_tuned: Path) -> None:
    with pytest.raises(ValueError, match=r"has a head for 2 classes .* but the task has 3"):
        load_classifier(str(fine_tuned), ("a", "b", "c"))


def test_a_missing_folder_and_one_without_checkpoint_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no checkpoint folder at"):
        load_classifier(str(tmp_path / "nowhere"), LABELS)
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        load_tokenizer(str(tmp_path))


def test_a_broken_configuration_is_refused(fine_tuned: Path) -> None:
    (fine_tuned / "config.json").write_text("{")
    with pytest.raises(ValueError, match="cannot read the configuration of"):
        head_labels(str(fine_tuned))


def test_an_unsupported_model_type_is_refused_before_weights_are_read(fine_tuned: Path) -> None:
    config = json.loads((fine_tuned / "config.json").read_text())
    (fine_tuned / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    (fine_tuned / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="model type 'gpt2' is not supported; supported are bert"):
        load_classifier(str(fine_tuned), LABELS)


def test_truncated_weights_are_refused(fine_tuned: Path) -> None:
    path = fine_tuned / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cannot load the weights of") as caught:
        load_classifier(str(fine_tuned), LABELS)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_safetensors_are_refused(fine_tuned: Path) -> None:
    state = load_file(fine_tuned / "model.safetensors")
    (fine_tuned / "model.safetensors").unlink()
    torch.save(state, fine_tuned / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot load the weights of"):
        load_classifier(str(fine_tuned), LABELS)


@pytest.mark.parametrize("name", ["bert.encoder.layer.1.output.dense.weight", "bert.embeddings.word_embeddings.weight"])
def test_missing_weights_are_named(fine_tuned: Path, name: str) -> None:
    change_weights(fine_tuned, lambda tensors: tensors.pop(name))
    with pytest.raises(ValueError, match=f"lacks 1 weights, such as {name}"):
        load_classifier(str(fine_tuned), LABELS)


def test_missing_weights_of_a_checkpoint_without_head_are_named(pretrained: Path) -> None:
    change_weights(pretrained, lambda tensors: tensors.pop("embeddings.word_embeddings.weight"))
    with pytest.raises(ValueError, match=r"lacks 1 weights, such as bert\.embeddings\.word_embeddings\.weight"):
        load_classifier(str(pretrained), LABELS)


# -- supernets ------------------------------------------------------------------------------------------------------


def test_a_supernet_survives_saving(supernet_folder: Path) -> None:
    supernet, tokenizer, record = load_supernet(supernet_folder)
    original = tiny_supernet()
    original.space = original.space.reordered((2, 0, 1))
    assert supernet.hash == original.hash == record["hash"]
    assert supernet.space == original.space
    assert record["task"] == {"kind": "toy"}
    assert tokenizer.vocab_size == 100
    assert not supernet.model.training
    architecture = supernet.space.decode(supernet.space.smallest)
    with supernet.active(architecture), original.active(architecture), torch.no_grad():
        assert torch.equal(supernet(**tiny_inputs()).logits, original(**tiny_inputs()).logits)


def test_tampered_weights_are_refused(supernet_folder: Path) -> None:
    change_weights(supernet_folder, lambda tensors: tensors["classifier.bias"].add_(1))
    with pytest.raises(ValueError, match="are not the ones its record describes"):
        load_supernet(supernet_folder)


def test_a_folder_that_is_no_supernet_is_refused(fine_tuned: Path) -> None:
    with pytest.raises(ValueError, match=r"is not a supernet: it holds no supernet\.json"):
        load_supernet(fine_tuned)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"space": {}, "hash": ""}'])
def test_a_broken_record_is_refused(supernet_folder: Path, content: str) -> None:
    (supernet_folder / SUPERNET_FILE).write_text(content)
    with pytest.raises(ValueError, match=r"make the supernet again|not a search space"):
        load_supernet(supernet_folder)


def test_the_record_is_read_without_weights(supernet_folder: Path) -> None:
    (supernet_folder / "model.safetensors").unlink()
    assert read_supernet_record(supernet_folder)["space"]["family"] == "bert"


# -- exports --------------------------------------------------------------------------------------------------------


def architecture_of(layout: Layout) -> Architecture:
    sizes = [(32, 4), (32, 4)] if layout == "uniform" else [(16, 1), (48, 3)]
    return Architecture(
        tuple(LayerChoice(index=2 * i, units=((FFN_WIDTH, w), (HEADS, h))) for i, (w, h) in enumerate(sizes))
    )


def export(supernet: Supernet, network: nn.Module, folder: Path, tokenizer: Any, layout: Layout) -> None:
    write_network(
        network,
        folder,
        tokenizer,
        family=supernet.family,
        layout=layout,
        card="# card\n",
        provenance={"seed": 1},
        check_inputs=tiny_inputs(),
    )


@pytest.mark.parametrize("layout", ["free", "uniform"])
def test_an_export_is_verified_in_a_fresh_process(layout: Layout, tmp_path: Path, tokenizer: Any) -> None:
    supernet = tiny_supernet(id2label=dict(enumerate(LABELS)))
    network = supernet.extract(architecture_of(layout), layout)
    folder = tmp_path / "new" / "export"
    export(supernet, network, folder, tokenizer, layout)
    files = {path.name for path in folder.iterdir()}
    assert files >= {"config.json", "model.safetensors", "tokenizer_config.json", "README.md", PROVENANCE_FILE}
    assert ("modeling_supernas_bert.py" in files) == (layout == "free")
    assert [path.name for path in folder.parent.iterdir()] == ["export"]
    assert json.loads((folder / PROVENANCE_FILE).read_text()) == {"seed": 1, "layout": layout}
    config = json.loads((folder / "config.json").read_text())
    assert ("auto_map" in config) == (layout == "free")
    assert config["id2label"] == {"0": "absent", "1": "present"}
    assert head_labels(str(folder)) == LABELS


def test_an_export_that_computes_something_else_leaves_nothing(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights on disk are falsified after they were written."""
    supernet = tiny_supernet()
    network: Any = supernet.extract(architecture_of("uniform"), "uniform")
    stock_save = network.save_pretrained

    def falsified(folder: Path, **options: Any) -> None:
        stock_save(folder, **options)
        change_weights(Path(folder), lambda tensors: tensors["classifier.bias"].add_(1e-3))

    monkeypatch.setattr(network, "save_pretrained", falsified)
    with pytest.raises(VerificationError, match="does not reproduce the sub-network: its logits differ by up to 1"):
        export(supernet, network, tmp_path / "export", tokenizer, "uniform")
    assert not list(tmp_path.iterdir())


def test_an_existing_output_is_refused_and_kept(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "precious").write_text("x")
    supernet = tiny_supernet()
    with pytest.raises(ValueError, match="already exists: choose another output or remove it"):
        export(supernet, supernet.extract(architecture_of("free")), tmp_path / "export", tokenizer, "free")
    assert (tmp_path / "export" / "precious").read_text() == "x"


def test_a_full_disk_leaves_nothing(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    supernet = tiny_supernet()
    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(ResourceError, match=r"the disk holding .* is full; nothing was written"):
        save_supernet(supernet, tmp_path / "supernet", tokenizer, {})
    assert not list(tmp_path.iterdir())
