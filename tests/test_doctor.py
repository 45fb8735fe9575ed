"""The doctor's findings, each on a machine that lacks the thing."""

import importlib.metadata
import os
from pathlib import Path

import psutil
import pytest

from sleep_pipeline import doctor
from sleep_pipeline.environment import DEFAULTS


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version

    def without_trl(name: str) -> str:
        if name == "trl":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without_trl)
    missing = [finding for finding in doctor._versions() if finding.remedy]
    assert missing == [doctor.Finding("trl", "not installed", "run `make setup`")]


def test_the_memory_of_a_container_counts(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text("1073741824\n", encoding="ascii")
    assert doctor.memory_limit(limit) == 2**30


@pytest.mark.parametrize("content", ["max\n", None])
def test_without_a_limit_the_memory_of_the_machine_counts(tmp_path: Path, content: str | None) -> None:
    limit = tmp_path / "memory.max"
    if content is not None:
        limit.write_text(content, encoding="ascii")
    assert doctor.memory_limit(limit) == psutil.virtual_memory().total


def test_too_little_memory_is_a_reason_not_to_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "memory_limit", lambda: 2 * doctor.GIB)
    remedies = {finding.topic: finding.remedy for finding in doctor._resources(tmp_path)}
    assert remedies["memory"] == "a night needs 4 GiB"


def test_an_absent_model_is_named_with_its_remedy(tmp_path: Path) -> None:
    assert "kedro run --pipelines=pretrain" in doctor._embedded_model(tmp_path).remedy


def test_a_present_model_is_measured(tmp_path: Path) -> None:
    (tmp_path / "embedded").mkdir()
    (tmp_path / "embedded" / "model.safetensors").write_bytes(bytes(3 * 2**20))
    assert doctor._embedded_model(tmp_path) == doctor.Finding("embedded model", "3.0 MiB")


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in DEFAULTS.items():
        monkeypatch.setitem(os.environ, name, value)


@pytest.mark.usefixtures("quiet")
def test_with_our_defaults_telemetry_is_off(project_root: Path) -> None:
    assert [finding.value for finding in doctor.telemetry_findings(project_root)] == ["off"]


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("name", "value"),
    [("GX_ANALYTICS_ENABLED", "true"), ("MLFLOW_DISABLE_TELEMETRY", "false"), ("DO_NOT_TRACK", "")],
)
def test_a_switch_that_is_on_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert [finding.value for finding in doctor.telemetry_findings(tmp_path)] == [f"on or undecided: {name}"]


@pytest.mark.usefixtures("quiet")
def test_consent_given_to_kedro_is_named(tmp_path: Path) -> None:
    (tmp_path / ".telemetry").write_text("consent: true\n", encoding="utf-8")
    assert [finding.value for finding in doctor.telemetry_findings(tmp_path)] == ["on or undecided: .telemetry"]


def test_the_speed_of_bf16_is_measured() -> None:
    assert 0.0 < doctor.bf16_speedup(size=64) < 1000.0
