"""A run knows the code it executed."""

import subprocess
from pathlib import Path

import pytest

from sleep_pipeline.tracking.git import git_state


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.com"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--initial-branch=main")
    (tmp_path / "code.py").write_text("x = 1\n", encoding="utf-8")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--message=first")
    return tmp_path


def test_a_clean_tree_has_a_commit_and_no_diff(repository: Path) -> None:
    state = git_state(repository)
    assert state is not None
    assert (len(state.commit), state.branch, state.dirty) == (40, "main", False)


def test_a_changed_file_makes_the_tree_dirty_and_shows_in_the_diff(repository: Path) -> None:
    (repository / "code.py").write_text("x = 2\n", encoding="utf-8")
    state = git_state(repository)
    assert state is not None
    assert state.dirty
    assert "+x = 2" in state.diff


def test_a_new_file_makes_the_tree_dirty(repository: Path) -> None:
    (repository / "größe.py").touch()
    state = git_state(repository)
    assert state is not None
    assert (state.dirty, state.diff, state.untracked) == (True, "", ("größe.py",))


@pytest.mark.parametrize(("name", "told"), [("code.py", True), ("new.py", True), ("data/notes.md", False)])
def test_code_that_is_not_the_commits_does_not_pass_for_it(repository: Path, name: str, told: bool) -> None:
    (repository / "data").mkdir()
    (repository / name).write_text("x = 2\n", encoding="utf-8")
    state = git_state(repository)
    assert state is not None
    assert state.code == state.commit + (", with changes that are not committed" if told else "")


def test_a_changed_file_that_is_not_text_is_no_problem(repository: Path) -> None:
    (repository / "code.py").write_bytes(b"\xff\xfe = 2\n")
    state = git_state(repository)
    assert state is not None
    assert state.dirty


@pytest.mark.parametrize("place", ["", "src/package"])
def test_of_data_only_the_number_of_changed_files_is_told(repository: Path, place: str) -> None:
    for name in ("data/01_raw/notes.md", "data/gone.txt", "src/package/module.py", "database.py"):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text("so far\n", encoding="utf-8")
    git(repository, "add", ".")
    git(repository, "commit", "--message=second")
    (repository / "data/01_raw/notes.md").write_text("my diary\n", encoding="utf-8")
    (repository / "data/gone.txt").unlink()
    (repository / "data/01_raw/divorce.md").touch()
    state = git_state(repository / place)
    assert state is not None
    assert (state.dirty, state.diff, state.untracked, state.data_changed) == (True, "", (), 3)
    (repository / "database.py").write_text("changed\n", encoding="utf-8")
    (repository / "src/package/new.py").touch()
    state = git_state(repository / place)
    assert state is not None
    assert "+changed" in state.diff and "diary" not in state.diff
    assert [Path(name).name for name in state.untracked] == ["new.py"]


def test_data_of_a_project_within_a_larger_repository_is_left_out(repository: Path) -> None:
    inner = repository / "projects" / "sleep"
    (inner / "data").mkdir(parents=True)
    (inner / "data" / "notes.md").touch()
    state = git_state(inner)
    assert state is not None
    assert (state.diff, state.untracked, state.data_changed) == ("", (), 1)


def test_a_folder_outside_git_or_without_commits_has_no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) is None
    git(tmp_path, "init")
    assert git_state(tmp_path) is None
