"""What is checked before a night begins."""

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from kedro.framework.project import pipelines
from kedro.framework.startup import bootstrap_project
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Pipeline, node

from sleep_pipeline import night_hook
from sleep_pipeline.datasets import FileDataset
from sleep_pipeline.evaluation.probes import ProbeError
from sleep_pipeline.evaluation.settings import EvaluationSettings
from sleep_pipeline.evaluation.texts import TextsError
from sleep_pipeline.memories.records import Memory, memories_to_frame
from sleep_pipeline.memories.settings import CollectSettings
from sleep_pipeline.night_going_on import ChangedSinceError, with_what_follows
from sleep_pipeline.night_hook import NightHook, NightRoomError, check_ancestors, check_judge, check_register
from sleep_pipeline.night_lock import LOCK
from sleep_pipeline.night_number import next_number
from sleep_pipeline.registry import BASE, MANIFEST, Night, NightRegistry, PrunedError, RegistryError, manifest_digest

NIGHT = Pipeline([node(lambda folder: None, "models_folder", None, name="sleeps", tags=["night"])])
Usage = namedtuple("Usage", ("total", "used", "free"))


def begin(folder: Path, pipeline: Pipeline = NIGHT, **inputs: Any) -> NightHook:
    hook = NightHook()
    given = {"models_folder": folder, **{name.replace("params_", "params:"): value for name, value in inputs.items()}}
    named = {"runtime_params": {"night": inputs["params_night"]}} if "params_night" in inputs else {}
    hook.before_pipeline_run(
        named, pipeline, DataCatalog({name: MemoryDataset(value) for name, value in given.items()})
    )
    return hook


def reading(*inputs: str) -> Pipeline:
    """A night whose node has further inputs."""
    names = ["models_folder", *inputs]
    return Pipeline([node(lambda *_: None, names, None, name="sleeps", tags=["night"])])


def registered(folder: Path, *numbers: int) -> None:
    registry = NightRegistry(folder)
    for number in numbers:
        checkpoint = folder / f"night_{number:03d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / MANIFEST).write_text("{}", encoding="utf-8")
        registry.register(Night(number, BASE, checkpoint.name, manifest_digest(checkpoint), "2026-11-25T03:00:00Z"))


def test_a_night_holds_the_lock_of_its_folder_and_leaves_nothing_else_there(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    hook = begin(folder)
    assert (folder / LOCK).exists()
    before = {path.name for path in folder.iterdir()}
    hook.after_pipeline_run()
    assert {path.name for path in folder.iterdir()} == before - {LOCK}


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_done(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(NightRoomError, match=r"file/models cannot be written \(Not a directory\).*make it writable"):
        begin(tmp_path / "file" / "models")


def test_a_read_only_file_system_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuses)
    with pytest.raises(NightRoomError, match="Read-only file system"):
        begin(tmp_path)
    assert not (tmp_path / LOCK).exists()


def test_a_disk_that_is_nearly_full_is_a_reason_not_to_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**40, 2**40 - 2**20, 2**20))
    with pytest.raises(NightRoomError, match=r"has 1 MiB left, and a night needs at least 256.*make room"):
        begin(tmp_path)
    assert not (tmp_path / LOCK).exists()


def test_room_is_wanted_for_checkpoints_as_large_as_the_last_nights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered(tmp_path, 1)
    with (tmp_path / NightRegistry(tmp_path).night(1).checkpoint / "large").open("wb") as file:
        file.truncate(100 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**40, 2**40 - 299 * 2**20, 299 * 2**20))
    with pytest.raises(NightRoomError, match=r"has 299 MiB left, and a night needs at least 300"):
        begin(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**40, 2**40 - 301 * 2**20, 301 * 2**20))
    begin(tmp_path).after_pipeline_run()


def test_a_night_older_than_the_last_one_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    registered(tmp_path, 1, 4)
    with pytest.raises(RegistryError, match=r"night 2 would be refused.*night 4 is registered: run it as night 5"):
        begin(tmp_path, reading("params:night"), params_night=2)
    assert not (tmp_path / LOCK).exists()


@pytest.mark.parametrize("night", [1, 4, 5, 7])
def test_a_night_that_is_registered_or_to_come_may_run(tmp_path: Path, night: int) -> None:
    registered(tmp_path, 1, 4)
    begin(tmp_path, reading("params:night"), params_night=night).after_pipeline_run()


def writing(name: str) -> Pipeline:
    """A node of a night that leaves a record; like some of the real ones it does not ask for the night's number."""
    return Pipeline([node(lambda *_: 1, "models_folder", "record", name=name, tags=["night"])])


@pytest.mark.parametrize("name", ["collect_memories_node", "make_contexts_node", "decide_night_node"])
def test_the_records_of_a_registered_night_are_not_overwritten(tmp_path: Path, name: str) -> None:
    registered(tmp_path, 1)
    with pytest.raises(RegistryError, match=rf"night 1 is registered, and {name} would make its record anew.*night 2"):
        begin(tmp_path, writing(name), params_night=1)
    assert not (tmp_path / LOCK).exists()
    begin(tmp_path, writing(name), params_night=2).after_pipeline_run()


@pytest.mark.parametrize("only_missing", [False, True])
def test_what_is_done_again_is_no_longer_there_when_its_run_dies(tmp_path: Path, only_missing: bool) -> None:
    record = FileDataset(str(tmp_path / "record"), "json")
    record.save({})
    given = {"models_folder": MemoryDataset(tmp_path), "params:night": MemoryDataset(1)}
    hook = NightHook()
    parameters = {"only_missing_outputs": only_missing}
    hook.before_pipeline_run(parameters, writing("make_contexts_node"), DataCatalog(given | {"record": record}))
    hook.on_pipeline_error()
    assert record.exists() == only_missing


@pytest.mark.parametrize("only_missing", [False, True])
def test_what_was_made_from_what_is_done_again_is_no_longer_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, only_missing: bool
) -> None:
    """A run of one node, or of one phase; the rest of the night would go on with what is no more."""
    trains = node(lambda *_: 1, "models_folder", "seeded", name="train_expert_node", tags=["night"])
    reads = [node(lambda *_: 1, "seeded", "refined"), node(lambda *_: 1, "refined", "measured")]
    before = node(lambda *_: 1, "models_folder", "lessons")
    monkeypatch.setattr(night_hook, "_whole_night", lambda _: Pipeline([before, trains, *reads]))
    files = {name: FileDataset(str(tmp_path / name), "json") for name in ("lessons", "seeded", "refined", "measured")}
    for file in files.values():
        file.save({})
    given = {"models_folder": MemoryDataset(tmp_path), "params:night": MemoryDataset(1)}
    hook = NightHook()
    hook.before_pipeline_run({"only_missing_outputs": only_missing}, Pipeline([trains]), DataCatalog(given | files))
    hook.on_pipeline_error()
    there = {name for name, file in files.items() if file.exists()}
    assert there == (set(files) if only_missing else {"lessons"})


def test_a_phase_is_part_of_the_whole_night(project_root: Path) -> None:
    bootstrap_project(project_root)
    pipelines.set_requested(["collect"])
    try:
        follows = with_what_follows(pipelines["collect"].nodes, night_hook._whole_night(pipelines["collect"]))
        assert [each.name for each in follows][-1] == "write_report_node"
        assert list(pipelines) == ["collect"], "the run has not got what it asked for"
    finally:
        pipelines.set_requested(None)


@pytest.mark.parametrize("name", ["register_night_node", "write_report_node"])
def test_what_a_registered_night_still_lacks_is_made(tmp_path: Path, name: str) -> None:
    registered(tmp_path, 1)
    begin(tmp_path, writing(name), params_night=1).after_pipeline_run()


def test_a_report_whose_checkpoint_was_pruned_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    registered(tmp_path, 1)
    inputs = ["models_folder", "night_model"]
    reports = Pipeline([node(lambda *_: 1, inputs, "record", name="write_report_node", tags=["night"])])
    begin(tmp_path, reports, params_night=1).after_pipeline_run()
    NightRegistry(tmp_path).prune([1])
    shutil.rmtree(tmp_path / "night_001")
    with pytest.raises(PrunedError, match=r"night 1 was pruned.*nor its report be written again"):
        begin(tmp_path, reports, params_night=1)
    assert not (tmp_path / LOCK).exists()


def test_writing_a_report_again_is_recommended_only_where_it_can_be_done(tmp_path: Path) -> None:
    registered(tmp_path, 1)
    with pytest.raises(RegistryError, match=r"would make its record anew.*--from-nodes=write_report_node"):
        begin(tmp_path, writing("collect_memories_node"), params_night=1)
    NightRegistry(tmp_path).prune([1])
    shutil.rmtree(tmp_path / "night_001")
    with pytest.raises(RegistryError, match="would make its record anew") as told:
        begin(tmp_path, writing("collect_memories_node"), params_night=1)
    assert "write_report_node" not in str(told.value)


def test_what_a_registered_night_has_is_left_out_and_so_no_reason_to_refuse(tmp_path: Path) -> None:
    registered(tmp_path, 1)
    (tmp_path / "record").write_text("{}", encoding="utf-8")
    given = {"models_folder": MemoryDataset(tmp_path), "params:night": MemoryDataset(1)}
    catalog = DataCatalog(given | {"record": FileDataset(str(tmp_path / "record"), "json")})
    hook = NightHook()
    hook.before_pipeline_run({"only_missing_outputs": True}, writing("collect_memories_node"), catalog)
    hook.after_pipeline_run()


def test_a_memory_that_was_taken_back_is_named_before_anything_is_done(tmp_path: Path) -> None:
    (tmp_path / "memories").mkdir()
    memory = Memory("1a", "text", "Gone.", (), None, None, None, "memories/a.md", 3, "2026-01-01T00:00:00Z", "1a")
    given = {"params_night": 1, "params_collect": CollectSettings(), "memories_folder": tmp_path / "memories"}
    given |= {"memories": memories_to_frame([memory]), "collect_summary": {"parent": BASE, "sources": {}}}
    with pytest.raises(ChangedSinceError, match=r"memories/a\.md:3: no longer"):
        begin(tmp_path / "models", reading("params:night"), **given)
    assert list((tmp_path / "models").iterdir()) == []


def test_a_probe_that_cannot_be_read_is_named_before_anything_is_done(tmp_path: Path) -> None:
    folder = tmp_path / "probes"
    folder.mkdir()
    (folder / "mine.jsonl").write_text('{"question": "Who?", "answer": "Mira"}\n', encoding="utf-8")
    with pytest.raises(ProbeError, match=r"probes/mine\.jsonl:1: .*\"source\" is missing"):
        begin(tmp_path / "models", reading("probes_folder"), probes_folder=folder)
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize(("texts", "reason"), [("none/*.txt", "matches no file"), ("old.txt", "is not UTF-8")])
def test_texts_that_the_evaluation_could_not_read_are_named_before_anything_is_done(
    tmp_path: Path, texts: str, reason: str
) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/old.txt").write_bytes(b"caf\xe9")
    evaluation = EvaluationSettings(texts=(texts,))
    evaluates = reading("params:evaluation", "raw_folder")
    with pytest.raises(TextsError, match=reason):
        begin(tmp_path / "models", evaluates, params_evaluation=evaluation, raw_folder=tmp_path / "raw")
    assert list((tmp_path / "models").iterdir()) == []


def test_a_register_that_lacks_the_night_is_no_reason_to_do_nothing(tmp_path: Path) -> None:
    models, reports = tmp_path / "models", tmp_path / "reports"
    (reports / "night_001").mkdir(parents=True)
    (reports / "night_001" / "registered.json").write_text("{}", encoding="utf-8")
    given = {"params_night": 1, "reporting_folder": reports}
    with pytest.raises(RegistryError, match=r"says that night 1 is registered.*dvc restore"):
        begin(models, reading("params:night"), **given)
    registered(models, 1)
    begin(models, reading("params:night"), **given).after_pipeline_run()


def test_a_night_that_was_counted_by_another_register_must_be_named(tmp_path: Path) -> None:
    registered(tmp_path, 1, 2)
    with pytest.raises(RegistryError, match=r"next one is night 1, and the register in .* says 3.*--params=night=3"):
        check_register(NightRegistry(tmp_path), 1, False, tmp_path)
    check_register(NightRegistry(tmp_path), 1, True, tmp_path)
    check_register(NightRegistry(tmp_path), 3, False, tmp_path)


def test_a_night_that_ended_before_its_report_is_the_next_one_again(tmp_path: Path) -> None:
    models, reports = tmp_path / "models", tmp_path / "reports"
    registry = NightRegistry(models)
    assert next_number(registry, reports) == 1
    registered(models, 1, 2)
    assert next_number(registry, reports) == 3, "what was cleared away is not done again"
    (reports / "night_002").mkdir(parents=True)
    (reports / "night_002" / "metrics.json").touch()
    assert next_number(registry, reports) == 2
    (reports / "night_002" / "report.html").touch()
    assert next_number(registry, reports) == 3


@pytest.mark.parametrize("gone", ["contexts.parquet", "probes.parquet", "metrics.json"])
def test_what_later_nights_are_compared_by_must_be_there(tmp_path: Path, gone: str) -> None:
    registered(tmp_path, 1)
    registry = NightRegistry(tmp_path)
    check_ancestors(registry, tmp_path, tmp_path)
    registry.promote(1)
    for name in ("contexts.parquet", "probes.parquet", "metrics.json", "retention.json"):
        (tmp_path / "night_001" / name).touch()
    check_ancestors(registry, tmp_path, tmp_path)
    (tmp_path / "night_001" / gone).unlink()
    with pytest.raises(RegistryError, match=f"night_001/{gone} is gone.*dvc pull"):
        check_ancestors(registry, tmp_path, tmp_path)


def test_nights_that_are_compared_must_be_judged_alike(tmp_path: Path) -> None:
    ours = EvaluationSettings()
    registered(tmp_path, 1, 2)
    registry = NightRegistry(tmp_path)
    check_judge(registry, tmp_path, ours)
    registry.promote(1)
    metrics = tmp_path / "night_001" / "metrics.json"
    for known in ({"asked": ours.asked()}, {}):
        metrics.write_text(json.dumps(known), encoding="utf-8")
        check_judge(registry, tmp_path, ours)
    metrics.write_text(json.dumps({"asked": ours.asked() | {"match": "contains"}}), encoding="utf-8")
    with pytest.raises(
        RegistryError, match=r"night 1 was judged with evaluation\.match=contains.*tonight.*evaluation\.match=exact"
    ):
        check_judge(registry, tmp_path, ours)


def test_a_night_in_several_processes_is_refused_before_one_locks_out_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match=r"one of 2 \(WORLD_SIZE\).*without a launcher"):
        begin(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "1")
    begin(tmp_path).after_pipeline_run()
