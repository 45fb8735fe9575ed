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
