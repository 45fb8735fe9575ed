import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from kedro.io import DatasetError

from sleep_pipeline.datasets import FileDataset


@pytest.mark.parametrize(("form", "data"), [("json", {"a": [1, None, "ü"]}), ("text", "ä\nb")])
def test_what_is_saved_is_loaded(tmp_path: Path, form: Any, data: Any) -> None:
    dataset = FileDataset(str(tmp_path / "deep" / "file"), form)
    assert not dataset.exists()
    dataset.save(data)
    assert dataset.exists()
    assert dataset.load() == data


def test_json_is_what_it_was_but_for_lists_of_numbers_which_take_one_line(tmp_path: Path) -> None:
    data = {"scores": [[[1, 0, 1]], [[1, 1, 1], []]], "before": [None, [0.5]], "kinds": {}, 'ü"': ["a", "b"], 3: True}
    dataset = FileDataset(str(tmp_path / "f.json"), "json")
    dataset.save(data)
    assert dataset.load() == json.loads(json.dumps(data))
    lines = [line.strip() for line in dataset.path.read_text(encoding="utf-8").splitlines()]
    assert "[1, 0, 1]" in lines and '"ü\\"": [' in lines and '"3": true' in lines
    dataset.path.write_text(json.dumps(data, indent=2), encoding="utf-8")
    assert dataset.load() == json.loads(json.dumps(data)), "as earlier releases wrote it"


def test_tables_keep_their_types(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": pd.Series(["x", "y"], dtype="string"), "b": [1, 2]})
    dataset = FileDataset(str(tmp_path / "t.parquet"), "parquet")
    dataset.save(table)
    pd.testing.assert_frame_equal(dataset.load(), table)


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    dataset = FileDataset(str(tmp_path / "f.json"), "json")
    dataset.save({"old": 1})
    with pytest.raises(DatasetError):
        dataset.save({"new": float("nan")})
    assert dataset.load() == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["f.json"]


def test_a_half_written_file_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    (tmp_path / ".f.json.123.partial").write_text("{", encoding="utf-8")
    assert not FileDataset(str(tmp_path / "f.json"), "json").exists()


def test_an_unknown_format_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="pickle"):
        FileDataset(str(tmp_path / "f"), "pickle")  # type: ignore[arg-type]
