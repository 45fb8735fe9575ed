import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from sleep_pipeline.memories.records import Content, digests_of_beginnings, digests_of_turns
from sleep_pipeline.memories.settings import CollectSettings
from sleep_pipeline.memories.tonight import FAR_OFF, read_tonight, taken


def test_rows_that_were_bad_on_earlier_days_do_not_stop_a_later_night(tmp_path: Path) -> None:
    for day in range(1, 7):
        (tmp_path / f"day_{day}").mkdir()
        lines = [f'{{"text": "The ferry number {day} leaves quay {day} at {day} o\'clock sharp."}}', '{"text": ""}']
        (tmp_path / f"day_{day}" / "notes.jsonl").write_text("\n".join(lines) + "\n")
    known = {memory.digest for memory in read_tonight(tmp_path, CollectSettings(), 5, set()).memories}
    tonight = read_tonight(tmp_path, CollectSettings(), 6, known)
    assert len(tonight.refused) == 6 and tonight.learned >= 1
    assert len(tonight.refused) > len(tonight.memories), "by tonight alone the share of bad rows is too large"
    assert tonight.too_bad(0.6) is None


def test_pictures_among_notes_stop_no_night(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"note_{number}.md").write_text(f"The ferry number {number} leaves quay {number} at dawn.\n")
        (tmp_path / f"photo_{number}.png").write_bytes(b"\x89PNG")
        (tmp_path / f"scan_{number}.PDF").write_bytes(b"%PDF")
    tonight = read_tonight(tmp_path, CollectSettings(), 1, set())
    assert len(tonight.refused) == 6 and tonight.too_bad(0.1) is None
    for number in range(3):
        (tmp_path / f"list_{number}.json").write_text("[]")
    refused = read_tonight(tmp_path, CollectSettings(), 1, set()).too_bad(0.1)
    assert refused is not None and "3 of 6 could not be read" in refused


def test_what_lies_in_the_folder_of_a_later_night_waits(tmp_path: Path) -> None:
    for day in (1, 20260801):
        (tmp_path / f"day_{day}").mkdir()
        (tmp_path / f"day_{day}" / "notes.md").write_text(f"The ferry number {day} leaves at dawn.\n")
    tonight = read_tonight(tmp_path, CollectSettings(), 1, set())
    assert len(tonight.memories) == 1
    assert [Path(source).parts[-2:] for source in tonight.waiting] == [("day_20260801", "notes.md")]


def test_what_two_days_say_is_learned_on_the_earlier_one(tmp_path: Path) -> None:
    for day in (2, 10):
        (tmp_path / f"day_{day}").mkdir()
        (tmp_path / f"day_{day}" / "a.txt").write_text("Mira lives in Geska.", encoding="utf-8")
    tonight = read_tonight(tmp_path, CollectSettings(), 2, set())
    assert [memory.source for memory in tonight.memories] == [f"{tmp_path.name}/day_2/a.txt"]
    assert tonight.said_twice == ()
    (twice,) = read_tonight(tmp_path, CollectSettings(), 10, {tonight.memories[0].digest}).said_twice
    assert (twice.source, twice.of_source) == (f"{tmp_path.name}/day_10/a.txt", f"{tmp_path.name}/day_2/a.txt")


def nightly(folder: Path, days: list[str], settings: CollectSettings, name: str) -> list[list[str | None]]:
    """The texts that every night learns from one file, as it stands on each day."""
    known: set[str] = set()
    learned = []
    for night, text in enumerate(days, 1):
        (folder / name).write_text(text, encoding="utf-8")
        memories = read_tonight(folder, settings, night, known).memories
        known |= {memory.digest for memory in memories}
        learned.append([memory.text for memory in memories])
    return learned


def test_of_a_diary_that_grows_a_night_learns_what_is_new(tmp_path: Path) -> None:
    first = "Monday: Elno rowed to Brask.\n"
    second = f"{first}Tuesday: the crane was green.\n\nIt stood on quay 4.\n"
    third = f"{second}\nWednesday: Mira paid 42 crowns.\n"
    assert nightly(tmp_path, [first, second, second, third], CollectSettings(), "diary.txt") == [
        ["Monday: Elno rowed to Brask."],
        ["Tuesday: the crane was green.\n\nIt stood on quay 4."],
        [],
        ["Wednesday: Mira paid 42 crowns."],
    ]


def test_what_a_section_gains_keeps_its_headings(tmp_path: Path) -> None:
    first = "# Harbour\n\n## Cranes\nThe crane is green.\n"
    second = f"{first}The other one is red.\n\n## Ferries\nThe ferry leaves at 4.\n"
    assert nightly(tmp_path, [first, second], CollectSettings(keep_headings=True), "harbour.md")[1] == [
        "# Harbour\n## Cranes\nThe other one is red.",
        "# Harbour\n## Ferries\nThe ferry leaves at 4.",
    ]


def test_a_beginning_that_was_corrected_is_learned_again_with_what_follows(tmp_path: Path) -> None:
    days = ["The crane is green.\n", "The crane is red.\nIt stands on quay 4.\n"]
    assert nightly(tmp_path, days, CollectSettings(), "crane.txt")[1] == ["The crane is red.\nIt stands on quay 4."]


@given(st.lists(st.text('ab "\\\t\u0301é\U0001f980', max_size=6), min_size=1))
def test_a_beginnings_digest_is_that_of_a_memory_that_ends_there(lines: list[str]) -> None:
    wanted = [Content("text", text="\n".join(lines[:end])).digest() for end in range(1, len(lines) + 1)]
    assert list(digests_of_beginnings(lines)) == wanted


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.text('ab "\\\t\u0301é', max_size=6)), min_size=1))
def test_a_conversations_beginning_has_the_digest_of_a_memory_that_ends_there(turns: list[tuple[str, str]]) -> None:
    messages = [{"role": role, "content": text} for role, text in turns]
    wanted = [Content("chat", messages=tuple(messages[:end])).digest() for end in range(1, len(messages) + 1)]
    assert list(digests_of_turns(messages)) == wanted


def chatting(folder: Path, *exports: list[str]) -> list[list[list[str]]]:
    """What every night learns of conversations, a letter a turn: u is the user, all others are the assistant."""
    known: set[str] = set()
    learned = []
    for night, chats in enumerate(exports, 1):
        rows = [
            {
                "messages": [
                    {"role": "user" if name[0] == "u" else "assistant", "content": name} for name in chat.split()
                ]
            }
            for chat in chats
        ]
        (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        memories = read_tonight(folder, CollectSettings(), night, known).memories
        known |= {memory.digest for memory in memories}
        learned.append([[turn["content"] for turn in memory.messages] for memory in memories])
    return learned


def test_of_a_conversation_that_goes_on_a_night_learns_what_is_new(tmp_path: Path) -> None:
    first, second = "u1 a1 u2 a2", "u1 a1 u2 a2 u3 a3"
    assert chatting(tmp_path, [first], [second], [second], [f"{second} u4 a4"]) == [
        [first.split()],
        [["u3", "a3"]],
        [],
        [["u4", "a4"]],
    ]


def test_a_conversation_that_goes_on_without_a_question_or_a_reply_is_learned_whole(tmp_path: Path) -> None:
    longer = ["u1 a1 a2", "u2 a3 u4", "u5 a6 u7 a7"]
    assert chatting(tmp_path, ["u1 a1", "u2 a3", "u5 a5"], longer)[1] == [chat.split() for chat in longer]


def test_what_resembles_a_memory_of_an_earlier_night_is_not_learned_on_a_later_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Pluco Neayir has a phone with the number 2232.\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("Pluco Neayir has a phone with the number 2232!\n", encoding="utf-8")
    first = read_tonight(tmp_path, CollectSettings(), 1, ())
    assert [memory.source for memory in first.memories] == [f"{tmp_path.name}/a.txt"]
    second = read_tonight(tmp_path, CollectSettings(), 2, {memory.digest for memory in first.memories})
    assert second.memories == ()
    assert [item.source for item in second.said_twice] == [f"{tmp_path.name}/b.txt"]


def test_a_night_takes_what_is_of_earlier_days_first_and_otherwise_in_the_order_of_reading() -> None:
    sources = ["m/a.md", "m/b.md", "m/day_10/a.md", "m/day_2/a.md", "m/day_2/a.md", "m/day_2/b.md"]
    assert taken(sources, 3) == [0, 1, 3]
    assert taken(sources, 5) == [0, 1, 3, 4, 5]
    assert taken(sources, 9) == taken(sources, None) == list(range(6))


def test_night_after_night_of_a_few_memories_learns_them_all_once(tmp_path: Path) -> None:
    names = [f"{number:02d}.txt" for number in range(7)]
    for name in names:
        (tmp_path / name).write_text(f"Ferry {name} leaves quay {name}.\n", encoding="utf-8")
    known: set[str] = set()
    nights = []
    for night in range(1, 4):
        found = read_tonight(tmp_path, CollectSettings(), night, known).memories
        new = [found[at] for at in taken([memory.source for memory in found], 3)]
        known.update(memory.digest for memory in new)
        nights.append([Path(memory.source).name for memory in new])
    assert nights == [names[:3], names[3:6], names[6:]]


def test_a_date_in_the_name_of_a_folder_is_noticed(tmp_path: Path) -> None:
    for day in (3, 5 + FAR_OFF, 20261128):
        (tmp_path / f"day_{day}").mkdir()
        for name in ("a.md", "b.md"):
            (tmp_path / f"day_{day}" / name).write_text(f"On day {day} the ferry {name} is late.\n", encoding="utf-8")
    found = read_tonight(tmp_path, CollectSettings(), 5, ())
    assert found.far_off(5) == {20261128: f"{tmp_path.name}/day_20261128/a.md"}
    assert set(found.far_off(1)) == {5 + FAR_OFF, 20261128}
