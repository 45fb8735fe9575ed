"""`lineage` and `rollback` on a project with a few nights."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from click.testing import CliRunner, Result

from sleep_pipeline.cli import cli
from sleep_pipeline.night_lock import NightLock
from sleep_pipeline.registry import BASE, MANIFEST, Night, NightRegistry, manifest_digest

FAILED = {"name": "forgetting", "passed": False, "reason": "The forgetting of earlier nights is 0.200, not below 0.05."}
PASSED = {"name": "recall_gain", "passed": True, "reason": "The gain in closed-book recall is +0.900."}

CATALOG = """
_night: ${night_folder:${globals:life},${runtime_params:night,null}}
models_folder:
  type: sleep_pipeline.datasets.FolderDataset
  filepath: data/06_models/${globals:life}
memories:
  type: sleep_pipeline.datasets.FileDataset
  filepath: data/02_intermediate/${globals:life}/${_night}/memories.parquet
  format: parquet
"""
CONFIGURATION = {
    "globals.yml": "life: .\n",
    "../smoke/globals.yml": "life: smoke\n",
    "catalog.yml": CATALOG,
}


def add_night(registry: NightRegistry, number: int, parent: int, outcome: str) -> None:
    folder = registry.folder / f"night_{number:03d}"
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text(json.dumps({"night": number}))
    checks = [PASSED, FAILED] if outcome == "rejected" else [PASSED]
    registry.register(
        Night(
            number=number,
            parent=parent,
            checkpoint=folder.name,
            manifest_digest=manifest_digest(folder),
            time="2026-11-25T03:00:00+00:00",
            decision={"promote": outcome != "rejected", "checks": checks},
            scores={"recall_gain": 0.9, "forgetting": None if number == 1 else 0.012, "open_book": 0.98},
            memories=(f"{number}a", f"{number}b"),
        )
    )
    if outcome == "promoted":
        registry.promote(number)
    elif outcome == "rejected":
        registry.reject(number)


@pytest.fixture
def project(toy_project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Night 1 promoted, 2 rejected, 3 promoted, 4 waiting; tracking is off."""
    path = toy_project(CONFIGURATION)
    registry = NightRegistry(path / "data" / "06_models")
    add_night(registry, 1, BASE, "promoted")
    add_night(registry, 2, 1, "rejected")
    add_night(registry, 3, 1, "promoted")
    add_night(registry, 4, 3, "registered")
    monkeypatch.chdir(path)
    return path


def invoke(*arguments: str, **options: Any) -> Result:
    return CliRunner().invoke(cli, list(arguments), **options)


def registry_of(project: Path) -> NightRegistry:
    return NightRegistry(project / "data" / "06_models")


def test_lineage_draws_the_tree_with_scores_decisions_and_aliases(project: Path) -> None:
    result = invoke("lineage")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [
        "base model",
        "+- night 1 [previous_champion] from the base model; recall_gain 0.900, forgetting -, open_book 0.980; "
        "2 memories; passed the gate",
        "|  +- night 2 from night 1; recall_gain 0.900, forgetting 0.012, open_book 0.980; 2 memories; rejected: "
        "The forgetting of earlier nights is 0.200, not below 0.05.",
        "+- night 3 [champion] from night 1; recall_gain 0.900, forgetting 0.012, open_book 0.980; 2 memories; "
        "passed the gate",
        "+- night 4 [challenger] from night 3; recall_gain 0.900, forgetting 0.012, open_book 0.980; 2 memories; "
        "passed the gate",
    ]


def test_lineage_before_the_first_night_says_that_the_base_model_is_live(
    toy_project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(toy_project(CONFIGURATION))
    assert invoke("lineage").output == "No night yet: the base model is live.\n"
    assert json.loads(invoke("lineage", "--json").output) == {"aliases": {}, "nights": []}


def test_lineage_as_json_holds_the_register(project: Path) -> None:
    record = json.loads(invoke("lineage", "--json").output)
    assert record["aliases"] == {"champion": 3, "previous_champion": 1, "challenger": 4}
    assert [(night["number"], night["parent"], night["status"]) for night in record["nights"]] == [
        (1, 0, "complete"),
        (2, 1, "rejected"),
        (3, 1, "complete"),
        (4, 3, "complete"),
    ]
    assert record["nights"][2]["memories"] == ["3a", "3b"]


def write_memories(project: Path, night: int, rows: list[dict[str, Any]], life: str = ".") -> None:
    folder = project / "data" / "02_intermediate" / life / f"night_{night:03d}"
    folder.mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "memories.parquet")


def test_a_night_lists_the_file_and_line_of_every_memory_it_learned(project: Path) -> None:
    rows = [
        {"digest": "3a", "kind": "text", "source": "memories/day\x1b[31m.md", "line": 1, "text": "secret"},
        {"digest": "other", "kind": "qa", "source": "memories/skipped.jsonl", "line": 9, "text": None},
    ]
    write_memories(project, 3, rows)
    lines = invoke("lineage", "--night", "3").output.splitlines()
    assert lines[0] == "base model -> night 1 -> night 3"
    assert lines[2:] == [
        "  passed  The gain in closed-book recall is +0.900.",
        "learned 2 memories:",
        "  memories/day\ufffd[31m.md:1 (text)",
        "  3b (its row in memories.parquet is gone)",
    ]


def test_a_night_as_json_holds_its_line_and_its_memories(project: Path) -> None:
    write_memories(project, 3, [{"digest": "3b", "kind": "chat", "source": "m/chat.jsonl", "line": 4}])
    record = json.loads(invoke("lineage", "--night=3", "--json").output)
    assert [night["number"] for night in record["nights"]] == [1, 3]
    assert record["memories"] == [
        {"digest": "3a", "kind": None, "source": None, "line": None},
        {"digest": "3b", "kind": "chat", "source": "m/chat.jsonl", "line": 4},
    ]


def test_a_night_that_is_not_registered_is_an_error(project: Path) -> None:
    result = invoke("lineage", "--night", "9")
    assert result.exit_code == 1
    assert "night 9 is not registered (registered: 1, 2, 3, 4)" in result.output


def test_rollback_asks_first_and_no_changes_nothing(project: Path) -> None:
    result = invoke("rollback", input="n\n")
    assert result.exit_code == 1
    assert "night 3 -> night 1; 2 memories will be new." in result.output
    assert registry_of(project).aliases()["champion"] == 3


@pytest.mark.parametrize(("arguments", "answer"), [(["--yes"], ""), ([], "y\n")])
def test_rollback_makes_the_previous_champion_live(project: Path, arguments: list[str], answer: str) -> None:
    result = invoke("rollback", *arguments, input=answer)
    assert result.exit_code == 0, result.output
    assert result.output.endswith("night 1 is live.\n")
    assert registry_of(project).known_memories() == {"1a", "1b"}
    assert not (project / "data" / "06_models" / "night.lock").exists()


def test_rollback_goes_to_the_base_model_too(project: Path) -> None:
    result = invoke("rollback", "--to=0", "--yes")
    assert result.exit_code == 0, result.output
    assert "night 3 -> the base model" in result.output
    assert registry_of(project).champion() is None


def test_rollback_while_a_night_runs_is_refused(project: Path) -> None:
    with NightLock(project / "data" / "06_models"):
        result = invoke("rollback", "--yes")
    assert result.exit_code == 1
    assert f"A night is under way: process {os.getpid()}" in result.output
    assert registry_of(project).aliases()["champion"] == 3


def test_rollback_to_a_checkpoint_that_is_gone_is_refused(project: Path) -> None:
    (project / "data" / "06_models" / "night_001" / MANIFEST).unlink()
    result = invoke("rollback", "--yes")
    assert result.exit_code == 1
    assert "fetch it with `dvc pull`" in result.output


def test_rollback_without_a_previous_champion_is_an_error(
    toy_project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(toy_project(CONFIGURATION))
    result = invoke("rollback", "--yes")
    assert result.exit_code == 1
    assert "names no previous champion" in result.output


def test_a_register_elsewhere_can_be_named(project: Path) -> None:
    (project / "data" / "06_models").rename(project / "data" / "smoke_models")
    assert invoke("lineage").output.startswith("No night yet")
    assert "night 4" in invoke("lineage", "--models", "data/smoke_models").output


@pytest.fixture
def smoke(project: Path) -> NightRegistry:
    """The register of the life of another environment, with night 1 promoted."""
    registry = NightRegistry(project / "data" / "06_models" / "smoke")
    add_night(registry, 1, BASE, "promoted")
    return registry


def test_rollback_takes_back_a_night_of_the_life_of_its_environment(project: Path, smoke: NightRegistry) -> None:
    result = invoke("rollback", "--yes", "--env=smoke")
    assert result.exit_code == 0, result.output
    assert result.output.endswith("the base model is live.\n")
    assert smoke.aliases()["champion"] == BASE
    assert registry_of(project).aliases()["champion"] == 3, "another life"


def test_lineage_shows_the_life_of_its_environment(project: Path, smoke: NightRegistry) -> None:
    write_memories(project, 1, [{"digest": "1a", "kind": "qa", "source": "m/own.jsonl", "line": 1}])
    write_memories(project, 1, [{"digest": "1a", "kind": "qa", "source": "m/smoke.jsonl", "line": 2}], "smoke")
    assert list(json.loads(invoke("lineage", "--env=smoke", "--json").output)["aliases"]) == [
        "champion",
        "previous_champion",
    ]
    assert "  m/smoke.jsonl:2 (qa)" in invoke("lineage", "--env=smoke", "--night=1").output.splitlines()
    assert "  m/own.jsonl:1 (qa)" in invoke("lineage", "--night=1").output.splitlines()


def test_an_environment_that_is_none_is_named(project: Path) -> None:
    for arguments in (["lineage"], ["rollback", "--yes"]):
        result = invoke(*arguments, "--env=smok")
        assert result.exit_code == 2
        assert "has no environment 'smok'; choose one of" in result.output
    assert registry_of(project).aliases()["champion"] == 3


def test_a_damaged_register_is_told_as_such(project: Path) -> None:
    registry_of(project).path.write_text("{", encoding="utf-8")
    for arguments in (["lineage"], ["rollback", "--yes"]):
        assert "registry.json is damaged" in invoke(*arguments).output


def test_outside_a_project_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "lies in no Kedro project" in invoke("lineage").output


@pytest.mark.slow
def test_neither_command_loads_anything_heavy(project: Path) -> None:
    script = """
import sys
from click.testing import CliRunner
from sleep_pipeline.cli import cli
for arguments in (["lineage"], ["lineage", "--night", "3"], ["rollback", "--yes"]):
    assert CliRunner().invoke(cli, arguments).exit_code == 0, arguments
print([name for name in ("torch", "transformers", "mlflow", "great_expectations") if name in sys.modules])
"""
    write_memories(project, 3, [{"digest": "3b", "kind": "chat", "source": "m/chat.jsonl", "line": 4}])
    result = subprocess.run([sys.executable, "-c", script], cwd=project, capture_output=True, text=True, check=False)
    assert result.stdout == "[]\n", result.stderr


@pytest.fixture
def mirrored(project: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, int, str]]:
    """Folder, champion and environment of every register that was shown in MLflow."""
    shown: list[tuple[Path, int, str]] = []

    def record(registry: NightRegistry, config: Any, environment: str) -> bool:
        shown.append((registry.folder, registry.aliases()["champion"], environment))
        return True

    monkeypatch.setattr("sleep_pipeline.tracking.registry.mirror", record)
    (project / "conf" / "base" / "mlflow.yml").write_text("enabled: true\n")
    return shown


def test_the_rollback_shows_in_mlflow(project: Path, mirrored: list[tuple[Path, int, str]]) -> None:
    assert invoke("rollback", "--yes", "--env=base").exit_code == 0
    assert mirrored == [(project / "data" / "06_models", 1, "base")]


def test_the_rollback_of_a_named_register_does_not_show_as_one_of_the_environment(
    mirrored: list[tuple[Path, int, str]], smoke: NightRegistry
) -> None:
    result = invoke("rollback", "--yes", "--models=data/06_models/smoke")
    assert result.exit_code == 0, result.output
    assert smoke.aliases()["champion"] == BASE
    assert mirrored == []
    assert "MLflow shows it after the next night" in result.output
