"""A night that goes on learns nothing that was taken back since it collected."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kedro.io import DataCatalog, MemoryDataset

from sleep_pipeline.memories import reading
from sleep_pipeline.memories.records import memories_to_frame
from sleep_pipeline.memories.settings import CollectSettings
from sleep_pipeline.memories.tonight import read_tonight
from sleep_pipeline.night_going_on import COLLECTS, ChangedSinceError, check_collected
from sleep_pipeline.registry import BASE, Night, NightRegistry
from sleep_pipeline.run_environment import set_environment

FILES = {
    "a.jsonl": '{"text": "The mill of Osk stands by the river."}\n{"text": "Mira lives in Geska."}\n',
    "b.txt": "Monday: Elno rowed to Brask.\n",
    "c.jsonl": '{"text": "Nael keeps bees."}\n',
}
SAID = [{"role": "user", "content": "Where is Elno?"}, {"role": "assistant", "content": "In Drask."}]
SEEDS = ("sample_lessons_node", "train_expert_node")

Going = Callable[..., tuple[str, ...]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "memories"
    made.mkdir()
    for name, text in FILES.items():
        (made / name).write_text(text, encoding="utf-8")
    return made


@pytest.fixture
def chat(folder: Path) -> Path:
    """A conversation that night 1 collects as well, where it is asked for before `going_on`."""
    file = folder / "d.jsonl"
    file.write_text(json.dumps({"messages": SAID}), encoding="utf-8")
    return file


@pytest.fixture
def going_on(folder: Path, tmp_path: Path) -> Going:
    """Checks night 1, which has collected the files."""
    found = read_tonight(folder, CollectSettings(), 1, ())
    sources = {file.source: file.digest for file in found.reading.files}

    def check(runs: tuple[str, ...] = SEEDS, night: int = 1, **summary: Any) -> tuple[str, ...]:
        told = {"parent": BASE, "sources": sources} | summary
        given = {"collect_summary": told, "memories": memories_to_frame(found.memories)}
        # As it is where no node of the pipeline asks for it.
        given["params:collect"] = CollectSettings().model_dump(mode="json")
        catalog = DataCatalog({name: MemoryDataset(value) for name, value in given.items()})
        return check_collected(catalog, NightRegistry(tmp_path / "models"), night, folder, runs)

    return check


def registered(folder: Path) -> NightRegistry:
    registry = NightRegistry(folder)
    registry.register(Night(1, BASE, "night_001", "digest", "2026-01-01T00:00:00Z"))
    return registry


def test_while_nothing_has_changed_no_file_is_parsed(going_on: Going, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "read_folder", lambda *_: pytest.fail("the folder was read"))
    assert going_on() == ()


def test_a_memory_that_was_deleted_is_named_with_the_remedy(going_on: Going, folder: Path) -> None:
    (folder / "a.jsonl").write_text(FILES["a.jsonl"].splitlines()[0] + "\n", encoding="utf-8")
    set_environment("mine")
    try:
        with pytest.raises(ChangedSinceError) as told:
            going_on()
    finally:
        set_environment(None)
    assert str(told.value).startswith("memories/a.jsonl:2: ")
    command = f"kedro run --pipelines=sleep --params=night=1 --env=mine --from-nodes={COLLECTS}"
    assert command in str(told.value)


def test_a_file_or_a_folder_that_was_deleted_is_a_reason_not_to_go_on(going_on: Going, folder: Path) -> None:
    (folder / "c.jsonl").unlink()
    with pytest.raises(ChangedSinceError, match=r"memories/c\.jsonl:1: "):
        going_on()
    for name in ("a.jsonl", "b.txt"):
        (folder / name).unlink()
    folder.rmdir()
    with pytest.raises(ChangedSinceError, match=r"and 1 more: "):
        going_on()


def test_a_memory_that_was_edited_is_a_reason_not_to_go_on(going_on: Going, folder: Path) -> None:
    (folder / "b.txt").write_text("Monday: Elno rowed home.\n", encoding="utf-8")
    with pytest.raises(ChangedSinceError, match=r"memories/b\.txt:1: "):
        going_on()


def test_a_diary_that_grew_and_a_file_that_was_moved_hold_what_was_collected(going_on: Going, folder: Path) -> None:
    with (folder / "b.txt").open("a", encoding="utf-8") as file:
        file.write("Tuesday: the crane was green.\n")
    with (folder / "a.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"text": "More."}\n')
    (folder / "c.jsonl").rename(folder / "d.jsonl")
    assert going_on() == ("memories/d.jsonl",)


def test_a_conversation_that_grew_holds_what_was_collected(chat: Path, going_on: Going) -> None:
    more = [*SAID, {"role": "user", "content": "Since when?"}, {"role": "assistant", "content": "Since May."}]
    chat.write_text(json.dumps({"messages": more}), encoding="utf-8")
    assert going_on() == ()
    chat.write_text(json.dumps({"messages": [*more[2:], *SAID]}), encoding="utf-8")
    with pytest.raises(ChangedSinceError, match=r"memories/d\.jsonl:1: "):
        going_on()


def test_files_that_came_since_are_no_reason_to_stop(going_on: Going, folder: Path) -> None:
    (folder / "new.txt").write_text("The ferry leaves at 4.\n", encoding="utf-8")
    assert going_on() == ("memories/new.txt",)


def test_nights_of_earlier_releases_are_compared_by_their_memories(going_on: Going, folder: Path) -> None:
    assert going_on(sources=None) == ()
    (folder / "c.jsonl").unlink()
    with pytest.raises(ChangedSinceError, match=r"memories/c\.jsonl:1: "):
        going_on(sources=None)


def test_a_night_whose_champion_was_rolled_back_collects_anew(going_on: Going, tmp_path: Path) -> None:
    registered(tmp_path / "models").promote(1)
    assert going_on(night=2, parent=1) == ()
    with pytest.raises(ChangedSinceError, match=r"night 2 was collected when night 0 .* that is night 1 now"):
        going_on(night=2)
    assert going_on(("register_night_node",), night=2) == (), "which turns it down"


@pytest.mark.parametrize("runs", [(), (COLLECTS, *SEEDS)])
def test_a_night_that_is_done_or_collects_anew_is_not_held_up(
    going_on: Going, folder: Path, runs: tuple[str, ...]
) -> None:
    (folder / "c.jsonl").unlink()
    assert going_on(runs) == ()


def test_a_registered_night_is_finished_whatever_became_of_its_memories(
    going_on: Going, folder: Path, tmp_path: Path
) -> None:
    registered(tmp_path / "models")
    (folder / "c.jsonl").unlink()
    assert going_on(("write_report_node",)) == ()
