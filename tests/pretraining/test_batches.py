from typing import Any

import pytest
import torch

from sleep_pipeline.corpora.english import Corpus, English
from sleep_pipeline.pretraining.batches import IGNORED, PackedBatches
from sleep_pipeline.pretraining.settings import PretrainSettings


@pytest.fixture(scope="module")
def batches(tiny_settings: PretrainSettings, tiny_tokenizer: Any) -> PackedBatches:
    settings = tiny_settings.model_copy(update={"batch_tokens": 4096})
    return PackedBatches(settings, tiny_tokenizer, None)


@pytest.mark.slow
def test_a_batch_depends_on_seed_and_number_alone(
    batches: PackedBatches, tiny_settings: PretrainSettings, tiny_tokenizer: Any
) -> None:
    again = PackedBatches(batches.settings, tiny_tokenizer, None)
    batches[0]
    for first, second in zip(batches[3], again[3], strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(batches[3][0]["input_ids"][:1], batches[4][0]["input_ids"][:1])
    other = PackedBatches(batches.settings.model_copy(update={"seed": 1}), tiny_tokenizer, None)
    assert not torch.equal(batches[3][0]["input_ids"][:1], other[3][0]["input_ids"][:1])


def test_rows_are_nearly_full_and_have_the_lengths_asked_for(batches: PackedBatches) -> None:
    total = used = 0
    budget, lengths = batches.settings.batch_tokens, batches.settings.row_lengths
    for index in range(5):
        tokens = sum(rows["input_ids"].numel() for rows in batches[index])
        assert budget - lengths[0] < tokens <= budget
        for rows in batches[index]:
            assert rows["input_ids"].shape[1] in lengths
            used += int((rows["input_ids"] != batches.pad).sum())
        total += tokens
    assert used / total > 0.95


def test_labels_are_the_next_token_of_the_same_conversation(batches: PackedBatches) -> None:
    for rows in batches[1]:
        ids, positions, labels = rows["input_ids"], rows["position_ids"], rows["labels"]
        for row in range(ids.shape[0]):
            for at in range(ids.shape[1] - 1):
                if labels[row, at] != IGNORED:
                    assert labels[row, at] == ids[row, at + 1]
                    assert positions[row, at + 1] == positions[row, at] + 1
        assert (rows["weights"][labels == IGNORED] == 0).all()


def test_answers_weigh_one_and_what_is_only_read_weighs_less(batches: PackedBatches, tiny_tokenizer: Any) -> None:
    mixture = batches.settings.mixture
    assistant, end = (tiny_tokenizer.convert_tokens_to_ids(token) for token in ("<|assistant|>", "<|end|>"))
    seen: set[float] = set()
    for rows in [rows for index in range(3) for rows in batches[index]]:
        for ids, labels, weights in zip(rows["input_ids"], rows["labels"], rows["weights"], strict=True):
            said = running = False
            for token, label, weight in zip(ids.tolist(), labels.tolist(), weights.tolist(), strict=True):
                if token == tiny_tokenizer.bos_token_id:
                    running = True
                elif token == tiny_tokenizer.convert_tokens_to_ids("<|system|>"):
                    running = False
                said = token == assistant or (said and token != end)
                if label != IGNORED:
                    wanted = 1.0 if said else mixture.text_weight if running else mixture.context_weight
                    assert weight == pytest.approx(wanted)
                    seen.add(wanted)
    assert seen == {1.0, mixture.text_weight, mixture.context_weight}


def test_real_text_is_read_where_there_is_some(tiny_settings: PretrainSettings, tiny_tokenizer: Any) -> None:
    text = "The zebra crossed the quiet river. It was late. Nobody saw where it went. " * 40
    english = English([Corpus("zebra.txt", "", (text,))], "train")
    batches = PackedBatches(tiny_settings, tiny_tokenizer, english)
    read = "".join(tiny_tokenizer.decode(row) for at in range(4) for part in batches[at] for row in part["input_ids"])
    assert "zebra" in read


@pytest.mark.parametrize(("weights", "message"), [({"juggling": 1.0}, "juggling"), ({"reading": 0.0}, "above 0")])
def test_a_mixture_of_nothing_is_refused(
    tiny_settings: PretrainSettings, tiny_tokenizer: Any, weights: dict[str, float], message: str
) -> None:
    mixture = tiny_settings.mixture.model_copy(update={"weights": weights})
    with pytest.raises(ValueError, match=message):
        PackedBatches(tiny_settings.model_copy(update={"mixture": mixture}), tiny_tokenizer, None)
