"""What git knows of the code that a run executes."""

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class GitState:
    """`commit` checked out on `branch`; `diff` is the text that leads from it to the working tree."""

    commit: str
    branch: str
    diff: str
    untracked: tuple[str, ...]

    @property
    def dirty(self) -> bool:
        """Whether the working tree differs from the commit."""
        return bool(self.diff or self.untracked)


def _git(project_path: Path, *arguments: str) -> str:
    # quotePath=off keeps file names readable; errors="replace" because a diff holds bytes of any file.
    command = ["git", "-c", "core.quotePath=off", *arguments]
    result = subprocess.run(command, cwd=project_path, capture_output=True, check=True)
    return result.stdout.decode("utf-8", errors="replace")


def git_state(project_path: Path) -> GitState | None:
    """Return the state of the repository around `project_path`; None without git or without a commit."""
    try:
        return GitState(
            commit=_git(project_path, "rev-parse", "HEAD").strip(),
            branch=_git(project_path, "rev-parse", "--abbrev-ref", "HEAD").strip(),
            diff=_git(project_path, "diff", "HEAD"),
            untracked=tuple(_git(project_path, "ls-files", "--others", "--exclude-standard").splitlines()),
        )
    except (OSError, subprocess.CalledProcessError):
        return None
