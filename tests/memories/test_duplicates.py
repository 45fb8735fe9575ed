import random

import pytest

from sleep_pipeline.memories import duplicates
from sleep_pipeline.memories.duplicates import drop_near_duplicates, jaccard, shingles
from sleep_pipeline.memories.records import Content, Memory
from sleep_pipeline.memories.settings import DuplicateSettings

SETTINGS = DuplicateSettings()
WORDS = [f"{a}{b}{c}" for a in "bdgklmnprst" for b in "aeiou" for c in "lmnrst"]


def memory(content: Content | str, line: int = 1) -> Memory:
    content = Content("text", text=content) if isinstance(content, str) else content
    digest = content.digest()
    said = (content.kind, content.text, content.messages, content.question, content.answer, content.label)
    return Memory(digest[:16], *said, "memories/a.jsonl", line, "2026-01-01T00:00:00Z", digest)


def passage(seed: int, words: int = 120) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def test_a_near_duplicate_is_dropped_and_recorded() -> None:
    first, other = memory(passage(1)), memory(passage(2), 2)
    again = memory(passage(1).upper().replace(" ", ", ") + "!", 3)
    result = drop_near_duplicates([first, other, again], SETTINGS)
    assert result.memories == (first, other)
    (dropped,) = result.duplicates
    assert (dropped.id, dropped.line, dropped.of, dropped.of_line, dropped.similarity) == (
        again.id,
        3,
        first.id,
        1,
        1.0,
    )


def test_the_threshold_decides() -> None:
    said = passage(1)
    words = said.split()
    near = " ".join([*words[:60], words[61], words[60], *words[62:]])
    similarity = jaccard(shingles(said, 3), shingles(near, 3))
    kept = {
        threshold: len(
            drop_near_duplicates([memory(said), memory(near)], DuplicateSettings(threshold=threshold)).memories
        )
        for threshold in (similarity - 0.01, similarity + 0.01)
    }
    assert 0.9 < similarity < 1 and list(kept.values()) == [1, 2]


def test_a_corrected_word_is_news() -> None:
    said = f"{passage(1)} the price is 40 marks in Drask"
    for corrected in (said.replace("40", "41"), said.replace("Drask", "Ulma"), said.replace("price", "fine")):
        assert len(drop_near_duplicates([memory(said), memory(corrected)], SETTINGS).memories) == 2
        careless = DuplicateSettings(keep_changed_facts=False)
        assert len(drop_near_duplicates([memory(said), memory(corrected)], careless).memories) == 1


def test_memories_that_differ_in_a_number_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    monkeypatch.setattr(duplicates, "jaccard", lambda one, other: compared.append(1) or jaccard(one, other))
    mails = [memory(f"{passage(1)} your order {number} was sent", number) for number in range(100)]
    result = drop_near_duplicates([*mails, memory(f"{mails[7].text}!", 100)], SETTINGS)
    assert result.memories == tuple(mails) and [item.of_line for item in result.duplicates] == [7]
    assert len(compared) == 1


def test_a_word_that_was_taken_back_is_news() -> None:
    said = f"{passage(1)} the door is not safe for heavy carts"
    assert len(drop_near_duplicates([memory(said), memory(said.replace("not ", ""))], SETTINGS).memories) == 2


def test_another_label_is_news() -> None:
    examples = [memory(Content("label", text=passage(1), label=label)) for label in ("good", "bad")]
    assert len(drop_near_duplicates(examples, SETTINGS).memories) == 2


def test_memories_of_earlier_nights_drop_new_ones_and_stay_out_of_the_night() -> None:
    earlier, new = memory(passage(1)), memory(passage(2))
    again = memory(passage(1) + ".")
    result = drop_near_duplicates([again, new], SETTINGS, earlier=[earlier])
    assert result.memories == (new,) and result.duplicates[0].of == earlier.id


def test_the_same_memories_give_the_same_result() -> None:
    memories = [memory(f"{passage(seed // 2)} {passage(seed // 2, seed % 2)}", seed) for seed in range(60)]
    assert drop_near_duplicates(memories, SETTINGS) == drop_near_duplicates(memories, SETTINGS)
    assert len(drop_near_duplicates(memories, SETTINGS).memories) == 30


def test_every_true_duplicate_among_many_is_found() -> None:
    originals = [memory(passage(seed), seed) for seed in range(200)]
    copies = [memory(f"{passage(seed)} {passage(seed, 1)}", 1000 + seed) for seed in range(200)]
    assert drop_near_duplicates([*originals, *copies], SETTINGS).memories == tuple(originals)


def test_short_texts_are_compared_whole() -> None:
    result = drop_near_duplicates([memory("yes"), memory("Yes!"), memory("no"), memory("...")], SETTINGS)
    assert [item.text for item in result.memories] == ["yes", "no", "..."]
