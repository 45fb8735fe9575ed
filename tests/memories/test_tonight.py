from pathlib import Path

from sleep_pipeline.memories.settings import CollectSettings
from sleep_pipeline.memories.tonight import read_tonight


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
