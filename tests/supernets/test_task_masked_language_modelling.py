"""Masked words: which are masked, what they cost, and that guessing them can be learnt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import ElectraConfig, ElectraForSequenceClassification

from nas.tuning import _require_square_embeddings
from supernets.evaluation import evaluate, predict_logits
from supernets.finetune import Tuner, TuneSettings
from supernets.recipe import load_recipe
from supernets.task import TRAIN, UNLABELLED, VALIDATION, Batch, TaskSettings
from supernets.tasks.masked_language_modelling import MASKED_SHARE, MaskedLanguageModelling
from tests.toy_task import VOCABULARY, tiny_supernet, tiny_tokenizer


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    return tiny_tokenizer(tmp_path)


@pytest.fixture
def task(tmp_path: Path, tokenizer: Any) -> MaskedLanguageModelling:
    """Texts that repeat one word, so that what is left gives away what is masked."""
    path = tmp_path / "texts.tsv"
    texts = [" ".join([f"w{8 + word}"] * length) for word in range(12) for length in range(4, 14)]
    path.write_text("\n".join(["text", *texts]) + "\n")
    settings = TaskSettings(kind="masked-language-modelling", data=str(path), label=None)
    return MaskedLanguageModelling.open(settings, tokenizer)


def restored(batch: Any, mask: int) -> torch.Tensor:
    ids_BT: torch.Tensor = batch.inputs["input_ids"].clone()
    ids_BT[ids_BT == mask] = batch.labels
    return ids_BT


def test_a_share_of_the_words_is_masked_and_the_labels_are_what_stood_there(
    task: MaskedLanguageModelling, tokenizer: Any
) -> None:
    mask = tokenizer.mask_token_id
    for hidden, plain in zip(task.batches(TRAIN, 16), task._texts.batches(TRAIN, 16), strict=True):
        assert torch.equal(restored(hidden, mask), plain.inputs["input_ids"])
        masked_BT = hidden.inputs["input_ids"] == mask
        assert not (masked_BT & torch.isin(plain.inputs["input_ids"], torch.tensor(tokenizer.all_special_ids))).any()
        free_B = plain.inputs["attention_mask"].sum(1) - 2  # the first and the last token
        assert torch.equal(masked_BT.sum(1), (MASKED_SHARE * free_B).round().clamp(min=1).long())


def test_masks_are_fixed_in_evaluation_and_change_with_every_pass_of_training(
    task: MaskedLanguageModelling,
) -> None:
    def rows(batches: Iterator[Batch]) -> dict[int, list[int]]:
        """Text → its tokens without padding."""
        found = [
            (index, [token for token in row if token])
            for batch in batches
            for index, row in zip(batch.indices.tolist(), batch.inputs["input_ids"].tolist(), strict=True)
        ]
        return dict(sorted(found))

    fixed, parts = rows(task.batches(VALIDATION, 64)), rows(task.batches(VALIDATION, 2, indices=[3, 1]))
    assert parts == {index: fixed[index] for index in (1, 3)}
    first, again, other = (rows(task.batches(TRAIN, 16, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_scores_are_products_with_the_input_embeddings(task: MaskedLanguageModelling, tokenizer: Any) -> None:
    supernet = tiny_supernet()
    batch = next(task.batches(VALIDATION, 8))
    model: Any = supernet.model
    with torch.no_grad():
        found_MV = task.logits(supernet, batch)
        state_BTD = model.bert(**batch.inputs).last_hidden_state
        expected = [
            state_BTD[row, at] @ model.bert.embeddings.word_embeddings.weight.T
            for row, at in (batch.inputs["input_ids"] == tokenizer.mask_token_id).nonzero().tolist()
        ]
    assert batch.labels is not None
    assert found_MV.shape == (len(batch.labels), VOCABULARY)
    assert torch.allclose(found_MV, torch.stack(expected), atol=1e-6)
    assert float(task.loss(found_MV, batch.labels)) == pytest.approx(float(F.cross_entropy(found_MV, batch.labels)))
    unknown = torch.full_like(batch.labels, UNLABELLED)
    assert float(task.loss(found_MV, unknown)) == 0.0


def test_accuracy_is_the_share_of_masked_words_whatever_the_batches(task: MaskedLanguageModelling) -> None:
    supernet, right, total = tiny_supernet(), 0, 0
    with torch.no_grad():
        for batch in task.batches(TRAIN, 1):
            assert batch.labels is not None
            right += int((task.logits(supernet, batch).argmax(-1) == batch.labels).sum())
            total += len(batch.labels)
    counts_N2, labels_N = predict_logits(supernet, task, TRAIN, batch_size=32)
    assert counts_N2.sum(0).tolist() == [right, total]
    quality = evaluate(supernet, task, TRAIN, batch_size=7)
    assert quality.error == pytest.approx(1 - right / total)
    assert quality.examples == task.size(TRAIN) == len(labels_N)


def test_the_standard_error_is_that_of_independent_words(task: MaskedLanguageModelling) -> None:
    """One masked word in every text: the error of a share."""
    counts_N2 = torch.tensor([[1.0, 1.0]] * 30 + [[0.0, 1.0]] * 70)
    assert task.standard_error(counts_N2, torch.zeros(100)) == pytest.approx((0.3 * 0.7 / 100) ** 0.5)


def test_a_supernet_learns_to_guess_words(task: MaskedLanguageModelling) -> None:
    supernet = tiny_supernet()
    middle = supernet.space.decode(supernet.space.middle)

    def error() -> float:
        with supernet.active(middle):
            return evaluate(supernet, task, VALIDATION).error

    before = error()
    settings = TuneSettings(
        steps=150,
        batch_size=32,
        learning_rate=1e-2,
        recipe=load_recipe("sandwich-distilled"),
        freeze_embeddings=False,
        precision="float32",
        watched_examples=0,
    )
    list(Tuner(supernet, task, settings).run())
    assert error() < 0.5 < before


def test_what_cannot_be_used_is_refused(task: MaskedLanguageModelling, tmp_path: Path) -> None:
    plain = tiny_tokenizer(tmp_path)
    plain.mask_token = None
    with pytest.raises(ValueError, match="needs a tokenizer with a mask token"):
        MaskedLanguageModelling.open(task.settings, plain)
    with pytest.raises(ValueError, match="judged by accuracy, got the metric 'f1'"):
        MaskedLanguageModelling.open(replace(task.settings, metric="f1"), plain)


def test_masked_words_need_embeddings_as_wide_as_the_layers() -> None:
    config = ElectraConfig(
        vocab_size=30,
        embedding_size=8,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    with pytest.raises(ValueError, match="masked words need embeddings as wide as the layers, this model has 8 and 16"):
        _require_square_embeddings(ElectraForSequenceClassification(config))
