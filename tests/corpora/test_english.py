import gzip
import json
import random
from pathlib import Path

import pytest

from sleep_pipeline.corpora.english import English, load_corpora, read_corpus

SENTENCES = [f"The {number} old ships sailed home over the quiet sea at dawn." for number in range(4000)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "plain.txt").write_text("\n".join(SENTENCES), encoding="utf-8")
    rows = "\n".join(json.dumps({"text": sentence, "more": 1}) for sentence in SENTENCES[:50])
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    return tmp_path


def test_plain_and_gzipped_files_are_read_once_each(folder: Path) -> None:
    corpora = load_corpora(["*.txt", "*", str(folder / "plain.txt")], folder)
    assert [corpus.name for corpus in corpora] == ["plain.txt", "rows.jsonl.gz"]
    assert sum(len(passage) for passage in corpora[0].passages) >= sum(map(len, SENTENCES))


def test_the_splits_share_no_passage_and_lose_none(folder: Path) -> None:
    corpus = read_corpus(folder / "plain.txt")
    train, test = corpus.of_split("train"), corpus.of_split("test")
    assert not set(train) & set(test)
    assert sorted(train + test) == sorted(corpus.passages)


def test_practice_answers_come_from_the_text(folder: Path) -> None:
    english = English(load_corpora(["plain.txt"], folder), "train")
    rng = random.Random(0)
    for _ in range(200):
        example = english.practice(rng)
        assert example.answer in example.messages[0]["content"]


def test_a_pattern_without_files_is_an_error(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"novels/\*"):
        load_corpora(["novels/*"], folder)


def test_an_empty_corpus_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n\n")
    with pytest.raises(ValueError, match=r"empty\.txt: holds no text"):
        read_corpus(tmp_path / "empty.txt")


def test_a_file_that_is_not_utf8_is_named_with_the_line(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("one\ntwo\ncafé\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt:3: byte 11 is not UTF-8"):
        read_corpus(tmp_path / "latin.txt")


@pytest.mark.parametrize("line", ['{"title": "no text"}', "{", "[1]"])
def test_a_broken_row_is_named_with_its_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl:2"):
        read_corpus(tmp_path / "rows.jsonl")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.pdf").write_bytes(b"%PDF")
    with pytest.raises(ValueError, match=r"notes\.pdf: not a corpus"):
        read_corpus(tmp_path / "notes.pdf")


def test_a_split_without_passages_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("One passage, and it is in the train split or not at all.")
    corpus = read_corpus(tmp_path / "short.txt")
    empty = "test" if corpus.of_split("train") else "train"
    with pytest.raises(ValueError, match=f"is in the {empty} split"):
        English([corpus], empty)


@pytest.mark.parametrize("line", ["buy milk and bread", "- a list", "eine zeile. noch eine. und noch eine."])
def test_text_without_sentences_is_told_instead_of_searched_for_ever(tmp_path: Path, line: str) -> None:
    (tmp_path / "notes.txt").write_text(f"{line}\n" * 900, encoding="utf-8")
    english = English([read_corpus(tmp_path / "notes.txt")], "train")
    with pytest.raises(ValueError, match=r"notes\.txt: .*set pretrain\.mixture\.practice_share=0"):
        english.practice(random.Random(0))
