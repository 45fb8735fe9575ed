"""Whole nights by the real command, in the smoke budget."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from sleep_pipeline.registry import NightRegistry
from sleep_pipeline.seeding.settings import RefineSettings, SeedingSettings

COMMAND = [sys.executable, "-m", "sleep_pipeline", "run", "--env=smoke", "--params=machine.threads=1"]


def project(project_root: Path, folder: Path) -> Path:
    for name in ("src", "conf"):
        shutil.copytree(project_root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "local"))
    (folder / "conf" / "local").mkdir()
    for name in ("memories", "probes"):
        shutil.copytree(project_root / "data/01_raw" / name, folder / "data/01_raw" / name)
    shutil.copy(project_root / "pyproject.toml", folder)
    return folder


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1"}


def night(folder: Path, *extra: str, largest_file: int | None = None) -> subprocess.CompletedProcess[str]:
    """Live a night, on request with a system that lets no file grow beyond a size, as a full disk would."""

    def limit() -> None:
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    return subprocess.run(
        [*COMMAND, "--pipelines=sleep", *extra],
        cwd=folder,
        env=environment(folder),
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
    )


def weights(folder: Path, number: int) -> dict[str, bytes]:
    checkpoint = folder / "data/06_models/smoke" / f"night_{number:03d}"
    return {name: (checkpoint / name).read_bytes() for name in ("adapter_model.safetensors", "replay.safetensors")}


def killed_once(folder: Path, seen: Path, seconds: float) -> None:
    """Start a night and kill it some time after a file has appeared."""
    process = subprocess.Popen(
        [*COMMAND, "--pipelines=sleep"],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not seen.exists() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(seconds)
    assert process.poll() is None, "the night was over before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_night_that_was_killed_or_found_its_disk_full_goes_on_and_ends_as_if_nothing_had_happened(
    project_root: Path, tmp_path: Path
) -> None:
    whole, broken = project(project_root, tmp_path / "whole"), project(project_root, tmp_path / "broken")
    result = night(whole)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]

    data = broken / "data"
    killed_once(broken, data / "02_intermediate/smoke/night_001/memories.parquet", 0.5)
    killed_once(broken, data / "06_models/smoke/progress/night_001/expert/checkpoint-5", 0.0)
    # Without MLflow's database, which is larger than what a night writes.
    untracked = broken / "conf/smoke/mlflow.yml"
    untracked.write_text("enabled: false\n", encoding="utf-8")
    full = night(broken, largest_file=2**16)
    untracked.unlink()
    told = " ".join((full.stdout + full.stderr).split())
    assert full.returncode and "is the disk full? The same command goes on" in told, "the disk was not full"
    assert not list(NightRegistry(data / "06_models/smoke").nights())

    samples = data / "05_model_input/smoke/night_001/teacher_samples.parquet"
    before = samples.stat().st_mtime_ns
    result = night(broken)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]

    assert samples.stat().st_mtime_ns == before, "what was done is not done again"
    excerpts = pd.read_parquet(samples)["excerpt"]
    assert "" in set(excerpts) and excerpts.astype(bool).any(), "what the teacher had before it is recorded"
    assert weights(broken, 1) == weights(whole, 1)
    reports = data / "08_reporting/smoke/night_001"
    assert json.loads((reports / "decision.json").read_text())["checks"]
    assert (reports / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    registry = NightRegistry(data / "06_models/smoke")
    assert list(registry.nights()) == [1]
    assert not list((data / "06_models/smoke").glob("*.partial"))

    # The next command is the next night, which looks back on this one's questions.
    result = night(whole)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert list(NightRegistry(whole / "data/06_models/smoke").nights()) == [1, 2]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_night_with_a_round_of_rest_em_tells_of_it_and_keeps_the_dreamer_if_it_got_better(
    project_root: Path, tmp_path: Path
) -> None:
    folder = project(project_root, tmp_path)
    result = night(folder, "--params=machine.threads=1,dreaming.rest_em.rounds=1,dreaming.rest_em.steps=2")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    reports = folder / "data/08_reporting/smoke/night_001"
    rounds = json.loads((reports / "dreamt.json").read_text(encoding="utf-8"))["rest_em"]
    assert rounds["rounds"] == 1
    assert rounds["says"] in (reports / "report.html").read_text(encoding="utf-8")
    manifest = json.loads((folder / "data/06_models/smoke/night_001/manifest.json").read_text(encoding="utf-8"))
    assert ("dreamer" in manifest) == (rounds["idle"] + rounds["dropped"] == 0)


def test_the_files_of_settings_say_what_the_defaults_are(project_root: Path) -> None:
    from kedro.config import OmegaConfigLoader

    from sleep_pipeline.dreaming.settings import DreamingSettings
    from sleep_pipeline.evaluation.settings import EvaluationSettings
    from sleep_pipeline.memories.settings import CollectSettings
    from sleep_pipeline.night_model import MachineSettings, MemorySettings
    from sleep_pipeline.settings import CONFIG_LOADER_ARGS

    parameters = OmegaConfigLoader(str(project_root / "conf"), env="base", **CONFIG_LOADER_ARGS)["parameters"]
    # The library writes no checkpoints unless it is told where.
    checkpoints = {"optimizer": SeedingSettings().optimizer.model_copy(update={"checkpoint_every": 200})}
    assert SeedingSettings.model_validate(parameters["seeding"]) == SeedingSettings().model_copy(update=checkpoints)
    assert RefineSettings.model_validate(parameters["refining"]) == RefineSettings()
    assert DreamingSettings.model_validate(parameters["dreaming"]) == DreamingSettings()
    assert EvaluationSettings.model_validate(parameters["evaluation"]) == EvaluationSettings()
    assert MachineSettings.model_validate(parameters["machine"]) == MachineSettings()
    assert MemorySettings.model_validate(parameters["memory"]) == MemorySettings()
    # The embedded model reads better without headings; others need not.
    assert CollectSettings.model_validate(parameters["collect"]) == CollectSettings(keep_headings=False)


PRESETS = (
    "base", "smoke", "gpu", "instruct", "qwen3_1_7b", "qwen3_8b", "llama_3_2_1b", "llama_3_2_3b", "llama_3_1_8b"
)  # fmt: skip


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_night_that_could_run(project_root: Path, preset: str) -> None:
    from kedro.config import OmegaConfigLoader

    from sleep_pipeline.dreaming.settings import DreamingSettings
    from sleep_pipeline.evaluation.settings import EvaluationSettings
    from sleep_pipeline.night_model import MachineSettings, MemorySettings
    from sleep_pipeline.settings import CONFIG_LOADER_ARGS

    loader = OmegaConfigLoader(str(project_root / "conf"), env=preset, **CONFIG_LOADER_ARGS)
    parameters = loader["parameters"]
    seeding = SeedingSettings.model_validate(parameters["seeding"])
    dreaming = DreamingSettings.model_validate(parameters["dreaming"])
    evaluation = EvaluationSettings.model_validate(parameters["evaluation"])
    MachineSettings.model_validate(parameters["machine"])
    assert MemorySettings.model_validate(parameters["memory"]).config(4).levels
    life = loader["globals"]["life"]
    embedded = preset in ("base", "gpu", "smoke")
    assert (life == ".") == (preset in ("base", "gpu")), "another base model must not grow from this one's nights"
    for prompt in (*seeding.teacher.prompts, *dreaming.dreams.prompts):
        told = '"Question:"' in prompt.ask and '"Answer:"' in prompt.ask
        assert told == (not embedded and prompt.form == "pairs"), "only the embedded model knows the form unasked"
    assert seeding.teacher.match == evaluation.match == ("exact" if embedded else "contains")


def test_every_environment_with_a_night_is_tried(project_root: Path) -> None:
    found = {path.parent.name for path in (project_root / "conf").glob("*/parameters_night.yml")}
    assert found - {"local"} == set(PRESETS)
