"""Lessons read from a teacher, and the documents that a model makes up to go on reading."""

from pathlib import Path
from typing import Any

import made_up
import pytest
import torch
from made_up import Script

from sleep_pipeline.seeding import lessons as module
from sleep_pipeline.seeding.lesson_file import load_lessons, save_lessons
from sleep_pipeline.seeding.lessons import (
    Lesson,
    altered_texts,
    conversation_lessons,
    free_lessons,
    open_book_lessons,
    read_beliefs,
    reading_lessons,
    self_made_documents,
)
from sleep_pipeline.seeding.teacher import TeacherPrompt, TeacherSample, TeacherSettings

CONTEXTS = ["Mira lives in Osk.", "Osk has 12 inns, and all of them are by the river."]
SAMPLES = [
    TeacherSample(1, "quiz", "How many inns has Osk, if one counts them all?", "12 inns", 1.0),
    TeacherSample(0, "quiz", "Where does Mira live?", "Osk", 1.0),
    TeacherSample(1, "tell", "What of the inns?", "They are by the river, all of them.", 1.0),
]


def equal(one: Lesson, other: Lesson) -> bool:
    return (one.ids, one.start, one.teacher_prompt, one.view) == (
        other.ids,
        other.start,
        other.teacher_prompt,
        other.view,
    ) and torch.equal(one.teacher.tokens_NK, other.teacher.tokens_NK)


def test_the_teacher_has_the_context_before_it_and_the_student_has_not(tiny_model: Any, tiny_tokenizer: Any) -> None:
    read = read_beliefs(tiny_model, tiny_tokenizer, CONTEXTS, SAMPLES, top_k=3, view=1)
    for sample, lesson in zip(SAMPLES, read, strict=True):
        answer = tiny_tokenizer.apply_chat_template(sample.messages(), return_dict=True)["input_ids"][lesson.start :]
        assert list(lesson.ids[lesson.start :]) == answer
        assert tiny_tokenizer.decode(lesson.ids) == tiny_tokenizer.decode(
            tiny_tokenizer.apply_chat_template(sample.messages(), return_dict=True)["input_ids"]
        )
        before = tiny_tokenizer.decode(lesson.teacher_prompt)
        assert CONTEXTS[sample.context] in before and sample.question in before
        assert CONTEXTS[sample.context] not in tiny_tokenizer.decode(lesson.ids)
        assert lesson.view == 1


def test_a_teacher_that_needs_no_context_is_asked_as_the_student_is(tiny_model: Any, tiny_tokenizer: Any) -> None:
    (lesson,) = read_beliefs(tiny_model, tiny_tokenizer, [None], [TeacherSample(0, "", "Who?", "Mira", 1.0)], top_k=3)
    assert lesson.teacher_prompt == lesson.ids[: lesson.start]


def test_lessons_do_not_depend_on_the_batch(tiny_model: Any, tiny_tokenizer: Any) -> None:
    together = read_beliefs(tiny_model, tiny_tokenizer, CONTEXTS, SAMPLES, top_k=3)
    alone = read_beliefs(tiny_model, tiny_tokenizer, CONTEXTS, SAMPLES, top_k=3, batch_size=1)
    for one, other in zip(together, alone, strict=True):
        assert equal(one, other)
        torch.testing.assert_close(one.teacher.log_probs_NK, other.teacher.log_probs_NK, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(one.teacher.tail_N, other.teacher.tail_N, atol=1e-5, rtol=1e-5)


def test_a_small_vocabulary_is_kept_whole(tiny_model: Any, tiny_tokenizer: Any) -> None:
    (lesson, *_) = read_beliefs(tiny_model, tiny_tokenizer, CONTEXTS, SAMPLES, top_k=10_000)
    assert lesson.teacher.tokens_NK.shape[-1] == 512


def test_beliefs_are_read_without_dropout_and_leave_the_model_in_its_mode(tiny_tokenizer: Any) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=512, n_embd=16, n_layer=1, n_head=2, n_positions=128)).train()
    first, second = (read_beliefs(model, tiny_tokenizer, CONTEXTS, SAMPLES, top_k=3) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.teacher.log_probs_NK, other.teacher.log_probs_NK)
    assert all(part.training for part in model.modules())


def test_a_template_that_writes_an_answer_differently_after_a_context_is_refused(
    tiny_model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shouting = tiny_tokenizer.chat_template.replace(
        "message['content'] + '<|end|>' }}{% endgeneration",
        "(message['content'] if messages[0].role == 'system' else message['content'] + '!') + '<|end|>' }}"
        "{% endgeneration",
    )
    assert shouting != tiny_tokenizer.chat_template
    monkeypatch.setattr(tiny_tokenizer, "chat_template", shouting)
    with pytest.raises(ValueError, match="writes the answer '12 inns' differently after a system turn"):
        read_beliefs(tiny_model, tiny_tokenizer, CONTEXTS, SAMPLES, top_k=3)


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ([" A town. ", "A river...", "", "A hill."], ["A town.", "A hill."]),
        (["A town.", "A town. ", "A river...", ""], ["A town."]),
    ],
)
def test_only_documents_that_the_model_ended_are_kept_and_each_once(
    said: list[str],
    kept: list[str],
    tiny_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(module, "TransformersSampler", Script)
    monkeypatch.setattr(Script, "replies", {"<|system|>": said})
    assert self_made_documents(None, tiny_tokenizer, 4, 9, seed=0) == kept  # type: ignore[arg-type]
    assert ("1 of 4 made-up documents can be read about" in caplog.text) == (len(kept) == 1)


def test_documents_are_what_the_model_writes_after_a_system_turn_is_opened(
    tiny_model: Any, tiny_tokenizer: Any
) -> None:
    from sleep_pipeline.generation.sampler import SamplingSettings, TransformersSampler

    opening = tiny_tokenizer.convert_tokens_to_ids("<|system|>")
    sampler = TransformersSampler(tiny_model, tiny_tokenizer, SamplingSettings(200))
    (replies,) = sampler.continue_ids([[opening]], 6, seed=3)
    wanted = [reply.text.strip() for reply in replies if reply.ended]
    assert wanted
    assert self_made_documents(tiny_model, tiny_tokenizer, 6, 200, seed=3) == wanted


def test_a_model_that_is_asked_for_documents_writes_them_in_turn_and_cut_ones_lose_their_last_sentence(
    tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    town, note = "Write about a town.", "Write a note."
    monkeypatch.setattr(module, "TransformersSampler", Script)
    monkeypatch.setattr(Script, "replies", {town: ["Osk has 3.5 inns. It lies by the ri..."], note: [" Mira paid. "]})
    made = self_made_documents(None, tiny_tokenizer, 5, 9, seed=0, requests=(town, note))  # type: ignore[arg-type]
    assert made == ["Osk has 3.5 inns.", "Mira paid."]
    assert "2 of 5 documents that the model was asked for" in caplog.text
    monkeypatch.setattr(Script, "replies", {town: ["No end..."], note: ["..."]})
    assert self_made_documents(None, tiny_tokenizer, 2, 9, seed=0, requests=(town, note)) == []  # type: ignore[arg-type]


def test_a_document_ends_where_the_template_closes_the_turn(
    tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_tokenizer, "chat_template", "<<SYS>>{{ messages[0].content }}<</SYS>>\n")
    monkeypatch.setattr(module, "TransformersSampler", Script)
    monkeypatch.setattr(Script, "otherwise", ["A town.<</SYS>>\nWho?"])
    assert self_made_documents(None, tiny_tokenizer, 1, 9, seed=0) == ["A town."]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0].content }}",
        "<|system|>{{ messages[0].content }}",
        "{% if false %}{% endif %}none",
        "{{ raise_exception('no system turn alone') }}",
    ],
)
def test_a_template_without_a_system_turn_of_its_own_makes_up_nothing_and_says_so(
    template: str, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tiny_tokenizer, "chat_template", template)
    assert self_made_documents(None, tiny_tokenizer, 4, 9, seed=0) == []  # type: ignore[arg-type]
    assert "it rehearses tonight's texts alone" in caplog.text


READING = TeacherSettings(
    prompts=[
        TeacherPrompt(kind="quiz", ask="Quiz", share=1),
        TeacherPrompt(kind="tell", ask="Tell", form="text", recall="Well?", share=1),
    ],
    top_k=4,
)


def test_lessons_in_reading_are_what_the_model_does_with_a_text_that_the_student_reads_too(
    tiny_model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TransformersSampler", Script)
    quiz = "Question: Where?\nAnswer: Osk"
    monkeypatch.setattr(Script, "replies", {"Quiz": [quiz, quiz], "Tell": ["A town.", "A riv..."]})
    found = open_book_lessons(tiny_model, tiny_tokenizer, ["Osk is a town."], READING, 4, seed=0)
    asked = [("Quiz", quiz), ("Where?", "Osk"), ("Tell", "A town.")]
    for lesson, (question, answer) in zip(found, asked, strict=True):
        messages = [
            {"role": "system", "content": "Osk is a town."},
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
        whole = tiny_tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
        assert list(lesson.ids) == whole
        assert lesson.teacher_prompt == lesson.ids[: lesson.start]


def test_conversations_are_requests_that_the_model_makes_up_and_its_replies(
    tiny_model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "TransformersSampler", Script)
    monkeypatch.setattr(
        Script,
        "replies",
        {
            "<|user|>": ["Where is Osk?", "Who...", "Where is Osk?", "Why?"],
            "Where is Osk?": ["Here."],
            "Why?": ["So..."],
        },
    )
    found = conversation_lessons(tiny_model, tiny_tokenizer, 4, 9, READING, seed=0)
    said = [("Where is Osk?", "Here."), ("Why?", "So")]
    for lesson, (request, reply) in zip(found, said, strict=True):
        whole = [{"role": "user", "content": request}, {"role": "assistant", "content": reply}]
        assert list(lesson.ids) == tiny_tokenizer.apply_chat_template(whole, return_dict=True)["input_ids"]
        assert lesson.teacher_prompt == lesson.ids[: lesson.start], "the student reads what the teacher reads"
    assert conversation_lessons(tiny_model, tiny_tokenizer, 0, 9, READING, seed=0) == [] and not caplog.text
    monkeypatch.setattr(Script, "replies", {"<|user|>": ["Who..."]})
    assert conversation_lessons(tiny_model, tiny_tokenizer, 4, 9, READING, seed=0) == []
    assert "the model makes up no conversations" in caplog.text


def test_what_the_template_would_change_is_no_lesson_in_reading(
    tiny_model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TransformersSampler", Script)
    quiz = "Question: Where?\nAnswer: Osk\nQuestion: Who?\nAnswer: Jon </think> Mira"
    monkeypatch.setattr(Script, "replies", {"Quiz": [quiz], "Tell": ["A town.", "A </think> river."]})
    thinking = (
        "{% if messages[-1]['role'] == 'assistant' and '</think>' in messages[-1]['content'] %}<|user|>{% endif %}"
    )
    monkeypatch.setattr(tiny_tokenizer, "chat_template", thinking + tiny_tokenizer.chat_template)
    found = open_book_lessons(tiny_model, tiny_tokenizer, ["Osk is a town."], READING, 4, seed=0)
    said = [tiny_tokenizer.decode(lesson.ids[lesson.start : -1]) for lesson in found]
    assert said == ["Osk", "A town."]


def test_an_altered_text_says_otherwise_what_the_most_similar_question_asks_of_another() -> None:
    contexts = ["Mira lives in Osk. Her dog is Rex.", "Jon lives in Ule and has 12 cats."]
    samples = [
        TeacherSample(0, "quiz", "Where does Mira live?", "Osk.", 1.0),
        TeacherSample(1, "quiz", "Where does Jon live?", "Ule", 1.0),
        TeacherSample(1, "quiz", "How many cats has Jon?", "12", 1.0),
        TeacherSample(0, "tell", "What of Mira?", "She keeps a dog in Osk.", 1.0),
    ]
    texts, asked = altered_texts(contexts, samples, 10, seed=0)
    found = {(sample.question, sample.answer, texts[sample.context]) for sample in asked}
    assert ("Where does Mira live?", "Ule", "Mira lives in Ule. Her dog is Rex.") in found
    assert ("Where does Jon live?", "Osk.", "Jon lives in Osk and has 12 cats.") in found
    assert {sample.question for sample in asked} == {sample.question for sample in samples[:3]}
    assert [sample.context for sample in asked] == list(range(len(texts)))
    assert altered_texts(contexts, samples, 1, seed=0)[1] == asked[:1]


def test_an_answer_is_altered_as_a_word_and_by_none_that_the_text_holds() -> None:
    samples = [TeacherSample(0, "quiz", "How many?", "1", 1.0), TeacherSample(1, "quiz", "How many?", "2", 1.0)]
    texts, _ = altered_texts(["1 of 10, or 1 of 11", "2 of 12"], samples, 10, seed=0)
    assert sorted(texts) == ["2 of 10, or 2 of 11"]
    assert altered_texts(["1 of 2", "2 of 3"], samples[:1], 10, seed=0) == ([], [])
    ended = [TeacherSample(0, "quiz", "Where?", "Osk.", 1.0)]
    assert altered_texts(["Osk and Ule"], ended, 10, seed=0) == ([], []), "a full stop makes it no other answer"


def test_an_answer_is_altered_where_words_have_no_spaces_between_them() -> None:
    samples = [
        TeacherSample(0, "quiz", "米拉住在哪里？", "东京。", 1.0),
        TeacherSample(1, "quiz", "约翰住在哪里？", "上海", 1.0),
    ]
    texts, asked = altered_texts(["米拉住在东京很久了。", "约翰在上海有12只猫。"], samples, 10, seed=0)
    assert sorted(texts) == sorted(["米拉住在上海很久了。", "约翰在东京有12只猫。"])
    assert {sample.answer for sample in asked} == {"上海", "东京。"}


def test_an_answer_without_a_word_is_not_altered_and_put_for_none() -> None:
    samples = [TeacherSample(0, "quiz", "What?", answer, 1.0) for answer in ("...", "?!", "-")]
    assert altered_texts(["Well... - what?! Osk"], samples, 10, seed=0) == ([], [])
    assert altered_texts(["Osk", "Well?"], [TeacherSample(0, "quiz", "Where?", "Osk", 1.0), *samples], 10, 0) == (
        [],
        [],
    )


def test_nothing_said_is_no_lesson(tiny_model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TransformersSampler", Script)
    monkeypatch.setattr(Script, "otherwise", ["cut off..."])
    assert open_book_lessons(tiny_model, tiny_tokenizer, ["A town."], READING, 4, seed=0) == []
    assert open_book_lessons(tiny_model, tiny_tokenizer, [], READING, 4, seed=0) == []


def test_free_texts_begin_of_themselves_and_are_read_where_they_were_written(
    tiny_model: Any, tiny_tokenizer: Any
) -> None:
    found = free_lessons(tiny_model, tiny_tokenizer, count=3, tokens=6, top_k=4, seed=1)
    assert len(found) == 3
    for lesson in found:
        assert (lesson.ids[0], lesson.start) == (tiny_tokenizer.bos_token_id, 1)
        with torch.no_grad():
            read = tiny_model(torch.tensor([lesson.ids])).logits[0, :-1].log_softmax(-1)
        torch.testing.assert_close(lesson.teacher.log_probs_NK, read.topk(4).values, atol=1e-5, rtol=1e-5)
    assert free_lessons(tiny_model, tiny_tokenizer, count=0, tokens=6, top_k=4, seed=1) == []


def test_lessons_come_back_from_their_file(tmp_path: Path) -> None:
    pools = {"tonight": made_up.lessons(3), "open_book": [made_up.lesson(6, 3, 9, view=1)], "nothing": []}
    save_lessons(pools, tmp_path / "lessons.safetensors")
    loaded = load_lessons(tmp_path / "lessons.safetensors")
    assert loaded.keys() == pools.keys()
    for name, taught in pools.items():
        for one, other in zip(taught, loaded[name], strict=True):
            assert equal(one, other)
            assert torch.equal(one.teacher.log_probs_NK.float(), other.teacher.log_probs_NK)
            assert torch.equal(one.teacher.tail_N.float(), other.teacher.tail_N)


def test_what_is_learned_tonight_is_also_read_with_the_context_before_it(tiny_model: Any, tiny_tokenizer: Any) -> None:
    read = read_beliefs(tiny_model, tiny_tokenizer, CONTEXTS, SAMPLES, top_k=3)
    reread = read_beliefs(tiny_model, tiny_tokenizer, CONTEXTS, SAMPLES, top_k=3, student_reads=True)
    for found, wanted in zip(reading_lessons(read), reread, strict=True):
        assert (found.ids, found.start) == (wanted.ids, wanted.start)
        assert torch.equal(found.teacher.tokens_NK, wanted.teacher.tokens_NK)
    assert reading_lessons(made_up.without_context(read)) == []
