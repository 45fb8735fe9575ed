"""Which texts a model must go on predicting, and what is said of those that cannot be had."""

from pathlib import Path

import pytest

from sleep_pipeline.evaluation.texts import TextsError, ordinary_texts, texts_digest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "english").mkdir()
    (tmp_path / "english/b.txt").write_text("The harbour lay still.", encoding="utf-8")
    (tmp_path / "english/a.txt").write_text("It rained.", encoding="utf-8")
    (tmp_path / "old.txt").write_bytes("It rained.\nThe caf\u00e9 was shut.".encode("latin-1"))
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    return tmp_path


def test_files_are_taken_in_their_order_and_once(folder: Path) -> None:
    assert ordinary_texts(["english/b*", "english/*.txt", "*/a.txt"], folder) == [
        "It rained.",
        "The harbour lay still.",
    ]


def test_without_patterns_the_packages_own_text_is_taken(tmp_path: Path) -> None:
    (text,) = ordinary_texts([], tmp_path)
    assert len(text) > 1000


@pytest.mark.parametrize(
    ("patterns", "reason"),
    [
        (["english/*.txt", "englisch/*.txt"], r"'englisch/\*\.txt' matches no file below"),
        (["english"], "'english' matches no file below"),
        (["old.txt"], r"old\.txt:2: the byte 0xe9 is not UTF-8, perhaps Latin-1; save the file as UTF-8"),
        (["/etc/*"], "'/etc/\\*' is no pattern below"),
        ([""], "'' is no pattern below"),
        (["empty.txt"], "the files are empty"),
    ],
)
def test_what_cannot_be_had_is_named(folder: Path, patterns: list[str], reason: str) -> None:
    with pytest.raises(TextsError, match=f"^evaluation\\.texts.*{reason}"):
        ordinary_texts(patterns, folder)


def test_the_digest_tells_texts_apart() -> None:
    choices = [["ab", "c"], ["a", "bc"], ["abc"], ["c", "ab"], []]
    assert len({texts_digest(texts) for texts in choices}) == len(choices)
    assert texts_digest(["ab", "c"]) == texts_digest(("ab", "c"))
