import json
import re
from pathlib import Path

import pytest

from sleep_pipeline.corpora.week import DAYS, DOCUMENTS, FACTS, write_week
from sleep_pipeline.memories.reading import Reading, read_folder
from sleep_pipeline.memories.settings import CollectSettings


def files(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
        for place in ("memories", "probes")
        for path in sorted((folder / place).rglob("*"))
        if path.is_file()
    }


def probes(folder: Path, day: int) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "probes" / f"day_{day}.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def week(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("week")
    write_week(folder)
    return folder


@pytest.fixture(scope="module")
def reading(week: Path) -> Reading:
    return read_folder(week / "memories", CollectSettings())


def test_the_week_in_the_repository_is_the_one_that_is_written(week: Path, project_root: Path) -> None:
    assert files(project_root / "data" / "01_raw") == files(week)


def test_another_seed_writes_another_week(week: Path, tmp_path: Path) -> None:
    write_week(tmp_path, seed=5)
    assert files(tmp_path).keys() == files(week).keys()
    assert not {probe["question"] for probe in probes(tmp_path, 1)} & {probe["question"] for probe in probes(week, 1)}


@pytest.mark.parametrize("day", range(1, DAYS + 1))
def test_a_day_has_eight_documents_in_four_kinds_of_memory_and_two_or_three_bad_rows(
    reading: Reading, day: int
) -> None:
    here = f"memories/day_{day}/"
    found = [memory for memory in reading.memories if memory.source.startswith(here)]
    kinds = [memory.kind for memory in found]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"text": 6, "chat": 1, "qa": FACTS}
    bad = [item for item in (*reading.rejected, *reading.duplicates) if item.source.startswith(here)]
    assert 2 <= len(bad) <= 3


@pytest.mark.parametrize("day", range(1, DAYS + 1))
def test_every_probe_is_answered_by_the_memory_that_it_names(week: Path, reading: Reading, day: int) -> None:
    told = {f"{memory.source}:{memory.line}": memory.rendered() for memory in reading.memories}
    asked = probes(week, day)
    assert len(asked) == DOCUMENTS * FACTS
    assert [probe for probe in asked if probe["answer"].lower() not in told[probe["source"]].lower()] == []


def test_no_probe_is_asked_twice_or_stands_among_the_memories(week: Path, reading: Reading) -> None:
    asked = [probe["question"] for day in range(1, DAYS + 1) for probe in probes(week, day)]
    assert len(set(asked)) == len(asked) == DAYS * DOCUMENTS * FACTS
    whole = "\n".join(memory.rendered() for memory in reading.memories)
    assert [question for question in asked if question in whole] == []


def test_the_bad_rows_of_the_week_are_of_many_kinds(reading: Reading) -> None:
    kinds = {re.sub(r"[\d']+", "", item.reason) for item in reading.rejected}
    assert len(kinds) >= 12 and len(reading.duplicates) == 1
    assert {kind: sum(m.masked.get(kind, 0) for m in reading.memories) for kind in ("email", "secret")} == {
        "email": 1,
        "secret": 1,
    }
