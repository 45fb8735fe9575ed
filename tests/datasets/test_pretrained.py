from pathlib import Path
from typing import Any

import pytest
from kedro.io import DatasetError

from sleep_pipeline.datasets import FolderDataset, Pretrained, PretrainedDataset
from sleep_pipeline.datasets.pretrained import check_files


class _Part:
    def __init__(self, text: str, fails: bool = False) -> None:
        self.text, self.fails = text, fails

    def save_pretrained(self, save_directory: str) -> Any:
        (Path(save_directory) / "part.txt").write_text(self.text)
        if self.fails:
            raise OSError("disk full")


@pytest.fixture
def dataset(tmp_path: Path) -> PretrainedDataset:
    return PretrainedDataset(str(tmp_path / "checkpoint"))


def _text(dataset: PretrainedDataset) -> str:
    return (dataset.load() / "part.txt").read_text()


def test_it_exists_once_it_is_saved_and_loads_as_its_folder(dataset: PretrainedDataset) -> None:
    assert not dataset.exists()
    dataset.save(Pretrained((_Part("one"),), {"step": 1}))
    assert dataset.exists()
    assert _text(dataset) == "one"


def test_a_later_save_replaces_the_whole_folder(dataset: PretrainedDataset) -> None:
    dataset.save(Pretrained((_Part("one"),)))
    (dataset.load() / "stray.txt").write_text("old")
    dataset.save(Pretrained((_Part("two"),)))
    assert _text(dataset) == "two"
    assert not (dataset.load() / "stray.txt").exists()


def test_a_save_that_fails_leaves_the_checkpoint_as_it_was(dataset: PretrainedDataset) -> None:
    dataset.save(Pretrained((_Part("one"),)))
    with pytest.raises(DatasetError, match="disk full"):
        dataset.save(Pretrained((_Part("half", fails=True),)))
    assert _text(dataset) == "one"


def test_a_crash_between_the_renames_of_a_save_loses_nothing(dataset: PretrainedDataset, tmp_path: Path) -> None:
    dataset.save(Pretrained((_Part("one"),)))
    (tmp_path / "checkpoint").rename(tmp_path / "checkpoint.retired")
    assert dataset.exists()
    assert _text(dataset) == "one"


def test_a_folder_without_manifest_is_no_checkpoint(dataset: PretrainedDataset, tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    assert not dataset.exists()
    with pytest.raises(DatasetError, match="no complete checkpoint"):
        dataset.load()


def test_a_checkpoint_that_was_cleared_is_not_there_until_one_is_saved_again(dataset: PretrainedDataset) -> None:
    dataset.clear()
    for text in ("one", "two"):
        dataset.save(Pretrained((_Part(text),)))
        assert dataset.exists()
        dataset.clear()
        assert not dataset.exists()


def test_a_folder_data_set_makes_its_folder_and_takes_no_data(tmp_path: Path) -> None:
    folder = FolderDataset(str(tmp_path / "a" / "b"))
    assert not folder.exists()
    assert folder.load().is_dir()
    assert folder.exists()
    with pytest.raises(DatasetError):
        folder.save("anything")  # type: ignore[arg-type]


def test_a_checkpoint_knows_when_a_file_of_it_is_not_the_one_that_was_saved(dataset: PretrainedDataset) -> None:
    dataset.save(Pretrained((_Part("one"),)))
    folder = dataset.load()
    check_files(folder, "mend it")
    written = next(path for path in sorted(folder.iterdir()) if path.name != "manifest.json")
    written.write_text("something else")
    with pytest.raises(ValueError, match=f"{written.name} has the digest .*: mend it"):
        check_files(folder, "mend it")
    written.unlink()
    with pytest.raises(ValueError, match=f"{written.name} is missing"):
        check_files(folder, "mend it")
