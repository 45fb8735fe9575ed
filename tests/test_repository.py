"""The rules of the repository that a reviewer would otherwise have to watch."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

LOCKS = ["requirements.lock", "requirements-bootstrap.lock"]
# An absolute path below one of the folders where people and machines keep things of their own.
MACHINE_PATH = re.compile(r"(?<![\w.~/$}-])/(?:home|Users|root|work|opt|mnt|data|srv)/\w")
INDEX = re.compile(r"--(?:extra-)?index-url|--find-links|\b(?:extra-index-url|find-links)\s*=|/simple\b|pythonhosted")


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(text: str) -> dict[str, list[str]]:
    """Return the requirements of a lock file as `name -> hashes`, over all platforms."""
    found: dict[str, list[str]] = {}
    for entry in re.split(r"\n(?=\S)", re.sub(r"^\s*#.*\n", "", text, flags=re.M)):
        if match := re.match(r"([A-Za-z0-9][\w.-]*)==\S+", entry):
            hashes = re.findall(r"--hash=sha256:[0-9a-f]{64}", entry)
            found.setdefault(normalised(match.group(1)), []).extend(hashes)
            assert hashes, f"{match.group(0)} has no hash"
        else:
            assert not entry.strip(), f"not a pinned requirement: {entry!r}"
    return found


@pytest.fixture(scope="module")
def pyproject(project_root: Path) -> dict[str, Any]:
    return tomllib.loads(read(project_root / "pyproject.toml"))


@pytest.fixture(scope="module")
def tracked_texts(project_root: Path) -> dict[str, str]:
    """Every tracked file that is text."""
    texts = {}
    for name in git(project_root, "ls-files", "-z").split("\0"):
        path = project_root / name
        if name and path.is_file():
            content = path.read_bytes()
            if b"\0" not in content:
                texts[name] = content.decode("utf-8")
    return texts


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_requirement_is_pinned_and_has_hashes(project_root: Path, lock: str) -> None:
    assert locked(read(project_root / lock))


@pytest.mark.parametrize("lock", LOCKS)
def test_no_lock_names_an_index_a_host_or_a_path(project_root: Path, lock: str) -> None:
    text = read(project_root / lock)
    assert re.findall(r"\w+://\S+|^\s*-[-\w]+(?<!--hash)[ =].*|(?<=\s)/\S+", text.replace("    --hash", ""), re.M) == []


def test_every_dependency_is_locked(project_root: Path, pyproject: dict[str, Any]) -> None:
    project = pyproject["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    names = {normalised(re.split(r"[\s\[<>=!~;]", requirement)[0]) for requirement in wanted}
    assert names - locked(read(project_root / "requirements.lock")).keys() == set()


def test_every_locked_version_is_one_that_the_project_takes(project_root: Path, pyproject: dict[str, Any]) -> None:
    project = pyproject["project"]
    wanted = [Requirement(text) for text in project["dependencies"] + project["optional-dependencies"]["dev"]]
    taken = {normalised(requirement.name): requirement.specifier for requirement in wanted}
    pinned = re.findall(r"^([A-Za-z0-9][\w.-]*)==([^\s;]+)", read(project_root / "requirements.lock"), re.M)
    pins = [(normalised(name), version) for name, version in pinned]
    assert [(name, version) for name, version in pins if name in taken and version not in taken[name]] == []


def test_the_tool_that_installs_is_locked(project_root: Path) -> None:
    assert "uv" in locked(read(project_root / "requirements-bootstrap.lock"))


def test_every_dependency_can_be_imported(pyproject: dict[str, Any]) -> None:
    import importlib.util

    modules = {
        "detect-secrets": "detect_secrets",
        "python-stdnum": "stdnum",
        "great-expectations": "great_expectations",
        "kedro-datasets": "kedro_datasets",
        "pyyaml": "yaml",
    }
    names = [normalised(re.split(r"[\[<>=!~;]", text)[0]) for text in pyproject["project"]["dependencies"]]
    assert [name for name in names if importlib.util.find_spec(modules.get(name, name)) is None] == []


def test_no_tracked_file_names_a_path_of_a_machine(tracked_texts: dict[str, str]) -> None:
    found = {name: match.group() for name, text in tracked_texts.items() if (match := MACHINE_PATH.search(text))}
    assert found == {}


def test_no_tracked_file_names_a_package_index(tracked_texts: dict[str, str]) -> None:
    allowed = {"tests/test_repository.py", "Makefile"}
    found = {name for name, text in tracked_texts.items() if INDEX.search(text)}
    assert found - allowed == set()


def test_no_tracked_file_is_a_pickle(project_root: Path) -> None:
    suffixes = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib", ".ckpt")
    assert [name for name in git(project_root, "ls-files").splitlines() if name.endswith(suffixes)] == []


def test_the_makefile_names_an_index_only_to_hand_it_over(project_root: Path) -> None:
    assert re.findall(r"https?://|file://", read(project_root / "Makefile")) == []


def dry_run(root: Path, *arguments: str) -> str:
    command = ["make", "--dry-run", "--always-make", *arguments]
    # Make passes its own flags on; these tests may themselves run under make.
    environ = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MFLAGS", "MAKELEVEL"}}
    return subprocess.run(command, cwd=root, env=environ, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    ("target", "commands"),
    [
        ("setup", []),
        ("run", ["kedro run"]),
        ("lint", ["ruff check", "ruff format --check", "mypy"]),
        ("test", ["ruff check", "ruff format --check", "mypy", "pytest"]),
        ("test-fast", ["bin/pytest --numprocesses=logical", '-m "not slow"']),
        ("format", ["ruff format"]),
    ],
)
def test_each_target_works_on_a_fresh_clone(project_root: Path, target: str, commands: list[str]) -> None:
    output = dry_run(project_root, target)
    order = ["-m venv", "--require-hashes --requirement requirements-bootstrap.lock"]
    order += ["pip sync", "--require-hashes requirements.lock", "--editable .", *commands]
    places = [output.find(part) for part in order]
    assert -1 not in places, dict(zip(order, places, strict=True))
    assert places == sorted(places)


def test_locking_does_not_need_the_environment(project_root: Path) -> None:
    output = dry_run(project_root, "lock")
    assert "pip sync" not in output
    assert output.count("--generate-hashes --no-emit-index-url") == 2


def test_ci_runs_make_test_from_any_folder(project_root: Path, tmp_path: Path) -> None:
    fake = tmp_path / "make"
    fake.write_text('#!/bin/sh\necho "$PWD: make $*"\nexit 3\n', encoding="utf-8")
    fake.chmod(0o755)
    environ = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    command = [shutil.which("bash") or "bash", str(project_root / ".ci" / "run")]
    result = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (3, f"{project_root}: make test\n")


def test_kedro_has_not_written_its_mark_into_the_project(pyproject: dict[str, Any]) -> None:
    assert "kedro_telemetry" not in pyproject["tool"]


def test_telemetry_is_off_in_the_files_of_the_tools(project_root: Path) -> None:
    assert yaml.safe_load(read(project_root / ".telemetry")) == {"consent": False}
    assert re.search(r"^\s*analytics = false$", read(project_root / ".dvc" / "config"), re.M)


@pytest.mark.parametrize(
    "path",
    [
        "data/06_models/m/model.safetensors",
        "mlflow.db",
        "mlartifacts/x",
        "conf/local/parameters.yml",
        ".venv/x",
    ],
)
def test_git_ignores_what_a_run_leaves_behind(project_root: Path, path: str) -> None:
    assert git(project_root, "check-ignore", "--no-index", path).strip() == path


@pytest.mark.parametrize(
    "path",
    [
        "data/01_raw/memories/diary.md",
        "data/01_raw/memories/day_3/diary.md",
        "data/01_raw/memories/day_3/questions.csv",
        "data/01_raw/memories/day_3/letters/notes.md",
        "data/01_raw/probes/mine.jsonl",
    ],
)
def test_git_ignores_what_people_put_beside_the_bundled_memories(project_root: Path, path: str) -> None:
    assert git(project_root, "check-ignore", "--no-index", path).strip() == path


def test_git_keeps_every_bundled_file(project_root: Path) -> None:
    bundled = git(project_root, "ls-files", "data").splitlines()
    command = ["git", "check-ignore", "--no-index", *bundled]
    assert subprocess.run(command, cwd=project_root, capture_output=True, text=True, check=False).stdout == ""


@pytest.mark.parametrize("path", ["data/06_models/night_001.dvc", "data/01_raw/.gitkeep", ".telemetry"])
def test_git_keeps_the_pointers(project_root: Path, path: str) -> None:
    command = ["git", "check-ignore", "--no-index", "--quiet", path]
    assert subprocess.run(command, cwd=project_root, check=False).returncode == 1


def test_the_version_is_stated_alike(project_root: Path) -> None:
    import sleep_pipeline

    citation = yaml.safe_load(read(project_root / "CITATION.cff"))
    assert citation["version"] == sleep_pipeline.__version__


def test_every_module_keeps_to_one_idea(tracked_texts: dict[str, str]) -> None:
    sources = {name: text.count("\n") for name, text in tracked_texts.items() if name.endswith(".py")}
    assert {name: lines for name, lines in sources.items() if lines > 500} == {}


LIBRARY = [
    "memory",
    "memories",
    "seeding",
    "dreaming",
    "generation",
    "evaluation",
    "baselines",
    "corpora",
    "pretraining",
]


def test_the_library_knows_no_tools(tracked_texts: dict[str, str]) -> None:
    tools = re.compile(r"^\s*(?:from|import) (?:kedro|mlflow|dvc|great_expectations)\b", re.M)
    inside = re.compile(rf"src/sleep_pipeline/(?:{'|'.join(LIBRARY)})/")
    found = {
        name: match.group()
        for name, text in tracked_texts.items()
        if inside.match(name) and (match := tools.search(text))
    }
    assert found == {}


def test_nothing_but_the_registry_imports_the_pipelines(tracked_texts: dict[str, str]) -> None:
    pattern = re.compile(r"^\s*(?:from|import) sleep_pipeline\.pipelines\b", re.M)
    outside = {
        name
        for name, text in tracked_texts.items()
        if name.startswith("src/") and not name.startswith("src/sleep_pipeline/pipelines/") and pattern.search(text)
    }
    assert outside - {"src/sleep_pipeline/pipeline_registry.py"} == set()


@pytest.mark.slow
def test_a_built_wheel_holds_the_files_that_the_code_reads(project_root: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        source.mkdir(exist_ok=True)
        shutil.copy(project_root / name, source / name)
    package = source / "src" / "sleep_pipeline"
    shutil.copytree(project_root / "src" / "sleep_pipeline", package, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-c", "from setuptools.build_meta import build_wheel; print(build_wheel('.'))"]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (wheel,) = source.glob("*.whl")
    wanted = {
        path.relative_to(source / "src").as_posix()
        for path in package.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }
    assert wanted - set(zipfile.ZipFile(wheel).namelist()) == set()
