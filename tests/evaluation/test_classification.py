import random
from typing import Any

import pytest
import torch

from sleep_pipeline.corpora.puzzles import classification
from sleep_pipeline.evaluation.classification import (
    Choice,
    PromptForm,
    best_labels,
    free_labels,
    label_log_probs,
    matched,
)
from sleep_pipeline.evaluation.tasks import Example
from sleep_pipeline.generation.likelihood import reply_log_probs

LABELS = ["card", "card arrival", "top up by bank transfer charge", "pin", "refund not showing up", "zoo"]
TEXTS = ["where is my card", "pay", "how long does a refund take when i am abroad", "animals", "my pin"]


def prompts() -> list[list[dict[str, str]]]:
    form = PromptForm()
    shown = [Example("card is late", "card arrival"), Example("lions", "zoo")]
    return [form.conversation(text, shown[: number % 3]) for number, text in enumerate(TEXTS)]


@pytest.fixture
def opinionated(tiny_model: Any) -> Any:
    """A random model whose distributions are far from uniform."""
    with torch.no_grad():
        tiny_model.get_input_embeddings().weight.mul_(20)
    return tiny_model


def row_by_row(model: Any, tokenizer: Any, normalise: bool) -> torch.Tensor:
    """Every label after every prompt, each read alone from its first token."""
    rows = []
    for prompt in prompts():
        conversations = [[*prompt, {"role": "assistant", "content": label}] for label in LABELS]
        values = [reply_log_probs(model, tokenizer, [one], batch_size=1)[0] for one in conversations]
        rows.append([sum(said) / (len(said) if normalise else 1) for said in values])
    return torch.tensor(rows)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("batch_tokens", [1, 60, 1024])
def test_labels_after_a_shared_prompt_score_as_they_do_alone(
    opinionated: Any, tiny_tokenizer: Any, normalise: bool, batch_tokens: int
) -> None:
    found = label_log_probs(opinionated, tiny_tokenizer, prompts(), LABELS, normalise, batch_tokens)
    torch.testing.assert_close(found, row_by_row(opinionated, tiny_tokenizer, normalise), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("normalise", [False, True])
def test_the_best_label_is_the_argmax_over_all(opinionated: Any, tiny_tokenizer: Any, normalise: bool) -> None:
    labels = LABELS + [f"class {n}" for n in range(40)]
    scores = label_log_probs(opinionated, tiny_tokenizer, prompts(), labels, normalise)
    chosen = best_labels(opinionated, tiny_tokenizer, prompts(), labels, normalise=normalise, batch_tokens=60)
    assert [choice.label for choice in chosen] == [labels[place] for place in scores.argmax(-1).tolist()]
    assert [choice.score for choice in chosen] == pytest.approx(scores.max(-1).values.tolist(), abs=1e-4)


def test_normalising_changes_the_order_of_labels(opinionated: Any, tiny_tokenizer: Any) -> None:
    sums, means = (label_log_probs(opinionated, tiny_tokenizer, prompts(), LABELS, n) for n in (False, True))
    assert sums.argsort(-1).tolist() != means.argsort(-1).tolist()


def test_most_labels_are_never_scored_when_the_first_token_tells(
    opinionated: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sleep_pipeline.evaluation import classification as module

    scored: list[Any] = []

    def certain(model: Any, read: Any, wanted: Any, replies: Any, tokens: int) -> list[float]:
        scored.extend(wanted)
        return [float(read.first_BV[row, replies[label][0]]) for row, label in wanted]

    monkeypatch.setattr(module, "_continued", certain)
    best_labels(opinionated, tiny_tokenizer, prompts(), ["zoo", "card", "pin", "why", "name", "the", "of"])
    assert len(scored) == len(TEXTS) * module._FIRST_ROUND


def test_only_candidates_are_chosen(opinionated: Any, tiny_tokenizer: Any) -> None:
    candidates = [[1, 3], [0], [5, 4, 2], [2], []]
    scores = label_log_probs(opinionated, tiny_tokenizer, prompts(), LABELS)
    chosen = best_labels(opinionated, tiny_tokenizer, prompts(), LABELS, candidates)
    expected = [max(mine, key=lambda label, row=row: scores[row, label]) for row, mine in enumerate(candidates[:-1])]
    assert [choice.label for choice in chosen] == [*(LABELS[label] for label in expected), ""]


def test_without_labels_there_is_nothing_to_choose(tiny_model: Any, tiny_tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="there is no label to choose from"):
        best_labels(tiny_model, tiny_tokenizer, prompts(), [])


def test_a_prompt_beyond_the_window_is_refused(tiny_model: Any, tiny_tokenizer: Any) -> None:
    long = PromptForm().conversation("word " * 2000)
    with pytest.raises(ValueError, match="do not fit into the model's window of 1024"):
        label_log_probs(tiny_model, tiny_tokenizer, [long], LABELS)


def test_free_generation_counts_only_what_is_a_label(
    tiny_model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies = ["Card arrival.", "card arrivals", "", '"ZOO"', "card"]
    monkeypatch.setattr("sleep_pipeline.evaluation.classification.greedy_replies", lambda *_: replies)
    chosen = free_labels(tiny_model, tiny_tokenizer, prompts(), LABELS)
    assert chosen == [Choice(label, 0.0) for label in ("card arrival", "", "", "zoo", "card")]


def test_free_generation_has_room_for_the_longest_label(
    tiny_model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def reply(model: Any, tokenizer: Any, asked: Any, limit: int, batch_size: int) -> list[str]:
        seen.append(limit)
        return [""] * len(asked)

    monkeypatch.setattr("sleep_pipeline.evaluation.classification.greedy_replies", reply)
    free_labels(tiny_model, tiny_tokenizer, prompts(), LABELS)
    ids = tiny_tokenizer(" " + LABELS[2], add_special_tokens=False)["input_ids"]
    assert seen[0] >= len(ids)


def test_free_generation_asks_the_model(tiny_model: Any, tiny_tokenizer: Any) -> None:
    assert [choice.label for choice in free_labels(tiny_model, tiny_tokenizer, prompts(), LABELS)] == [""] * len(TEXTS)


def test_an_empty_reply_is_no_label() -> None:
    assert matched(" .", LABELS) == ""


def test_the_prompt_has_the_form_of_pretraining() -> None:
    """Some task of the pretraining's skill, written by our form, is that task to the letter."""
    form = PromptForm()
    for seed in range(200):
        example = classification(random.Random(seed), "train", classes=2, shots=2)
        system, query = (turn["content"] for turn in example.prompt)
        pairs = [line.rsplit(" -> ", 1) for line in system.split("\n")]
        if all(len(pair) == 2 for pair in pairs) and query.endswith(" ->"):
            shown = [Example(text, label) for text, label in pairs]
            if form.conversation(query.removesuffix(" ->"), shown) == example.prompt:
                return
    pytest.fail("no task of the classification skill has the form of the prompts")


def test_texts_of_several_lines_become_one() -> None:
    (turn,) = PromptForm().conversation("a\n\n b {c}")
    assert turn == {"role": "user", "content": "a b {c} ->"}
