"""What is checked before a night begins."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Pipeline, node

from sleep_pipeline.night_hook import NightHook, NightRoomError
from sleep_pipeline.night_lock import LOCK

NIGHT = Pipeline([node(lambda folder: None, "models_folder", None, name="sleeps", tags=["night"])])
Usage = namedtuple("Usage", ("total", "used", "free"))


def begin(folder: Path) -> NightHook:
    hook = NightHook()
    hook.before_pipeline_run(NIGHT, DataCatalog({"models_folder": MemoryDataset(folder)}))
    return hook


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
