"""`prune` on a life with promoted, rejected, rolled-back and unfinished nights."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sleep_pipeline.cli import cli
from sleep_pipeline.night_lock import NightLock
from sleep_pipeline.pipelines.seed.nodes import parent_checkpoint
from sleep_pipeline.registry import BASE, MANIFEST, Night, NightRegistry, PrunedError, RegistryError, manifest_digest

CATALOG = """
_night: ${night_folder:${globals:life},${runtime_params:night,null}}
models_folder: {type: sleep_pipeline.datasets.FolderDataset, filepath: "data/06_models/${globals:life}"}
reporting_folder: {type: sleep_pipeline.datasets.FolderDataset, filepath: "data/08_reporting/${globals:life}"}
seeded_model: {type: kedro.io.MemoryDataset, filepath: "data/06_models/${globals:life}/seeded/${_night}"}
dreamer: {type: kedro.io.MemoryDataset, filepath: "data/06_models/${globals:life}/dreamer/${_night}"}
seed_progress_folder: {type: kedro.io.MemoryDataset, filepath: "data/06_models/${globals:life}/progress/${_night}"}
"""
PARTS = ("seeded", "dreamer", "progress")


def model(folder: Path, night: int, parent: int, size: int = 1000) -> None:
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text(json.dumps({"night": night, "parent": parent}), encoding="utf-8")
    (folder / "weights").write_bytes(bytes(size))


def live(project: Path, number: int, parent: int, outcome: str = "promoted", life: str = ".") -> None:
    """A night with all its models; its outcome is that of the gate, or `unfinished` before it was registered."""
    registry = NightRegistry(project / "data/06_models" / life)
    name = f"night_{number:03d}"
    model(registry.folder / name, number, parent)
    for part in PARTS:
        model(registry.folder / part / name, number, parent)
    if outcome == "unfinished":
        return
    reports = project / "data/08_reporting" / life / name
    reports.mkdir(parents=True)
    for file in ("metrics.json", "report.html"):
        (reports / file).write_text("{}", encoding="utf-8")
    time = "2026-11-25T03:00:00+00:00"
    registry.register(Night(number, parent, name, manifest_digest(registry.folder / name), time))
    registry.promote(number) if outcome == "promoted" else registry.reject(number)


@pytest.fixture
def project(toy_project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nights 1, 2, 4 and 5 promoted one after the other, 3 rejected."""
    path = toy_project({"globals.yml": "life: .\n", "../smoke/globals.yml": "life: smoke\n", "catalog.yml": CATALOG})
    for number, parent, outcome in (
        (1, BASE, "promoted"),
        (2, 1, "promoted"),
        (3, 2, "rejected"),
        (4, 2, "promoted"),
        (5, 4, "promoted"),
    ):
        live(path, number, parent, outcome)
    monkeypatch.chdir(path)
    return path


def invoke(*arguments: str, **options: Any) -> Result:
    return CliRunner().invoke(cli, list(arguments), **options)


def pruned(*arguments: str) -> str:
    result = invoke("prune", "--yes", *arguments)
    assert result.exit_code == 0, result.output
    return result.output


def registry_of(project: Path) -> NightRegistry:
    return NightRegistry(project / "data/06_models")


def checkpoints(project: Path) -> list[int]:
    return sorted(int(path.name[-3:]) for path in (project / "data/06_models").glob("night_[0-9][0-9][0-9]"))


def on_the_way(project: Path) -> set[str]:
    return {path.name for part in PARTS for path in (project / "data/06_models" / part).iterdir()}


def test_models_on_the_way_and_rejected_checkpoints_go(project: Path) -> None:
    output = pruned()
    assert checkpoints(project) == [1, 2, 4, 5]
    assert on_the_way(project) == set()
    lines = [line.split() for line in output.splitlines()]
    assert ["night", "1", "seeded", "model", "1", "kB", "data/06_models/seeded/night_001"] in lines
    assert ["night", "3", "checkpoint,", "rejected", "1", "kB", "data/06_models/night_003"] in lines
    assert "given up: to ask the model of night 3" in output and "roll back" not in output
    assert "given up: to write the report of night 3 again, which stays as it is\n" in output
    assert output.endswith("16 kB freed.\n")


def test_keep_leaves_the_latest_of_the_champions_line(project: Path) -> None:
    output = pruned("--keep=2")
    assert checkpoints(project) == [4, 5]
    assert "given up: to roll back to nights 1, 2\n" in output
    assert "given up: to ask the model of nights 1, 2, 3\n" in output
    assert [night.number for night in registry_of(project).nights().values() if night.pruned] == [1, 2, 3]


def test_the_champion_stays_however_little_is_kept(project: Path) -> None:
    pruned("--keep=1")
    assert checkpoints(project) == [5]
    assert invoke("prune", "--keep=0").exit_code == 2
    with pytest.raises(RegistryError, match="night 5 is the champion"):
        registry_of(project).prune([5])


def test_a_dry_run_says_the_same_and_removes_nothing(project: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (project / "data").rglob("*")}
    dry = invoke("prune", "--dry-run", "--keep=2").output
    assert {path: path.stat().st_mtime_ns for path in (project / "data").rglob("*")} == before
    assert dry.splitlines()[:-1] == pruned("--keep=2").splitlines()[:-1]
    assert dry.endswith("would be freed.\n")


def test_it_asks_first_and_no_removes_nothing(project: Path) -> None:
    result = invoke("prune", input="n\n")
    assert result.exit_code == 1 and "Remove 16 kB?" in result.output
    assert checkpoints(project) == [1, 2, 3, 4, 5] and len(on_the_way(project)) == 5


def test_again_there_is_nothing_to_remove(project: Path) -> None:
    pruned("--keep=1")
    assert pruned("--keep=1") == "Nothing to remove.\n"


def test_reports_stay_and_what_the_folder_holds_besides(project: Path) -> None:
    other = project / "data/06_models/pretrain/model"
    model(other, 0, 0)
    live(project, 1, BASE, life="smoke")
    reports = sorted((project / "data/08_reporting").rglob("*"))
    pruned("--keep=1")
    assert sorted((project / "data/08_reporting").rglob("*")) == reports
    assert (other / "weights").exists()
    assert (project / "data/06_models/smoke/seeded/night_001/weights").exists(), "another life"
    pruned("--env=smoke")
    assert not (project / "data/06_models/smoke/seeded/night_001").exists()
    assert NightRegistry(project / "data/06_models/smoke").checkpoint(1).is_dir()


def test_an_unfinished_night_keeps_its_models_and_what_it_grew_from(project: Path) -> None:
    live(project, 6, 2, "unfinished")
    pruned("--keep=1")
    assert checkpoints(project) == [2, 5, 6]
    assert on_the_way(project) == {"night_006"}


def test_a_night_whose_report_is_not_written_keeps_its_models(project: Path) -> None:
    (project / "data/08_reporting/night_003/report.html").unlink()
    output = pruned("--keep=1")
    assert checkpoints(project) == [3, 5]
    assert on_the_way(project) == {"night_003"}
    assert "night 3 without a report: nothing of it is touched" in output


def test_what_was_rolled_back_can_be_taken_up_again(project: Path) -> None:
    registry_of(project).rollback()
    pruned("--keep=1")
    assert checkpoints(project) == [4, 5]
    live_again = registry_of(project).rollback()
    assert live_again is not None and live_again.number == 5


@pytest.mark.parametrize("arguments", [["rollback", "--yes"], ["rollback", "--to=2", "--yes"], ["wake", "--night=3"]])
def test_what_needs_a_pruned_checkpoint_says_that_it_was_pruned(project: Path, arguments: list[str]) -> None:
    (project / "conf/base/parameters.yml").write_text("machine: {device: cpu}\n", encoding="utf-8")
    pruned("--keep=1")
    result = invoke(*arguments)
    assert result.exit_code == 1 and "was pruned to free the disk" in result.output
    assert registry_of(project).aliases()["champion"] == 5


def test_the_base_model_can_still_be_gone_back_to(project: Path) -> None:
    pruned("--keep=1")
    assert invoke("rollback", "--to=0", "--yes").exit_code == 0


def test_the_next_night_grows_from_the_champion(project: Path) -> None:
    pruned("--keep=1")
    registry = registry_of(project)
    assert parent_checkpoint(registry.folder, registry.next_night()) == registry.folder / "night_005"
    live(project, 6, 5)
    assert [night.number for night in registry.lineage()] == [1, 2, 4, 5, 6]


def test_lineage_shows_what_was_pruned(project: Path) -> None:
    pruned("--keep=1")
    lines = invoke("lineage").output.splitlines()
    assert [line.endswith("pruned") for line in lines] == [False, True, True, True, True, False]


def test_a_checkpoint_that_came_back_counts_again(project: Path, tmp_path: Path) -> None:
    shutil.copytree(project / "data/06_models/night_002", tmp_path / "copy")
    pruned("--keep=1")
    with pytest.raises(PrunedError):
        registry_of(project).checkpoint(2)
    shutil.copytree(tmp_path / "copy", project / "data/06_models/night_002")
    assert registry_of(project).checkpoint(2).is_dir()
    assert not [line for line in invoke("lineage").output.splitlines() if "night 2 " in line and "pruned" in line]
    assert invoke("rollback", "--to=2", "--yes").exit_code == 0


@pytest.mark.parametrize("deaths", range(4))
def test_after_a_crash_no_folder_is_half_there_and_the_next_call_ends_the_work(
    project: Path, monkeypatch: pytest.MonkeyPatch, deaths: int
) -> None:
    rmtree = shutil.rmtree
    calls = iter(range(100))

    def dying(path: Path) -> None:
        if next(calls) == deaths:
            (path / "weights").unlink()
            raise OSError("the power went")
        rmtree(path)

    monkeypatch.setattr("sleep_pipeline.pruning.shutil.rmtree", dying)
    assert invoke("prune", "--yes", "--keep=1").exit_code == 1
    for folder in (path.parent for path in (project / "data/06_models").rglob(MANIFEST)):
        assert folder.suffix == ".pruned" or (folder / "weights").exists()
    monkeypatch.setattr("sleep_pipeline.pruning.shutil.rmtree", rmtree)
    assert "left by a prune that was cut short" in pruned("--keep=1")
    assert checkpoints(project) == [5] and on_the_way(project) == set()
    assert not list((project / "data/06_models").rglob("*.pruned"))


def test_while_a_night_runs_nothing_is_removed(project: Path) -> None:
    with NightLock(project / "data/06_models"):
        result = invoke("prune", "--yes")
    assert result.exit_code == 1 and f"A night is under way: process {os.getpid()}" in result.output
    assert checkpoints(project) == [1, 2, 3, 4, 5]


def test_files_that_another_folder_shares_free_nothing(project: Path) -> None:
    for number in (1, 2):
        weights = project / f"data/06_models/seeded/night_{number:03d}/weights"
        weights.unlink()
        os.link(project / "data/06_models/night_004/weights", weights)
    assert pruned().endswith("14 kB freed.\n")


def test_dvc_is_spoken_of_where_it_knows_the_folders(project: Path) -> None:
    assert "dvc" not in invoke("prune", "--dry-run").output
    (project / "dvc.lock").write_text("outs:\n- path: data/06_models/seeded/night_001\n", encoding="utf-8")
    assert "dvc repro --allow-missing" in invoke("prune", "--dry-run").output
