"""What a night reads stands in its MLflow runs, with the digest of its content. Real MLflow, a toy night."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from kedro.framework.session import KedroSession
from kedro.io import DataCatalog
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from sleep_pipeline.datasets import FileDataset, FolderDataset
from sleep_pipeline.tracking.config import TrackingConfig
from sleep_pipeline.tracking.digests import LENGTH, ContentDigest, content_digest
from sleep_pipeline.tracking.inputs import CONTEXTS, NightInputs
from sleep_pipeline.tracking.run import TrackedRun

QUESTIONS = b"a question\n"
PROBES = "data/probes.parquet"


def lock(project: Path, *entries: tuple[str, bytes]) -> None:
    """Write a `dvc.lock` that has these files with these contents."""
    outs = [
        {"path": path, "hash": "md5", "md5": hashlib.md5(content).hexdigest(), "size": len(content)}
        for path, content in entries
    ]
    (project / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": {"seed@1": {"outs": outs}}}))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "questions.txt"
    path.parent.mkdir()
    path.write_bytes(QUESTIONS)
    return path


def test_a_file_that_dvc_keeps_goes_by_the_digest_of_dvc(tmp_path: Path, file: Path) -> None:
    lock(tmp_path, ("data/other.txt", b"x"), ("data/questions.txt", QUESTIONS))
    digest = content_digest(file, tmp_path)
    assert (digest.value, digest.kind) == (hashlib.md5(QUESTIONS).hexdigest(), "dvc")


@pytest.mark.parametrize("content", [b"A question\n", b"another length"])
def test_a_file_that_has_changed_since_goes_by_its_own_digest(tmp_path: Path, file: Path, content: bytes) -> None:
    lock(tmp_path, ("data/questions.txt", content))
    digest = content_digest(file, tmp_path)
    assert (digest.value, digest.kind) == (hashlib.sha256(QUESTIONS).hexdigest()[:LENGTH], "sha256")


@pytest.mark.parametrize("text", [None, "", "schema: '2.0'\n"])
def test_without_stages_a_file_goes_by_its_own_digest(tmp_path: Path, file: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "dvc.lock").write_text(text)
    assert content_digest(file, tmp_path).kind == "sha256"


def test_the_digest_of_a_folder_follows_names_and_contents(tmp_path: Path, file: Path) -> None:
    before = content_digest(file.parent, tmp_path)
    assert len(before.value) == LENGTH
    assert content_digest(file.parent, tmp_path) == before
    file.write_bytes(b"another question\n")
    changed = content_digest(file.parent, tmp_path)
    file.rename(file.with_name("renamed.txt"))
    assert len({before.value, changed.value, content_digest(file.parent, tmp_path).value}) == 3


def test_what_is_recorded_is_in_the_catalog_and_a_night_reads_it(project_root: Path) -> None:
    from sleep_pipeline.pipelines.sleep.pipeline import create_pipeline

    catalog = yaml.safe_load((project_root / "conf/base/catalog_night.yml").read_text(encoding="utf-8"))
    read = {name for node in create_pipeline().nodes for name in node.inputs}
    assert CONTEXTS.keys() <= catalog.keys() & read
    assert set(CONTEXTS.values()) == {"memories", "lessons", "dreams", "probes"}


REGISTRY = """
import pandas as pd
from kedro.pipeline import Pipeline, node


def collect(folder):
    return pd.DataFrame({"text": ["a", "b", "c"]})


def seed(memories, probes):
    return {"tonight": ["a lesson", "another"]}


def register_pipelines():
    night = Pipeline(
        [
            node(collect, "memories_folder", "memories", name="collect_node", tags=["night", "collect"]),
            node(seed, ["memories", "probes"], "summary", name="seed_node", tags=["night", "seed"]),
        ]
    )
    return {"sleep": night, "seed": night.only_nodes_with_tags("seed")}
"""
CATALOG = f"""
models_folder: {{type: sleep_pipeline.datasets.FolderDataset, filepath: data/models}}
memories_folder: {{type: sleep_pipeline.datasets.FolderDataset, filepath: data/inbox}}
memories: {{type: sleep_pipeline.datasets.FileDataset, filepath: data/memories.parquet, format: parquet}}
probes: {{type: sleep_pipeline.datasets.FileDataset, filepath: {PROBES}, format: parquet}}
summary: {{type: sleep_pipeline.datasets.FileDataset, filepath: data/summary.json, format: json}}
"""
SETTINGS = "tracking_uri: sqlite:///runs.db\nartifact_location: files\ndefault_experiment: nights\n"


@pytest.fixture
def project(toy_project: Callable[..., Path], empty_database: Path) -> Path:
    """A toy project whose night collects and seeds; DVC has its probes."""
    path = toy_project({"mlflow.yml": SETTINGS, "catalog.yml": CATALOG})
    shutil.copy(empty_database, path / "runs.db")
    (registry,) = path.glob("src/*/pipeline_registry.py")
    registry.write_text(REGISTRY, encoding="utf-8")
    (path / "data/inbox").mkdir(parents=True)
    (path / "data/inbox/notes.md").write_text("A note.\n", encoding="utf-8")
    pd.DataFrame({"question": ["who", "where"]}).to_parquet(path / PROBES)
    lock(path, (PROBES, (path / PROBES).read_bytes()))
    return path


def execute(project: Path, pipeline: str) -> dict[str, Run]:
    """Run it, and return the runs of MLflow by name."""
    with KedroSession.create(project_path=project) as session:
        session.run(pipeline_names=[pipeline])
    client = MlflowClient(f"sqlite:///{project}/runs.db")
    experiment = client.get_experiment_by_name("nights")
    assert experiment is not None
    return {str(run.info.run_name): run for run in client.search_runs([experiment.experiment_id])}


def read_by(run: Run) -> dict[str, tuple[str, str, dict[str, str]]]:
    """Context, place and the rest of every input of a run, by name."""
    found = {}
    for item in run.inputs.dataset_inputs:
        tags = {tag.key: tag.value for tag in item.tags}
        place = json.loads(item.dataset.source)["uri"]
        rest = {"kind": tags["digest"], "digest": item.dataset.digest, "profile": item.dataset.profile}
        found[item.dataset.name] = (tags["mlflow.data.context"], place, rest)
    return found


def test_a_night_and_its_phases_show_what_they_read(project: Path) -> None:
    runs = execute(project, "sleep")
    collected, seeded, night = read_by(runs["collect"]), read_by(runs["seed"]), read_by(runs["sleep"])
    assert collected.keys() == {"memories_folder"}
    assert seeded.keys() == {"memories", "probes"}
    assert night == collected | seeded

    context, place, rest = night["probes"]
    assert (context, place) == ("probes", PROBES)
    assert rest == {
        "kind": "dvc",
        "digest": hashlib.md5((project / PROBES).read_bytes()).hexdigest(),
        "profile": '{"num_rows": 2}',
    }
    context, place, rest = night["memories"]
    assert (context, place) == ("memories", "data/memories.parquet")
    own = hashlib.sha256((project / place).read_bytes()).hexdigest()[:LENGTH]
    assert rest == {"kind": "sha256", "digest": own, "profile": '{"num_rows": 3}'}
    assert night["memories_folder"][:2] == ("memories", "data/inbox")


def test_mlflow_opens_the_source_that_was_recorded(project: Path) -> None:
    from mlflow.data import get_source

    (item,) = execute(project, "sleep")["collect"].inputs.dataset_inputs
    assert get_source(item).to_dict() == {"uri": "data/inbox"}


def test_a_phase_that_runs_alone_shows_what_it_reads(project: Path) -> None:
    pd.DataFrame({"text": ["a"]}).to_parquet(project / "data/memories.parquet")
    runs = execute(project, "seed")
    assert read_by(runs["seed"]).keys() == {"memories", "probes"}


def test_with_a_damaged_lock_the_night_goes_on(project: Path) -> None:
    (project / "dvc.lock").write_text("stages: {", encoding="utf-8")
    runs = execute(project, "sleep")
    assert runs["sleep"].info.status == "FINISHED"
    assert read_by(runs["sleep"]).keys() == {"memories_folder"}


@pytest.fixture
def run(tmp_path: Path, empty_database: Path) -> Iterator[TrackedRun]:
    shutil.copy(empty_database, tmp_path / "runs.db")
    run = TrackedRun.start(TrackingConfig(tracking_uri="sqlite:///runs.db").resolved(tmp_path), "nights", "by hand", {})
    yield run
    run.finish("FINISHED")


def test_a_store_that_refuses_is_a_warning(
    tmp_path: Path, run: TrackedRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("gone")

    monkeypatch.setattr(MlflowClient, "log_inputs", refuse)
    catalog = DataCatalog({"memories_folder": FolderDataset(str(tmp_path))})
    NightInputs(tmp_path).record([run], catalog, {"memories_folder": tmp_path})
    assert [record.levelname for record in caplog.records if "sleep_pipeline" in record.name] == ["WARNING"]


def test_a_file_that_several_phases_read_is_hashed_once(
    tmp_path: Path, run: TrackedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = FileDataset(str(tmp_path / "lessons.json"), "json")
    catalog = DataCatalog({"lessons": dataset})
    hashed: list[Path] = []

    def counted(path: Path, project: Path) -> ContentDigest:
        hashed.append(path)
        return content_digest(path, project)

    monkeypatch.setattr("sleep_pipeline.tracking.inputs.content_digest", counted)
    inputs = NightInputs(tmp_path)
    for lessons in ({"tonight": [1, 2], "rehearsed": [3]}, {"tonight": [1]}):
        dataset.save(lessons)
        for _ in range(2):
            inputs.record([run], catalog, {"lessons": lessons, "params:night": 1})
    assert len(hashed) == 2, "once for each content"
    recorded = run.client.get_run(run.run_id).inputs.dataset_inputs
    assert sorted(str(item.dataset.profile) for item in recorded) == ['{"num_rows": 1}', '{"num_rows": 3}']
