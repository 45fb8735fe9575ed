"""What git knows of the code that a run executes."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

# The data of the project and, where that lies deeper in a repository, of the repository's root.
_DATA = (":(top)data", "data")
_NO_DATA = (":(top,exclude)data", ":(exclude)data")


@dataclass(frozen=True)
class GitState:
    """`commit` checked out on `branch`, and what leads from it to the working tree.

    Attributes:
        commit: its hash.
        branch: `HEAD` if none is checked out.
        diff: of tracked files, those below `data/` left out: they are what people remember, and a diff is kept.
        untracked: names of files that git neither tracks nor ignores, without those below `data/`.
        data_changed: how many files below `data/` differ from the commit or are new.
    """

    commit: str
    branch: str
    diff: str
    untracked: tuple[str, ...]
    data_changed: int = 0

    @property
    def dirty(self) -> bool:
        """Whether the working tree differs from the commit."""
        return bool(self.diff or self.untracked or self.data_changed)

    @property
    def code(self) -> str:
        """The commit, and whether the code that ran is another one."""
        return self.commit + (", with changes that are not committed" if self.diff or self.untracked else "")


def _git(project_path: Path, *arguments: str) -> str:
    # quotePath=off keeps file names readable; errors="replace" because a diff holds bytes of any file.
    command = ["git", "-c", "core.quotePath=off", *arguments]
    result = subprocess.run(command, cwd=project_path, capture_output=True, check=True)
    return result.stdout.decode("utf-8", errors="replace")


def git_state(project_path: Path) -> GitState | None:
    """Return the state of the repository around `project_path`; None without git or without a commit."""
    untracked = ("ls-files", "--others", "--exclude-standard", "--")
    try:
        changed_data = [
            *_git(project_path, "diff", "HEAD", "--name-only", "--", *_DATA).splitlines(),
            *_git(project_path, *untracked, *_DATA).splitlines(),
        ]
        return GitState(
            commit=_git(project_path, "rev-parse", "HEAD").strip(),
            branch=_git(project_path, "rev-parse", "--abbrev-ref", "HEAD").strip(),
            diff=_git(project_path, "diff", "HEAD", "--", ":(top)", *_NO_DATA),
            untracked=tuple(_git(project_path, *untracked, ".", *_NO_DATA).splitlines()),
            data_changed=len(changed_data),
        )
    except (OSError, subprocess.CalledProcessError):
        return None
