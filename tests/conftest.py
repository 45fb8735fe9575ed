"""What every test shares: the project's environment variables, no network, and a toy Kedro project."""

import ipaddress
import itertools
import os
import socket
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from sleep_pipeline.environment import apply_defaults
from sleep_pipeline.run_environment import set_environment

apply_defaults()
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")
# Commands that tests start find the package in a tree that is not installed, too.
_sources = str(Path(__file__).resolve().parent.parent / "src")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_sources, os.environ.get("PYTHONPATH")]))
# A run that started the tests must not be attached to by the runs they start.
for name in ("MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI", "KEDRO_ENV", "KEDRO_LOGGING_CONFIG"):
    os.environ.pop(name, None)

# Python keeps the first module of a name, so every toy project is a package of its own.
_toy_numbers = itertools.count()

TOY_PYPROJECT = """
[tool.kedro]
package_name = "{package}"
project_name = "toy"
kedro_init_version = "1.7.0"
"""

TOY_REGISTRY = """
from kedro.pipeline import Pipeline, node
from pydantic import BaseModel, ConfigDict


class Optimizer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    lr: float = 0.1
    betas: list[float] = [0.9, 0.95]


class Toy(BaseModel):
    model_config = ConfigDict(extra="forbid")
    steps: int = 3
    fail: bool = False
    optimizer: Optimizer = Optimizer()


def work(toy: Toy) -> int:
    from sleep_pipeline import tracking
    from sleep_pipeline.session import NothingToDo

    if not toy.steps:
        raise NothingToDo("there is no step to take")
    for step in range(toy.steps):
        tracking.active_sink().log_metrics({{"loss": 1.0 / (step + 1)}}, step)
    if toy.fail:
        raise ValueError("the toy is broken")
    return toy.steps


def register_pipelines():
    toy = Pipeline([node(work, "params:toy", "done", name="work_node")])
    return {{"toy": toy, "__default__": toy}}
"""


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The repository."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def no_environment_stays() -> Iterator[None]:
    """Forgets what a run was given that was refused, so that commands in errors do not depend on the tests before."""
    yield
    set_environment(None)


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Makes every connection to another machine an error: nothing may leave this one."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            host = str(address[0])
            if host != "localhost" and not ipaddress.ip_address(host).is_loopback:
                raise PermissionError(f"A test tried to reach {host}: tests use this machine alone.")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        yield


@pytest.fixture
def toy_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A function that writes a one-node Kedro project with our settings and configures Kedro for it.

    It takes `file -> YAML text` for the folder `conf/base` and returns the project's path.
    """
    from kedro.framework.startup import bootstrap_project

    def make(configuration: Mapping[str, str] | None = None) -> Path:
        package = f"toy_{next(_toy_numbers)}"
        project = tmp_path / "project"
        files = {
            "pyproject.toml": TOY_PYPROJECT,
            f"src/{package}/__init__.py": "",
            f"src/{package}/settings.py": "from sleep_pipeline.settings import *  # noqa: F403\n",
            f"src/{package}/pipeline_registry.py": TOY_REGISTRY,
            "conf/local/.gitkeep": "",
            "conf/base/catalog.yml": "{{}}",
            "conf/base/parameters.yml": "toy:\n  steps: 3\nunused: 7\n",
            "conf/base/mlflow.yml": "enabled: false\n",
        }
        texts = {name: text.format(package=package) for name, text in files.items()}
        texts.update({f"conf/base/{name}": textwrap.dedent(text) for name, text in (configuration or {}).items()})
        for name, text in texts.items():
            path = project / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        bootstrap_project(project)
        return project

    # Kedro puts the sources of a project on the path of this process and of its children.
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", os.environ["PYTHONPATH"])
    monkeypatch.setattr("kedro.framework.project.PACKAGE_NAME", None)
    return make


TINY_ARCHITECTURE: dict[str, int] = {
    "vocab_size": 512,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 1,
    "intermediate_size": 64,
    "max_positions": 1024,
}


@pytest.fixture(scope="session")
def tiny_settings() -> Any:
    """Settings of a pretraining that takes a second."""
    from sleep_pipeline.pretraining.settings import PretrainSettings

    return PretrainSettings(
        steps=6,
        batch_tokens=1024,
        micro_batch_tokens=512,
        tokenizer_documents=120,
        checkpoint_every=2,
        device="cpu",
        precision="fp32",
        architecture=TINY_ARCHITECTURE,
    )


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_settings: Any) -> Any:
    """A tokenizer with the project's chat template and a small vocabulary, the same whatever the corpora say."""
    from tokenizers import models

    from sleep_pipeline.pretraining.tokenizer import train_tokenizer

    tokenizer = train_tokenizer([], tiny_settings.architecture.vocab_size, tiny_settings.architecture.max_positions)
    vocabulary = tokenizer.get_vocab()
    lines = Path(__file__).with_name("tiny_merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [(left, right) for left, _, right in (line.partition(" ") for line in lines)]
    for left, right in merges:
        vocabulary.setdefault(left + right, len(vocabulary))
    tokenizer.backend_tokenizer.model = models.BPE(vocab=vocabulary, merges=merges)
    return tokenizer


@pytest.fixture
def tiny_model(tiny_settings: Any, tiny_tokenizer: Any) -> Any:
    """A causal LM with random weights, the same for every test."""
    from sleep_pipeline.pretraining.trainer import build_model

    return build_model(tiny_settings.architecture, tiny_tokenizer, seed=0).eval()
