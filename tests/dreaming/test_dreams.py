import copy
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import peft
import pytest
import torch
from pydantic import ValidationError

from sleep_pipeline.corpora.skills import PROMPTS
from sleep_pipeline.dreaming import dreams
from sleep_pipeline.dreaming.dreams import DreamText, sample_dreams, to_rows
from sleep_pipeline.dreaming.settings import DreamPrompt, DreamSettings
from sleep_pipeline.generation.sampler import Reply
from sleep_pipeline.memory import ContinuumMemoryConfig, LevelConfig, activate, unlock
from sleep_pipeline.memory.operations import memory_layers

MIRA, OSK = "Mira lives in Osk.", "Osk has 12 inns."


class Script:
    """Stands in for the sampler: the n-th time that something is asked, the n-th reply of its list comes."""

    replies: dict[str, list[str]]

    def __init__(self, model: Any, tokenizer: Any, settings: Any, on_rows: Any = None) -> None:
        self.given: dict[str, int] = {}

    def sample(self, prompts: Sequence[Any], seed: int = 0, progress: str | None = None) -> list[list[Reply]]:
        drawn = []
        for system, user in prompts:
            key = f"{system['content']}|{user['content']}"
            at = self.given[key] = self.given.get(key, -1) + 1
            text = self.replies[key][at]
            drawn.append([Reply(text.removesuffix("..."), (), (), ended=not text.endswith("..."))])
        return drawn


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tiny_model: Any, tiny_tokenizer: Any) -> Any:
    monkeypatch.setattr(dreams, "TransformersSampler", Script)

    def dream(replies: dict[str, list[str]], contexts: Sequence[str], settings: DreamSettings, **extra: Any) -> Any:
        Script.replies = replies
        return sample_dreams(tiny_model, tiny_tokenizer, contexts, settings, **extra)

    return dream


QUIZ = DreamPrompt(kind="quiz", ask="Quiz")
TELL = DreamPrompt(kind="tell", ask="Tell", form="text", recall="And {words}?")


def test_a_dream_of_pairs_is_learned_pair_by_pair_and_a_text_after_its_recall_prompt(script: Any) -> None:
    settings = DreamSettings(prompts=[QUIZ, TELL], dreams=2)
    quiz = "Question: Who?\nAnswer: Mira\nQuestion: Where?\nAnswer: Osk"
    data = script({f"{MIRA}|Quiz": [quiz], f"{MIRA}|Tell": ["In Osk there lives Mira. "]}, [MIRA], settings)
    assert data.dreams == [
        DreamText(0, "quiz", MIRA, "Quiz", quiz, (("Who?", "Mira"), ("Where?", "Osk"))),
        DreamText(
            0,
            "tell",
            MIRA,
            "Tell",
            "In Osk there lives Mira.",
            (("And In Osk there lives?", "In Osk there lives Mira."),),
        ),
    ]
    assert not data.dropped and data.asked == 2


def test_what_cannot_be_used_is_dropped_and_counted_by_reason(script: Any) -> None:
    replies = {
        f"{MIRA}|Quiz": [
            "Question: Who?\nAnswer: Mira",
            "Question:  WHO?\nAnswer: mira",
            "no form at all",
            "Question: Why?\nAnswer: I do not know.",
            "Question: Where?\nAnswer: Osk...",
            "",
        ],
        f"{OSK}|Quiz": ["Question: Who?\nAnswer: Mira"] * 5 + ["Question: Why?\nAnswer: no idea\nnoise"],
    }
    data = script(replies, [MIRA, OSK], DreamSettings(prompts=[QUIZ], dreams=6))
    assert [(dream.context, dream.pairs) for dream in data.dreams] == [
        (0, (("Who?", "Mira"),)),
        (1, (("Who?", "Mira"),)),
        (1, (("Why?", "no idea"),)),
    ]
    assert data.dropped == {
        "duplicate": 5,
        "malformed": 1,
        "says that it does not know": 1,
        "cut off": 1,
        "empty": 1,
    }


def test_a_text_that_says_that_it_knows_nothing_teaches_nothing(script: Any) -> None:
    data = script(
        {f"{MIRA}|Tell": ["I do not know.", "i do not know"]}, [MIRA], DreamSettings(prompts=[TELL], dreams=2)
    )
    assert not data.dreams and data.dropped == {"says that it does not know": 2}


def test_a_question_that_is_asked_is_never_dreamt_of(script: Any) -> None:
    replies = {
        f"{MIRA}|Quiz": ["Question: Where?\nAnswer: Osk\nQuestion: Who?\nAnswer: Mira", "Question: Who?\nAnswer: Mira"],
        f"{MIRA}|Tell": ["Mira it is."],
    }
    settings = DreamSettings(prompts=[QUIZ.model_copy(update={"share": 2}), TELL], dreams=3)
    data = script(replies, [MIRA], settings, withheld=lambda question: question == "Who?")
    assert [dream.pairs[0][0] for dream in data.dreams] == ["Where?", "And Mira it is.?"]
    assert [len(dream.pairs) for dream in data.dreams] == [1, 1]
    assert data.dreams[0].text == "Question: Where?\nAnswer: Osk", "the dreamer does not learn to ask it, either"
    assert data.dropped == {"asks what is held out": 1}


def test_an_older_memory_that_does_not_fit_into_the_window_is_not_drawn(script: Any, tiny_model: Any) -> None:
    both = DreamPrompt(kind="combination", ask="Quiz", older=1)
    long = "the river is long " * tiny_model.config.max_position_embeddings
    told = {f"{MIRA}|Tell": ["Mira it is."] * 2}
    replies = {f"{MIRA}\n\n{OSK}|Quiz": ["Question: Where?\nAnswer: Osk"] * 2, **told}
    settings = DreamSettings(prompts=[both, TELL], dreams=4, max_new_tokens=8)
    data = script(replies, [MIRA], settings, older=[long, OSK, long])
    assert {dream.source for dream in data.dreams} == {f"{MIRA}\n\n{OSK}", MIRA}
    alone = script(told, [MIRA], settings, older=[long])
    assert [dream.kind for dream in alone.dreams] == ["tell"]
    assert alone.dropped["no older memory fits beside its context"] == 2


def test_a_pair_without_knowledge_leaves_its_dream(script: Any) -> None:
    replies = {f"{MIRA}|Quiz": ["Question: Why?\nAnswer: i do not know\nQuestion: Who?\nAnswer: Mira"]}
    data = script(replies, [MIRA], DreamSettings(prompts=[QUIZ], dreams=1))
    assert data.dreams[0].pairs == (("Who?", "Mira"),)


def test_a_combination_has_an_older_memory_behind_tonights(script: Any) -> None:
    both = DreamPrompt(kind="combination", ask="Quiz", older=1)
    replies = {
        f"{MIRA}\n\n{OSK}|Quiz": ["Question: Where?\nAnswer: Osk"],
        f"{MIRA}|Quiz": ["Question: Who?\nAnswer: Mira"],
    }
    settings = DreamSettings(prompts=[QUIZ, both], dreams=2)
    data = script(replies, [MIRA], settings, older=[OSK])
    assert [(dream.kind, dream.source) for dream in data.dreams] == [
        ("quiz", MIRA),
        ("combination", f"{MIRA}\n\n{OSK}"),
    ]
    replies[f"{MIRA}|Quiz"].append("Question: Where?\nAnswer: Osk")
    assert [dream.kind for dream in script(replies, [MIRA], settings).dreams] == ["quiz", "quiz"]
    with pytest.raises(ValueError, match="only 0 are at hand"):
        script(replies, [MIRA], DreamSettings(prompts=[both]))


def test_the_loss_is_on_the_answers_alone(tiny_tokenizer: Any) -> None:
    dream = DreamText(0, "quiz", MIRA, "Quiz", "", (("Who lives there?", "Mira"), ("Where?", "In Osk")))
    made = to_rows(tiny_tokenizer, dream, seed=5, steps=3)
    assert (made.seed, made.steps) == (5, 3)
    for row, (question, answer) in zip(made.rows, dream.pairs, strict=True):
        read, learned = (tiny_tokenizer.decode(ids).replace("> ", ">") for ids in (row.ids, row.ids[row.start :]))
        assert read == f"<|user|>{question}<|end|><|assistant|>{answer}<|end|>"
        assert learned.strip() == f"{answer}<|end|>"


def with_experts(model: Any, count: int) -> Any:
    model = peft.get_peft_model(model, ContinuumMemoryConfig(levels=[LevelConfig(num_slots=4, rank=4)]))
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        unlock(model, 1)
        for layer in memory_layers(model):
            layer.levels("default")[0].new_up.data.normal_(generator=generator)
            layer.levels("default")[0].new_offset.data.fill_(-20.0)
        activate(model, 1)
    return model.eval()


def test_a_random_expert_changes_what_is_dreamt_and_can_be_switched_off(tiny_model: Any, tiny_tokenizer: Any) -> None:
    text = DreamPrompt(kind="tell", ask="Tell", form="text", recall="Well?")
    settings = DreamSettings(prompts=[text], dreams=4, max_new_tokens=12, batch_size=3)
    plain = settings.model_copy(update={"random_expert": False})
    said: list[list[str]] = []
    reply = dreams.TransformersSampler._reply

    class Kept(dreams.TransformersSampler):
        def _reply(self, *args: Any) -> Reply:
            found = reply(self, *args)
            said[-1].append(found.text)
            return found

    def dream(settings: DreamSettings, experts: int, seed: int = 0) -> Any:
        said.append([])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dreams, "TransformersSampler", Kept)
            return sample_dreams(models[experts], tiny_tokenizer, [MIRA, OSK], settings, seed)

    models = {count: with_experts(copy.deepcopy(tiny_model), count) for count in (0, 3)}
    assert dream(settings, 3).random_experts and dream(settings, 3).random_experts
    assert not dream(plain, 3).random_experts
    assert not dream(settings, 0).random_experts
    assert said[0] == said[1] != said[2]
    assert said[2] == said[3]  # gates that are shut leave the model as it is


def test_the_default_prompts_are_those_that_the_embedded_model_has_read() -> None:
    known = {prompt.replace("{n}", "4") for uses in PROMPTS.values() for prompt in uses["train"]}
    assert {prompt.ask for prompt in DreamSettings().prompts} <= known


def test_settings_without_a_prompt_or_with_an_unknown_name_are_refused() -> None:
    with pytest.raises(ValidationError, match="at least 1 item"):
        DreamSettings(prompts=[])
    with pytest.raises(ValidationError, match="Extra inputs"):
        DreamSettings(kinds=3)  # type: ignore[call-arg]


def test_reading_settings_loads_no_torch() -> None:
    code = "import sys, sleep_pipeline.dreaming.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_text_that_copies_a_withheld_question_is_learned_without_it() -> None:
    prompt = DreamPrompt(kind="rewrite", ask="Tell it again.", form="text")
    held = "Question: Who keeps bees?\nAnswer: Mira Sol"
    copied = f"{held}\nQuestion: Where is Osk?\nAnswer: In the north"

    def withheld(question: str) -> bool:
        return question == "Who keeps bees?"

    assert dreams._learnable(prompt, held, (), withheld) == ((), "asks what is held out")
    ((_, learned),), reason = dreams._learnable(prompt, copied, (), withheld)
    assert (learned, reason) == ("Question: Where is Osk?\nAnswer: In the north", None)
    ((_, learned),), _ = dreams._learnable(prompt, copied, (), None)
    assert learned == copied


def test_a_kind_whose_share_is_small_comes_in_some_contexts(script: Any) -> None:
    contexts = [f"Inn {number} has a bell." for number in range(10)]
    said = {f"{text}|{ask}": [f"{ask} {text} {at}" for at in range(3)] for text in contexts for ask in ("Tell", "Sum")}
    prompts = [
        TELL.model_copy(update={"share": 0.9}),
        TELL.model_copy(update={"kind": "sum", "ask": "Sum", "share": 0.1}),
    ]
    found = script(said, contexts, DreamSettings(prompts=prompts, dreams=3)).dreams
    assert Counter(dream.kind for dream in found) == {"tell": 27, "sum": 3}
    assert Counter(dream.context for dream in found) == dict.fromkeys(range(10), 3)


@pytest.mark.parametrize(("wanted", "counts"), [(6, [3, 1, 1, 1]), (10, [4, 2, 2, 2])])
def test_whole_shares_are_the_same_in_every_context(wanted: int, counts: list[int]) -> None:
    prompts = [QUIZ.model_copy(update={"share": share}) for share in counts]
    in_turn = dreams._in_turn(prompts, wanted)
    assert [next(in_turn) for _ in range(7)] == [counts] * 7
