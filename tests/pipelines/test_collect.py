from pathlib import Path

import pandas as pd
import pytest
from kedro.framework.hooks.manager import _create_hook_manager
from kedro.io import DataCatalog, MemoryDataset
from kedro.runner import SequentialRunner

from sleep_pipeline.datasets import FileDataset
from sleep_pipeline.memories.reading import day_of
from sleep_pipeline.memories.settings import CollectSettings
from sleep_pipeline.night_model import MachineSettings
from sleep_pipeline.pipelines.collect import create_pipeline
from sleep_pipeline.pipelines.collect.nodes import NothingNewError, collect_memories, make_contexts
from sleep_pipeline.registry import Night, NightRegistry
from sleep_pipeline.tracking.hooks import MlflowHook
from sleep_pipeline.validation.rows import TooManyFailures

GOOD = '{"text": "The mill of Osk stands by the river."}\n{"text": "Mira lives in Geska."}\n'


def inbox(tmp_path: Path, **files: str) -> tuple[Path, Path]:
    memories, models = tmp_path / "memories", tmp_path / "models"
    models.mkdir()
    for name, text in files.items():
        path = memories / name.replace("__", "/").replace("_jsonl", ".jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return memories, models


@pytest.mark.parametrize(
    ("source", "day"), [("memories/day_3/a.md", 3), ("memories/a.md", 0), ("memories/today_4/a.md", 0)]
)
def test_a_folder_named_after_a_day_waits_for_it(source: str, day: int) -> None:
    assert day_of(source) == day


@pytest.mark.slow
def test_a_night_reads_its_own_days_and_what_has_no_day(tmp_path: Path) -> None:
    memories, models = inbox(
        tmp_path, day_1__a_jsonl=GOOD, day_2__b_jsonl='{"text": "Later."}\n', c_jsonl='{"text": "Ever."}\n'
    )
    first, *_ = collect_memories(CollectSettings(), 1, memories, models)
    second, *_ = collect_memories(CollectSettings(), 2, memories, models)
    assert set(first["text"]) == {"The mill of Osk stands by the river.", "Mira lives in Geska.", "Ever."}
    assert set(second["text"]) - set(first["text"]) == {"Later."}


def test_bad_rows_go_to_quarantine_with_file_and_line_and_good_ones_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    memories, models = inbox(tmp_path, a_jsonl=GOOD + '{"text": ""}\n')
    with caplog.at_level("WARNING"):
        good, quarantine, summary, page = collect_memories(CollectSettings(), 1, memories, models)
    assert [record.name for record in caplog.records] == ["sleep_pipeline.pipelines.collect.nodes"]
    assert len(good) == 2
    assert list(zip(quarantine["source"], quarantine["line"], strict=True)) == [("memories/a.jsonl", 3)]
    assert "empty" in quarantine["reason"][0]
    assert summary["memories"] == 2
    assert summary["quarantined"] == 1
    assert "Memories of night 1" in page


def test_what_a_night_does_not_take_stays_new(tmp_path: Path) -> None:
    memories, models = inbox(tmp_path, a_jsonl=GOOD)
    few = CollectSettings(at_most=1)
    first, _, summary, _ = collect_memories(few, 1, memories, models)
    assert list(first["text"]) == ["The mill of Osk stands by the river."]
    assert (summary["memories"], summary["left_for_later"], summary["kinds"]) == (1, 1, {"text": 1})
    registry = NightRegistry(models)
    registry.register(Night(1, 0, "night_001", "digest", "2026-01-01T00:00:00Z", memories=tuple(first["digest"])))
    registry.promote(1)
    second, _, summary, _ = collect_memories(few, 2, memories, models)
    assert list(second["text"]) == ["Mira lives in Geska."]
    assert (summary["left_for_later"], summary["parent"]) == (0, 1)


@pytest.mark.slow
def test_what_the_champion_knows_is_not_new(tmp_path: Path) -> None:
    memories, models = inbox(tmp_path, a_jsonl=GOOD)
    good, *_ = collect_memories(CollectSettings(), 1, memories, models)
    registry = NightRegistry(models)
    registry.register(Night(1, 0, "night_001", "digest", "2026-01-01T00:00:00Z", memories=tuple(good["digest"])))
    again, *_ = collect_memories(CollectSettings(), 2, memories, models)
    assert len(again) == 2, "a night that was not promoted has taught nothing"
    registry.promote(1)
    with pytest.raises(NothingNewError, match="no new memory for night 2"):
        collect_memories(CollectSettings(), 2, memories, models)


@pytest.mark.slow
def test_too_many_bad_rows_stop_the_night(tmp_path: Path) -> None:
    memories, models = inbox(tmp_path, a_jsonl='{"text": "Good."}\n' + '{"text": ""}\n' * 3)
    with pytest.raises(TooManyFailures, match=r"3 of 4 could not be read.*a\.jsonl:2"):
        collect_memories(CollectSettings(), 1, memories, models)


def run(folder: Path, memories: Path, models: Path, night: int) -> None:
    """Run the nodes that have something to do, with the hook that a run has."""
    files = {"memories": "parquet", "quarantine": "parquet", "collect_summary": "json", "memory_checks": "text"}
    files["contexts"] = "parquet"
    given = {"params:collect": CollectSettings(), "params:night": night, "params:model": "embedded"}
    given |= {"params:machine": MachineSettings(), "memories_folder": memories, "models_folder": models}
    written = {name: FileDataset(str(folder / "out" / name), form) for name, form in files.items()}  # type: ignore[arg-type]
    catalog = DataCatalog({**{name: MemoryDataset(value) for name, value in given.items()}, **written})
    hooks = _create_hook_manager()
    hooks.register(MlflowHook())
    SequentialRunner().run(create_pipeline(), catalog, hook_manager=hooks, only_missing_outputs=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "error"),
    [('{"text": "Good."}\n' + '{"text": ""}\n' * 5, TooManyFailures), ('{"text": "Twice."}\n' * 2, NothingNewError)],
)
def test_a_night_that_cannot_begin_leaves_its_quarantine_and_goes_on_when_the_files_are_mended(
    tmp_path: Path, text: str, error: type[Exception]
) -> None:
    memories, models = inbox(tmp_path, a_jsonl=text)
    if error is NothingNewError:
        good, *_ = collect_memories(CollectSettings(), 1, memories, models)
        registry = NightRegistry(models)
        registry.register(Night(1, 0, "night_001", "digest", "2026-01-01T00:00:00Z", memories=tuple(good["digest"])))
        registry.promote(1)
    with pytest.raises(error, match=r"quarantine\.parquet"):
        run(tmp_path, memories, models, 2)
    quarantine = pd.read_parquet(tmp_path / "out/quarantine")
    assert list(quarantine["line"]) == ([2] if error is NothingNewError else [2, 3, 4, 5, 6])
    assert "Memories of night 2" in (tmp_path / "out/memory_checks").read_text(encoding="utf-8")
    assert not (tmp_path / "out/memories").exists()

    (memories / "a.jsonl").write_text(GOOD, encoding="utf-8")
    run(tmp_path, memories, models, 2)
    assert len(pd.read_parquet(tmp_path / "out/quarantine")) == 0
    assert len(pd.read_parquet(tmp_path / "out/contexts")) == 2


def test_contexts_hold_every_memory(tmp_path: Path) -> None:
    memories, models = inbox(tmp_path, a_jsonl=GOOD)
    good, *_ = collect_memories(CollectSettings(), 1, memories, models)
    contexts = make_contexts(good, "embedded", MachineSettings(), CollectSettings())
    assert list(contexts["text"]) == list(good["text"])
    assert (contexts["tokens"] > 0).all()
