"""The nights as stages of DVC."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from kedro.config import OmegaConfigLoader
from kedro.pipeline import Pipeline, node

from sleep_pipeline.cli import cli
from sleep_pipeline.pipelines.sleep.pipeline import PHASES as PACKAGES
from sleep_pipeline.registry import BASE, Night, NightRegistry
from sleep_pipeline.settings import CONFIG_LOADER_ARGS
from sleep_pipeline.tracking.dvc_stages import (
    MARKER,
    PHASES,
    StagesError,
    night_items,
    night_stages,
    parameter_files,
    rendered,
)

PIPELINES = {name: package.create_pipeline() for name, package in PACKAGES.items()}


@pytest.fixture(scope="module")
def catalog(project_root: Path) -> dict[str, Any]:
    loader = OmegaConfigLoader(
        str(project_root / "conf"), env="base", runtime_params={"night": 1}, **CONFIG_LOADER_ARGS
    )
    entries: dict[str, Any] = loader["catalog"]
    return entries


@pytest.fixture(scope="module")
def stages(project_root: Path, catalog: dict[str, Any]) -> dict[str, Any]:
    return {
        name: stage["do"] for name, stage in night_stages(PIPELINES, catalog, parameter_files(project_root)).items()
    }


def outputs(stage: dict[str, Any]) -> list[str]:
    return [path for entry in (*stage["outs"], *stage.get("metrics", ())) for path in entry]


def at_night(paths: list[str]) -> set[str]:
    return {path.replace("${item.folder}", "night_001") for path in paths}


def test_every_phase_of_a_night_is_a_stage(stages: dict[str, Any]) -> None:
    assert tuple(stages) == PHASES == tuple(PACKAGES)


@pytest.mark.parametrize("phase", PHASES)
def test_a_stage_tracks_exactly_what_its_pipeline_writes(
    phase: str, stages: dict[str, Any], catalog: dict[str, Any]
) -> None:
    written = {os.path.normpath(catalog[name]["filepath"]) for name in PIPELINES[phase].all_outputs()}
    assert at_night(outputs(stages[phase])) == written


@pytest.mark.parametrize("phase", PHASES)
def test_a_stage_depends_on_every_file_that_its_pipeline_reads(
    phase: str, stages: dict[str, Any], catalog: dict[str, Any]
) -> None:
    names = {name for name in PIPELINES[phase].inputs() if not name.startswith("params:")}
    files = {name for name in names if not catalog[name]["type"].endswith("FolderDataset")}
    read = {os.path.normpath(catalog[name]["filepath"]) for name in files}
    assert read <= at_night(stages[phase]["deps"])


@pytest.mark.parametrize("phase", PHASES)
def test_a_stage_watches_the_parameters_that_its_pipeline_takes(
    phase: str, stages: dict[str, Any], project_root: Path
) -> None:
    taken = {name.removeprefix("params:") for name in PIPELINES[phase].inputs() if name.startswith("params:")}
    watched = {name: file for entry in stages[phase]["params"] for file, names in entry.items() for name in names}
    assert watched.keys() == taken - {"night"}
    for name, file in watched.items():
        assert name in yaml.safe_load((project_root / file).read_text(encoding="utf-8"))


def test_what_a_phase_needs_of_the_night_an_earlier_phase_makes(stages: dict[str, Any]) -> None:
    made: set[str] = set()
    for stage in stages.values():
        assert {path for path in stage["deps"] if "${item.folder}" in path} <= made
        made.update(outputs(stage))


def test_no_output_lies_within_another_or_holds_progress_or_the_register(
    stages: dict[str, Any], catalog: dict[str, Any]
) -> None:
    tracked = sorted(at_night([path for stage in stages.values() for path in outputs(stage)]))
    assert len(tracked) == sum(len(outputs(stage)) for stage in stages.values())
    untracked = [catalog[name]["filepath"] for name in ("seed_progress_folder", "refine_progress_folder")]
    untracked.append(f"{catalog['models_folder']['filepath']}/registry.json")
    for path in [*map(os.path.normpath, untracked), *tracked]:
        assert [folder for folder in tracked if Path(folder) in Path(path).parents] == []


def test_outputs_persist_so_that_a_refused_stage_leaves_them(stages: dict[str, Any]) -> None:
    for stage in stages.values():
        assert all(entry == {path: {"persist": True}} for entry in stage["outs"] for path in entry)
        assert stage["cmd"][0].startswith("sleep-pipeline dvc ready")


def test_a_night_waits_for_what_became_of_the_night_before(stages: dict[str, Any], project_root: Path) -> None:
    items = night_items(3)
    assert all("${item.before}" in stages[name]["deps"] for name in ("collect", "seed", "dream", "refine", "evaluate"))
    assert (project_root / items["1"]["before"]).is_file()
    registered = "data/08_reporting/${item.folder}/registered.json"
    assert registered in outputs(stages["evaluate"])
    for night in (1, 2):
        assert items[str(night + 1)]["before"] == registered.replace("${item.folder}", items[str(night)]["folder"])


def test_a_folder_that_nobody_has_thought_about_is_an_error() -> None:
    catalog = {
        "attic_folder": {"type": "sleep_pipeline.datasets.FolderDataset", "filepath": "data/attic"},
        "found": {"type": "sleep_pipeline.datasets.FileDataset", "filepath": "data/found.json"},
    }
    pipelines = dict.fromkeys(PHASES, Pipeline([node(os.path.basename, "attic_folder", "found", name="search_node")]))
    with pytest.raises(StagesError, match="reads the folder 'attic_folder'"):
        night_stages(pipelines, catalog, {})


def test_rendering_keeps_what_stands_above_and_replaces_what_is_below() -> None:
    above = "# Why.\nstages:\n  pretrain:\n    cmd: train   # by hand\n"
    text = rendered(above, {"collect": {"foreach": "${nights}", "do": {"cmd": "x"}}}, 1)
    assert text.startswith(above)
    again = rendered(text, {"seed": {"foreach": "${nights}", "do": {"cmd": "y"}}}, 2)
    assert again.count(MARKER) == 1
    read = yaml.safe_load(again)
    assert list(read["stages"]) == ["pretrain", "seed"]
    assert read["vars"] == [{"nights": night_items(2)}]


def copied(project_root: Path, folder: Path) -> Path:
    """This project's configuration and nights, without data."""
    shutil.copytree(project_root / "conf", folder / "conf", ignore=shutil.ignore_patterns("local"))
    for name in ("conf/local", "src"):
        (folder / name).mkdir()
    for name in ("pyproject.toml", "dvc.yaml"):
        shutil.copy(project_root / name, folder)
    return folder


@pytest.fixture
def project(project_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of this project, without data, in which commands run."""
    folder = copied(project_root, tmp_path / "project")
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.setattr("kedro.framework.project.PACKAGE_NAME", None)
    monkeypatch.setenv("PYTHONPATH", os.environ["PYTHONPATH"])
    return folder


@pytest.mark.slow
def test_check_writes_nothing_and_fails_where_render_would_write(project: Path) -> None:
    path = project / "dvc.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("lessons.safetensors", "notes.txt"), encoding="utf-8")
    changed = path.read_bytes()
    result = CliRunner().invoke(cli, ["dvc", "render", "--check"])
    assert (result.exit_code, path.read_bytes()) == (1, changed)
    assert "run `sleep-pipeline dvc render`" in result.output
    assert CliRunner().invoke(cli, ["dvc", "render"]).exit_code == 0
    assert CliRunner().invoke(cli, ["dvc", "render", "--check"]).exit_code == 0
    assert CliRunner().invoke(cli, ["dvc", "render", "--check", "--nights=9"]).exit_code == 1


def test_a_registered_night_is_not_ready_and_the_next_one_is(project: Path) -> None:
    NightRegistry(project / "data/06_models").register(Night(1, BASE, "night_001", "digest", "2026-11-25T03:00:00Z"))
    refused = CliRunner().invoke(cli, ["dvc", "ready", "--night=1"])
    assert refused.exit_code == 1
    assert "Night 1 is registered and is not lived again" in refused.output
    assert CliRunner().invoke(cli, ["dvc", "ready", "--night=2"]).exit_code == 0


@pytest.mark.slow
def test_nights_that_were_fetched_must_be_restored_before_the_next_one(project: Path) -> None:
    absent = CliRunner().invoke(cli, ["dvc", "restore"])
    assert (absent.exit_code, "dvc pull" in absent.output) == (1, True)
    night = Night(1, BASE, "night_001", "digest", "2026-11-25T03:00:00Z")
    record = project / "data/08_reporting/night_001/registered.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps(asdict(night) | {"aliases": {"champion": 1, "previous_champion": BASE}}))
    refused = CliRunner().invoke(cli, ["dvc", "ready", "--night=2"])
    assert refused.exit_code == 1
    assert "sleep-pipeline dvc restore" in refused.output
    assert "night 1" in CliRunner().invoke(cli, ["dvc", "restore"]).output
    registry = NightRegistry(project / "data/06_models")
    assert (registry.champion(), registry.next_night()) == (night, 2)
    assert CliRunner().invoke(cli, ["dvc", "ready", "--night=2"]).exit_code == 0
    assert CliRunner().invoke(cli, ["dvc", "restore"]).exit_code == 0


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a copy of the project, on the copy's sources and one thread."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def do(folder: Path, *command: str) -> str:
    """Run a command that must not fail, and return what it says."""
    result = run(folder, *command)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def lived(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git and DVC repository with the bundled week, whose first night was lived by DVC, in half a minute."""
    folder = copied(project_root, tmp_path_factory.mktemp("dvc") / "project")
    shutil.rmtree(folder / "src")
    shutil.copytree(project_root / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("memories", "probes"):
        shutil.copytree(project_root / "data/01_raw" / name, folder / "data/01_raw" / name)
    for name in (".gitignore", ".dvcignore"):
        shutil.copy(project_root / name, folder)
    shutil.copy(folder / "conf/smoke/parameters_night.yml", folder / "conf/local")
    (folder / "conf/local/.gitkeep").touch()
    (folder / "conf/local/mlflow.yml").write_text("enabled: false\n", encoding="utf-8")
    do(folder, "git", "init", "-q")
    do(folder, "dvc", "init", "-q")
    do(folder, "dvc", "repro", "evaluate@1")
    return folder


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_night_that_was_pushed_can_be_used_in_a_fresh_clone(lived: Path, tmp_path: Path) -> None:
    do(lived, "dvc", "remote", "add", "--default", "store", str(tmp_path / "store"))
    do(lived, "dvc", "push")
    do(lived, "git", "add", "--all")
    do(lived, "git", "-c", "user.name=Test", "-c", "user.email=test@example.com", "commit", "-q", "--message=a night")
    clone = tmp_path / "clone"
    do(tmp_path, "git", "clone", "-q", str(lived), str(clone))
    # Without a name DVC misses the nights of dvc.yaml that nobody has lived yet.
    do(clone, "dvc", "pull", "--with-deps", "evaluate@1")
    do(clone, "sleep-pipeline", "dvc", "restore")

    here, there = NightRegistry(lived / "data/06_models"), NightRegistry(clone / "data/06_models")
    assert (there.nights(), there.aliases()) == (here.nights(), here.aliases())
    assert there.checkpoint(1).is_dir()
    assert do(clone, "sleep-pipeline", "lineage", "--night=1") == do(lived, "sleep-pipeline", "lineage", "--night=1")
    question = ("sleep-pipeline", "wake", "--night=1", "--question=Where does Mira work?", "--max-new-tokens=4")
    assert do(clone, *question) == do(lived, *question)
    assert "Running stage" not in do(clone, "dvc", "repro", "evaluate@1"), "what was fetched is up to date"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_night_by_dvc_is_lived_once_and_never_spoiled(lived: Path) -> None:
    assert list(NightRegistry(lived / "data/06_models").nights()) == [1]
    assert "Running stage" not in do(lived, "dvc", "repro", "evaluate@1"), "what is up to date is left alone"

    weights = lived / "data/06_models/night_001/adapter_model.safetensors"
    before = weights.read_bytes()
    settings = lived / "conf/base/parameters_seeding.yml"
    settings.write_text(settings.read_text(encoding="utf-8").replace("rows: 16", "rows: 15"), encoding="utf-8")
    refused = run(lived, "dvc", "repro", "evaluate@1")
    assert refused.returncode != 0
    assert "Night 1 is registered and is not lived again" in refused.stdout + refused.stderr
    assert weights.read_bytes() == before
    do(lived, "dvc", "commit", "--force", "seed@1", "dream@1", "refine@1", "evaluate@1")
    assert "Running stage" not in do(lived, "dvc", "repro", "evaluate@1")
