"""What holds for every registered pipeline, and one of them run for real."""

import os
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from kedro.pipeline import Pipeline
from pydantic import BaseModel

TINY = {
    "steps": 4,
    "batch_tokens": 1024,
    "micro_batch_tokens": 1024,
    "tokenizer_documents": 200,
    "evaluation_examples": 2,
    "device": "cpu",
    "threads": 1,
    "architecture.vocab_size": 512,
    "architecture.hidden_size": 64,
    "architecture.num_layers": 2,
    "architecture.num_heads": 2,
    "architecture.num_kv_heads": 1,
    "architecture.intermediate_size": 128,
}

SCALARS = {"night", "model", "random_seed"}
"""Parameters that are no group: users set them by their bare names."""

NO_NETWORK = """
import socket

_connect = socket.socket.connect


def connect(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
        with open({log!r}, "a") as log:
            log.write(f"{{address[0]}}\\n")
        raise PermissionError(address[0])
    _connect(self, address)


socket.socket.connect = connect
"""


@pytest.fixture(scope="module")
def pipelines(project_root: Path) -> dict[str, Pipeline]:
    from kedro.framework.startup import bootstrap_project

    from sleep_pipeline.pipeline_registry import register_pipelines

    bootstrap_project(project_root)
    return register_pipelines()


def test_a_plain_run_has_something_to_do(pipelines: dict[str, Pipeline]) -> None:
    assert pipelines["__default__"].nodes


def test_kedro_can_read_the_types_of_every_node(pipelines: dict[str, Pipeline]) -> None:
    """Otherwise it warns, skips the check of the node's parameters and hands over plain dictionaries."""
    unreadable = {}
    for node in {node.name: node for pipeline in pipelines.values() for node in pipeline.nodes}.values():
        try:
            typing.get_type_hints(node.func)
        except NameError as error:
            unreadable[node.name] = str(error)
    assert unreadable == {}


def test_every_parameter_group_is_a_model_that_forbids_unknown_names(pipelines: dict[str, Pipeline]) -> None:
    from kedro.validation.type_extractor import TypeExtractor

    types = TypeExtractor(pipelines).extract_types_from_pipelines()
    taken = {
        name.removeprefix("params:")
        for pipeline in pipelines.values()
        for name in pipeline.inputs()
        if name.startswith("params:")
    }
    assert taken - SCALARS == set(types)
    models = {name: model for name, model in types.items() if issubclass(model, BaseModel)}
    assert [name for name, model in models.items() if model.model_config.get("extra") != "forbid"] == []


@pytest.mark.slow
def test_the_real_command_runs_records_itself_and_reaches_no_other_machine(project_root: Path, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    project, guard, log = tmp_path / "project", tmp_path / "guard", tmp_path / "reached.log"
    for name in ("src", "conf"):
        shutil.copytree(project_root / name, project / name, ignore=shutil.ignore_patterns("__pycache__", "local"))
    for name in ("conf/local", "data/01_raw"):
        (project / name).mkdir(parents=True)
    shutil.copy(project_root / "pyproject.toml", project)
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(NO_NETWORK.format(log=str(log)), encoding="utf-8")
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(guard), str(project / "src")])}

    parameters = ",".join(f"pretrain.{name}={value}" for name, value in TINY.items())
    command = [sys.executable, "-m", "sleep_pipeline", "run", "--pipeline=pretrain", f"--params={parameters}"]
    result = subprocess.run(command, cwd=project / "data", env=environ, capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stdout + result.stderr
    assert not log.exists(), log.read_text(encoding="utf-8")
    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    experiment = client.get_experiment_by_name("pretrain")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["pretrain.steps"] == "4"
    assert {"seconds/train_model_node", "seconds/total"} <= run.data.metrics.keys()
    assert [path for path in project.iterdir() if path.suffix == ".log"] == []
    assert sorted(path.name for path in (project / "data").iterdir()) == [
        "01_raw",
        "06_models",
        "08_reporting",
    ]
