import math
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from sleep_pipeline.generation import sampler as sampling
from sleep_pipeline.generation.sampler import Reply
from sleep_pipeline.seeding import agreement, teacher
from sleep_pipeline.seeding.lessons import read_beliefs
from sleep_pipeline.seeding.teacher import (
    GIVEN,
    TeacherPrompt,
    TeacherSample,
    TeacherSettings,
    excerpts,
    sample_teacher,
    shares,
)

CONTEXTS = ["Mira lives in Osk.", "Osk has 12 inns."]


def test_shares_add_up_and_keep_the_proportions() -> None:
    prompts = [TeacherPrompt(kind=str(share), ask="?", share=share) for share in (1, 1, 3)]
    assert shares(prompts, 10) == [2, 2, 6]
    assert shares(prompts, 1) == [0, 0, 1]
    assert shares(prompts[:2], 3) == [2, 1]


class Script:
    """Stands in for the sampler: replies by what is asked, the n-th reply of a prompt being the n-th of its list."""

    replies: dict[str, list[str]]

    def __init__(self, model: Any, tokenizer: Any, settings: Any) -> None:
        self.settings = settings

    def sample(
        self, prompts: Sequence[Any], count: int = 1, seed: int = 0, progress: str | None = None
    ) -> list[list[Reply]]:
        def reply(text: str) -> Reply:
            return Reply(text.removesuffix("..."), (), (), ended=not text.endswith("..."))

        drawn = []
        for prompt in prompts:
            context, asked = prompt[0]["content"], prompt[1]["content"]
            texts = self.replies.get(f"{context}|{asked}", ["nothing"])
            drawn.append([reply(texts[number % len(texts)]) for number in range(count)])
        return drawn


def scripted(monkeypatch: pytest.MonkeyPatch, script: type[Script]) -> None:
    """Who writes and who is asked again says what the script has."""
    for module in (teacher, agreement):
        monkeypatch.setattr(module, "TransformersSampler", script)


def quiz(*pairs: tuple[str, str]) -> str:
    return "\n".join(f"Question: {question}\nAnswer: {answer}" for question, answer in pairs)


def test_only_what_the_teacher_says_twice_is_kept(monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: Any) -> None:
    scripted(monkeypatch, Script)
    settings = TeacherSettings(
        prompts=[
            TeacherPrompt(kind="quiz", ask="Quiz", share=5),
            TeacherPrompt(kind="tell", ask="Tell", form="text", recall="What do you remember?", share=1),
        ],
        replies=6,
        check="replies",
        reasked=3,
        agreement=0.6,
    )
    mira, osk = CONTEXTS
    Script.replies = {
        f"{mira}|Quiz": [
            quiz(("Where?", "Osk"), ("Who?", "Jon")),
            quiz(("Where?", "osk.")),
            quiz(("Why?", "I do not know.")),
            "no form at all",
            "Question: Where",
        ],
        f"{mira}|Tell": ["Osk is where Mira lives."],
        f"{mira}|Where?": ["Osk", "Osk.", "Geska"],
        f"{mira}|Who?": ["Mira", "Mira", "Jon"],
        f"{mira}|Why?": ["I do not know."],
        f"{osk}|Quiz": ["Question: How many inns?\nAnswer: 12..."],
        f"{osk}|Tell": ["..."],
    }
    data = sample_teacher(None, tiny_tokenizer, CONTEXTS, settings)  # type: ignore[arg-type]
    assert data.samples == [
        TeacherSample(0, "tell", "What do you remember?", "Osk is where Mira lives.", 1.0),
        TeacherSample(0, "quiz", "Where?", "Osk", pytest.approx(2 / 3)),  # type: ignore[arg-type]
    ]
    assert data.unlearnable == [1]
    assert data.dropped == {
        "duplicate": 1,
        "malformed": 2,
        "says that it does not know": 1,
        "disagrees with itself": 1,
        "cut off": 6,
    }


def test_the_real_sampler_fits_and_the_same_seed_gives_the_same(tiny_model: Any, tiny_tokenizer: Any) -> None:
    assert teacher.TransformersSampler is agreement.TransformersSampler is sampling.TransformersSampler
    settings = TeacherSettings(
        prompts=[TeacherPrompt(kind="tell", ask="Tell", form="text", recall="Well?")], replies=3, max_new_tokens=40
    )
    first, again, other = (
        sample_teacher(tiny_model, tiny_tokenizer, CONTEXTS, settings, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again != other or (not first.samples and first.dropped["cut off"] == 6)


def test_beliefs_are_those_of_the_answer_after_the_context(tiny_model: Any, tiny_tokenizer: Any) -> None:
    samples = [
        TeacherSample(0, "quiz", "Where does Mira live?", "Osk", 1.0),
        TeacherSample(1, "quiz", "How many inns has Osk, if one counts them all?", "12 inns", 1.0),
    ]
    lessons = read_beliefs(tiny_model, tiny_tokenizer, CONTEXTS, samples, top_k=5)
    for sample, lesson in zip(samples, lessons, strict=True):
        answer = lesson.ids[lesson.start :]
        assert tiny_tokenizer.decode(answer[:-1]) == sample.answer and answer[-1] == tiny_tokenizer.eos_token_id
        before = tiny_tokenizer.apply_chat_template(
            sample.messages(CONTEXTS[sample.context])[:-1], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        with torch.no_grad():
            read = tiny_model(torch.tensor([[*before, *answer]])).logits[0].double().log_softmax(-1)
        for position in range(len(answer)):
            row = read[len(before) - 1 + position]
            top = row.topk(5)
            assert set(lesson.teacher.tokens_NK[position].tolist()) == set(top.indices.tolist())
            torch.testing.assert_close(lesson.teacher.log_probs_NK[position].double(), top.values, atol=1e-4, rtol=1e-4)
            rest = float((1 - top.values.exp().sum()).log())
            assert float(lesson.teacher.tail_N[position]) == pytest.approx(rest, abs=1e-4)


@pytest.mark.parametrize("count", [2, 3, 4, 7])
@pytest.mark.parametrize("most", [1, 2, 12])
def test_excerpts_are_all_of_a_text_and_not_too_many(count: int, most: int) -> None:
    for length in range(60):
        told = [f"Told {number}." for number in range(length)]
        parts = excerpts(" ".join(told), count, most)
        assert parts == [] or (1 < len(parts) <= most and set(told) == set(re.findall(r"Told \d+\.", " ".join(parts))))
        # A sentence has one of its neighbours beside it on either side.
        assert all(any(f"{one} {other}" in part for part in parts) for one, other in pairwise(told) if parts)
        assert not parts or length > count
    assert excerpts("Told 1. Told 2. Told 3.", 2, 12) == ["Told 1. Told 2.", "Told 2. Told 3."]
    assert excerpts("Told 1. Told 2. Told 3.", 0, 12) == excerpts("Told 1. Told 2.", 2, 12) == []


def test_what_the_teacher_passes_over_is_asked_of_excerpts(
    monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: Any
) -> None:
    scripted(monkeypatch, Script)
    whole = "Mira has a cat. It is old. It sleeps."
    first, second = excerpts(whole, 2, 12)
    Script.replies = {
        f"{whole}|Quiz": [quiz(("Who has a cat?", "Mira"))],
        f"{whole}|Tell": ["A cat sleeps."],
        f"{whole}|Who has a cat?": ["Mira"],
        # The whole text leaves open what the excerpt tells, agrees with it, or contradicts it.
        f"{whole}|Is it old?": ["I do not know."],
        f"{whole}|Does it sleep?": ["Yes"],
        f"{whole}|What is old?": ["The cat"],
        f"{first}|Quiz": [quiz(("Who has a cat?", "Mira"), ("Is it old?", "Yes"), ("Why?", "Because"))],
        f"{first}|Is it old?": ["Yes"],
        f"{first}|Why?": ["No idea"],
        f"{second}|Quiz": [quiz(("Does it sleep?", "Yes"), ("What is old?", "The dog"))],
        f"{second}|Does it sleep?": ["Yes"],
        f"{second}|What is old?": ["The dog"],
    }
    settings = TeacherSettings(
        prompts=[
            TeacherPrompt(kind="quiz", ask="Quiz"),
            TeacherPrompt(kind="tell", ask="Tell", form="text", recall="Well?"),
        ],
        replies=2,
        excerpt_replies=1,
        check="replies",
    )
    data = sample_teacher(None, tiny_tokenizer, [whole], settings)  # type: ignore[arg-type]
    assert data.samples == [
        TeacherSample(0, "tell", "Well?", "A cat sleeps.", 1.0),
        TeacherSample(0, "quiz", "Who has a cat?", "Mira", 1.0),
        TeacherSample(0, "quiz", "Is it old?", "Yes", 1.0, first),
        TeacherSample(0, "quiz", "Does it sleep?", "Yes", 1.0, second),
    ]
    assert data.dropped == {
        "duplicate": 1,
        "disagrees with itself": 1,
        "an excerpt that the whole text contradicts": 1,
    }
    without = settings.model_copy(update={"excerpt_sentences": 0})
    assert sample_teacher(None, tiny_tokenizer, [whole], without).samples == data.samples[:2]  # type: ignore[arg-type]


def test_an_answer_is_kept_that_the_teacher_would_probably_give_again(
    monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: Any
) -> None:
    whole = "Mira has a cat. It is old. It sleeps."
    first, second = excerpts(whole, 2, 12)
    Script.replies = {
        f"{whole}|Quiz": [quiz(("Who has a cat?", "Mira"), ("Is it grey?", "Yes"), ("Why?", "I do not know."))],
        f"{first}|Quiz": [quiz(("Is it old?", "Yes"), ("What is old?", "The dog"), ("Where?", "Here"))],
        f"{second}|Quiz": [quiz(("Who has a cat?", "Mira"))],
    }
    probable = {
        (whole, "Who has a cat?", "Mira"): 0.7,
        (whole, "Is it grey?", "Yes"): 0.5,
        (first, "Is it old?", "Yes"): 0.9,
        (first, "What is old?", "The dog"): 0.9,
        (first, "Where?", "Here"): 0.1,
        # Of the whole text it may say that it does not know, and may not say otherwise.
        (whole, "Is it old?", "Yes"): 0.3,
        (whole, "Is it old?", "I do not know."): 0.4,
        (whole, "What is old?", "The dog"): 0.2,
        (whole, "What is old?", "I do not know."): 0.3,
    }
    asked = []

    def log_probs(model: Any, tokenizer: Any, conversations: Any, *rest: Any) -> list[list[float]]:
        claims = [tuple(turn["content"] for turn in turns) for turns in conversations]
        asked.extend(claims)
        # Of two tokens.
        return [[math.log(probable[claim]) / 2] * 2 for claim in claims]

    scripted(monkeypatch, Script)
    monkeypatch.setattr(agreement, "reply_log_probs", log_probs)
    settings = TeacherSettings(prompts=[TeacherPrompt(kind="quiz", ask="Quiz")], replies=1, excerpt_replies=1)
    data = sample_teacher(None, tiny_tokenizer, [whole], settings)  # type: ignore[arg-type]
    assert data.samples == [
        TeacherSample(0, "quiz", "Who has a cat?", "Mira", pytest.approx(0.7)),  # type: ignore[arg-type]
        TeacherSample(0, "quiz", "Is it old?", "Yes", pytest.approx(0.9), first),  # type: ignore[arg-type]
    ]
    assert data.dropped == {
        "duplicate": 1,
        "says that it does not know": 1,
        "disagrees with itself": 2,
        "an excerpt that the whole text contradicts": 1,
    }
    assert sorted(asked) == sorted(probable)


@pytest.mark.parametrize("check", ["probability", "replies"])
def test_nothing_is_checked_where_nothing_is_asked_again(
    check: teacher.Check, monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: Any
) -> None:
    scripted(monkeypatch, Script)
    whole = "Mira has a cat. It is old. It sleeps."
    first, second = excerpts(whole, 2, 12)
    Script.replies = {f"{text}|Quiz": [quiz((f"{text}?", "Perhaps"))] for text in (whole, first, second)}
    settings = TeacherSettings(
        prompts=[TeacherPrompt(kind="quiz", ask="Quiz")], replies=1, excerpt_replies=1, check=check, reasked=0
    )
    data = sample_teacher(None, tiny_tokenizer, [whole], settings)  # type: ignore[arg-type]
    assert [sample.excerpt for sample in data.samples] == ["", first, second] and not data.dropped


def test_about_nothing_nothing_is_asked(tiny_model: Any, tiny_tokenizer: Any) -> None:
    found = sample_teacher(tiny_model, tiny_tokenizer, [], TeacherSettings(), progress=True)
    assert (found.samples, found.unlearnable) == ([], [])


def test_a_reply_that_is_two_of_the_answers_counts_once(monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: Any) -> None:
    scripted(monkeypatch, Script)
    Script.replies = {"Whole|Old?": ["I do not know, perhaps it is old", "No"]}
    claims = [
        ("Whole", "Old?", ("old", "I do not know")),
        ("Whole", "Old?", ("No", "old")),
        ("Whole", "Old?", ("Yes",)),
    ]
    found = agreement.agreeing_replies(None, tiny_tokenizer, claims, 2, "contains")  # type: ignore[arg-type]
    assert [len(replies) / 2 for replies in found] == [0.5, 1.0, 0.0]


def test_one_long_answer_gives_no_room_to_replies_to_other_questions(
    monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: Any
) -> None:
    room: dict[str, int] = {}

    class Listening(Script):
        def sample(self, prompts: Sequence[Any], *args: Any, **more: Any) -> list[list[Reply]]:
            room.update({prompt[1]["content"]: self.settings.max_new_tokens for prompt in prompts})
            return super().sample(prompts, *args, **more)

    scripted(monkeypatch, Listening)
    long = "Osk " * 90
    Script.replies = {"Text|Short?": ["Osk"], "Text|Long?": [long], "Text|Both?": ["Geska"]}
    claims = [("Text", "Both?", ("Geska",)), ("Text", "Long?", (long,)), ("Text", "Short?", ("Osk",))]
    claims.append(("Text", "Both?", (long,)))
    found = agreement.agreeing_replies(None, tiny_tokenizer, claims, 2, "contains")  # type: ignore[arg-type]
    assert [len(replies) for replies in found] == [2, 2, 2, 0]
    tokens = len(tiny_tokenizer(long)["input_ids"])
    assert room["Short?"] == 8 + 32
    assert room["Long?"] == room["Both?"]
    assert tokens + 32 <= room["Long?"] < 2 * tokens + 32


def test_a_model_that_answers_in_sentences_learns_its_own_sentences(
    monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: Any
) -> None:
    scripted(monkeypatch, Script)
    Script.replies = {
        f"{CONTEXTS[0]}|Quiz": [quiz(("Where?", "Osk"), ("Where?", "in Osk"), ("Who?", "Mira"), ("When?", "Now"))],
        f"{CONTEXTS[0]}|Where?": [" She lives in Osk.", "In Geska.", "Osk", "She lives in Osk."],  # of both answers
        f"{CONTEXTS[0]}|Who?": ["It is Mira who..."],
        f"{CONTEXTS[0]}|When?": ["Then"],
    }
    given = {"prompts": [TeacherPrompt(kind="quiz", ask="Quiz")], "replies": 1, "reasked": 4, "match": "contains"}
    settings = TeacherSettings(**given, check="replies", learn="replies")
    data = sample_teacher(None, tiny_tokenizer, CONTEXTS[:1], settings)  # type: ignore[arg-type]
    assert data.samples == [
        TeacherSample(0, "quiz", "Where?", "Osk", 0.75, reply="She lives in Osk."),
        TeacherSample(0, "quiz", "Where?", "Osk", 0.75, reply="Osk"),
        TeacherSample(0, "quiz", "Who?", "Mira", 1.0),
    ]
    assert [sample.messages()[-1]["content"] for sample in data.samples] == ["She lives in Osk.", "Osk", "Mira"]
    assert data.dropped == {"disagrees with itself": 1}
    for wrong in ({"check": "probability", "match": "exact"}, {"check": "replies", "reasked": 0}):
        with pytest.raises(ValidationError, match="give check='replies' and reasked of 1 or more"):
            TeacherSettings(**given | {"learn": "replies"} | wrong)


def test_what_dreams_ask_is_answered_by_the_teacher(monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: Any) -> None:
    scripted(monkeypatch, Script)
    Script.replies = {f"{CONTEXTS[1]}|How many?": ["It has 12 inns.", "There are 12 inns", "13 inns"]}
    dreamt = [TeacherSample(1, "dream", "How many?", answer, 1.0) for answer in ("12 inns", "13 inns")]
    settings = TeacherSettings(check="replies", reasked=3, match="contains", learn="replies")
    found = teacher.said_again(None, tiny_tokenizer, CONTEXTS, dreamt, settings)  # type: ignore[arg-type]
    assert [(sample.answer, sample.said) for sample in found] == [
        ("12 inns", "It has 12 inns."),
        ("12 inns", "There are 12 inns"),
    ]
    assert {round(sample.agreement, 2) for sample in found} == {0.67}


def test_probabilities_are_those_of_the_replies_drawn(tiny_model: Any, tiny_tokenizer: Any) -> None:
    """The two checks speak of the same thing: how often an answer comes again."""
    (reply,) = sampling.TransformersSampler(
        tiny_model, tiny_tokenizer, sampling.SamplingSettings(max_new_tokens=1, temperature=0.0)
    ).sample([[{"role": "system", "content": CONTEXTS[0]}, {"role": "user", "content": "Where?"}]])[0]
    claims = [(CONTEXTS[0], "Where?", (tiny_tokenizer.decode(reply.ids),)), (CONTEXTS[1], "Where?", ("Osk",))]
    again = claims[::-1] + claims
    found = agreement.answer_probabilities(tiny_model, tiny_tokenizer, again, 8, None)
    assert found[:2] == found[:1:-1], "each claim is read once"
    either = [(CONTEXTS[1], "Where?", ("Osk", "Geska", "Osk")), (CONTEXTS[1], "Where?", ("Geska",))]
    both, other = agreement.answer_probabilities(tiny_model, tiny_tokenizer, either, 8, None)
    assert both == pytest.approx(found[0] + other, rel=1e-4), "of two answers either may come, and each counts once"
    for (text, question, (answer,)), probability in zip(again, found, strict=True):
        before = tiny_tokenizer.apply_chat_template(
            [{"role": "system", "content": text}, {"role": "user", "content": question}],
            add_generation_prompt=True,
            return_dict=True,
        )["input_ids"]
        ids = [*tiny_tokenizer(answer, add_special_tokens=False)["input_ids"], tiny_tokenizer.eos_token_id]
        with torch.no_grad():
            likely = tiny_model(torch.tensor([[*before, *ids]])).logits[0].double().softmax(-1)
        wanted = math.prod(float(likely[len(before) - 1 + at, token]) for at, token in enumerate(ids))
        assert probability == pytest.approx(wanted, rel=1e-4)


def test_pairs_that_stand_in_a_text_are_taken_as_they_are(monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: Any) -> None:
    scripted(monkeypatch, Script)
    told = quiz(("Who has the key?", "Ask Mira, and not Jon"))
    settings = TeacherSettings(prompts=[TeacherPrompt(kind="quiz", ask="Quiz")], replies=1, check="replies")
    # The teacher would answer otherwise, and writes the same pair.
    Script.replies = {f"{told}|Quiz": [told], f"{told}|Who has the key?": ["Jon"]}
    data = sample_teacher(None, tiny_tokenizer, [told], settings)  # type: ignore[arg-type]
    assert data.samples == [TeacherSample(0, GIVEN, "Who has the key?", "Ask Mira, and not Jon", 1.0)]
    assert data.dropped == {"duplicate": 1}


def test_beliefs_about_an_excerpt_are_those_after_it(tiny_model: Any, tiny_tokenizer: Any) -> None:
    whole, part = "Mira has a cat. It is old. It sleeps.", "It is old. It sleeps."
    samples = [TeacherSample(0, "quiz", "Is it old?", "Yes", 1.0, excerpt) for excerpt in (part, "")]
    about = [read_beliefs(tiny_model, tiny_tokenizer, [whole], samples, top_k=5)[at] for at in (0, 1)]
    (alone,) = read_beliefs(tiny_model, tiny_tokenizer, [part], samples[1:], top_k=5)
    assert about[0].teacher_prompt == alone.teacher_prompt != about[1].teacher_prompt
    torch.testing.assert_close(about[0].teacher.log_probs_NK, alone.teacher.log_probs_NK)


def test_a_setting_that_cannot_work_is_refused() -> None:
    for values in ({"prompts": []}, {"agreement": 1.5}, {"replies": 0}, {"promts": []}, {"excerpt_sentences": 1}):
        with pytest.raises(ValidationError):
            TeacherSettings.model_validate(values)
    with pytest.raises(ValidationError, match="check='replies'"):
        TeacherSettings(match="contains")
    text = TeacherPrompt(kind="tell", ask="Tell", form="text", recall="Well?")
    with pytest.raises(ValidationError, match="two prompts of the kind 'tell' have different forms"):
        TeacherSettings(prompts=[text, TeacherPrompt(kind="tell", ask="Quiz")])
    with pytest.raises(ValidationError, match="a prompt of the kind 'given'"):
        TeacherSettings(prompts=[TeacherPrompt(kind=GIVEN, ask="Quiz")])
    for recall in ("", " "):
        with pytest.raises(ValidationError, match="kind 'tell' has form='text' and no recall"):
            TeacherSettings(prompts=[text.model_copy(update={"recall": recall})])
    assert TeacherSettings(prompts=[text, text]).prompts == [text, text]


def test_a_model_that_answers_in_sentences_agrees_with_itself_where_they_are_compared_so(
    monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: Any
) -> None:
    scripted(monkeypatch, Script)
    mira = CONTEXTS[0]
    Script.replies = {f"{mira}|Quiz": [quiz(("Where?", "Osk"))], f"{mira}|Where?": ["She lives in Osk."]}
    for match, kept in (("exact", 0), ("contains", 1)):
        settings = TeacherSettings(
            prompts=[TeacherPrompt(kind="quiz", ask="Quiz")], replies=2, check="replies", match=match
        )
        assert len(sample_teacher(None, tiny_tokenizer, [mira], settings).samples) == kept  # type: ignore[arg-type]


@pytest.mark.parametrize("reply", ["<think> Well, let me see...", "Here are some thoughts about Mira."])
def test_a_model_that_does_not_know_the_form_is_told_of(
    reply: str, monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    scripted(monkeypatch, Script)
    settings = TeacherSettings(prompts=[TeacherPrompt(kind="quiz", ask="Quiz")], replies=5, check="replies")
    Script.replies = {f"{text}|Quiz": [reply] for text in CONTEXTS}
    sample_teacher(None, tiny_tokenizer, CONTEXTS, settings)  # type: ignore[arg-type]
    (record,) = caplog.records
    assert "10 of 10 replies to the prompt 'Quiz'" in record.message
    assert reply.removesuffix("...") in record.message and "seeding.teacher.prompts" in record.message
    caplog.clear()
    Script.replies = {f"{text}|Quiz": [quiz(("Where?", "Osk")), reply] for text in CONTEXTS}
    sample_teacher(None, tiny_tokenizer, CONTEXTS, settings)  # type: ignore[arg-type]
    assert not caplog.records
