import csv
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sleep_pipeline.evaluation.tasks import Example, TaskDeclaration, TaskError, declared, load_task, task_names
from sleep_pipeline.evaluation.tasks.loading import draw
from sleep_pipeline.evaluation.tasks.rows import Row

BANKING = {
    "train": [
        ("where is my\n\nrefund, it is late", "Refund_not_showing_up"),
        ('they said "no"', "reverted_card_payment?"),
        ("new card please", "card_arrival"),
    ],
    "test": [("refund?\n", "Refund_not_showing_up"), ("card", "card_arrival"), ("pay", "reverted_card_payment?")],
}
DBPEDIA = {
    "train": [("A team.", "Agent", "SportsTeam", "Club"), ("A hill, high.", "Place", "NaturalPlace", "Hill")],
    "test": [("Another team.", "Agent", "SportsTeam", "Club")],
}


def small(name: str, **changes: Any) -> TaskDeclaration:
    """A declaration that takes all rows."""
    return declared(name).model_copy(update={"train_rows": None, "test_rows": None, **changes})


def write_csv(
    path: Path, header: Sequence[str], rows: Sequence[Sequence[str]], encoding: str = "utf-8", end: str = "\n"
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file, lineterminator=end).writerows([header, *rows])


def banking(folder: Path, **how: str) -> Path:
    for split, rows in BANKING.items():
        write_csv(folder / f"{split}.csv", ["text", "category"], rows, **how)
    return folder


def clinc(path: Path, **changes: Any) -> Path:
    splits: dict[str, Any] = {
        "oos_val": [["a show", "oos"]],
        "val": [["send it", "transfer"]],
        "train": [["send money", "transfer"], ["what a song", "what_song"]],
        "oos_test": [["the area of a circle", "oos"], ["hm", "oos"]],
        "test": [["move money", "transfer"], ["name the tune", "what_song"]],
        "oos_train": [["odd", "oos"]],
    }
    text = json.dumps(splits | changes, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["data_full.json", "data_full.json.gz"])
def test_clinc_keeps_what_is_out_of_scope_apart(tmp_path: Path, name: str) -> None:
    clinc(tmp_path / name)
    data = load_task(declared("clinc150"), tmp_path)
    assert data.labels == ("transfer", "what song")
    assert data.train == (Example("send money", "transfer"), Example("what a song", "what song"))
    assert data.validation == (Example("send it", "transfer"),)
    assert [one.text for one in data.test] == ["move money", "name the tune"]
    assert data.out_of_scope == ("the area of a circle", "hm")
    assert load_task(declared("clinc150"), tmp_path / name) == data


@pytest.mark.parametrize("how", [{}, {"encoding": "utf-8-sig"}, {"end": "\r\n"}, {"encoding": "utf-16"}])
def test_banking_keeps_newlines_within_quotes(tmp_path: Path, how: dict[str, str]) -> None:
    data = load_task(declared("banking77"), banking(tmp_path, **how))
    assert data.train == (
        Example("where is my\n\nrefund, it is late", "refund not showing up"),
        Example('they said "no"', "reverted card payment"),
        Example("new card please", "card arrival"),
    )
    assert (len(data.test), data.out_of_scope, data.quarantined) == (3, (), ())


@pytest.mark.parametrize("index", [False, True])
def test_dbpedia_takes_the_second_level_wherever_the_columns_stand(tmp_path: Path, index: bool) -> None:
    header = ["", "text", "l1", "l2", "l3"] if index else ["text", "l1", "l2", "l3"]
    for split, rows in DBPEDIA.items():
        told = [(str(n), *row) if index else row for n, row in enumerate(rows)]
        write_csv(tmp_path / f"DBPEDIA_{split}.csv", header, told)
    write_csv(tmp_path / "DBPEDIA_val.csv", ["l3", "l2", "l1", "text"], [("Club", "SportsTeam", "Agent", "Third.")])
    data = load_task(small("dbpedia"), tmp_path)
    assert data.labels == ("natural place", "sports team")
    assert data.train[1] == Example("A hill, high.", "natural place")
    assert data.validation == (Example("Third.", "sports team"),)


def test_json_lines_are_read_as_the_table_is(tmp_path: Path) -> None:
    for split, rows in DBPEDIA.items():
        records = [dict(zip(("text", "l1", "l2", "l3"), row, strict=True)) for row in rows]
        (tmp_path / f"{split}.jsonl").write_text("\n\n".join(map(json.dumps, records)))
    data = load_task(small("dbpedia"), tmp_path)
    assert data.test == (Example("Another team.", "sports team"),)


def parquet(folder: Path, split: str, rows: Sequence[tuple[str, int]], shards: int = 1) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=["card_arrival", "Refund_not_showing_up"])
    )
    folder.mkdir(exist_ok=True)
    for shard in range(shards):
        mine = rows[shard::shards]
        table = datasets.Dataset.from_dict(
            {"text": [text for text, _ in mine], "label": [label for _, label in mine]}, features
        )
        table.to_parquet(folder / f"{split}-{shard:05d}-of-{shards:05d}.parquet")


def test_a_hub_s_parquet_brings_the_names_of_its_class_numbers(tmp_path: Path) -> None:
    parquet(tmp_path / "data", "train", [("late", 1), ("where", 0), ("slow", 1)], shards=2)
    parquet(tmp_path / "data", "test", [("when", 0)])
    data = load_task(declared("banking77"), tmp_path)
    assert data.test == (Example("when", "card arrival"),)
    assert {one.text: one.label for one in data.train} == {
        "late": "refund not showing up",
        "slow": "refund not showing up",
        "where": "card arrival",
    }


def test_a_hub_is_asked_only_when_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        text=datasets.Value("string"), intent=datasets.ClassLabel(names=["oos", "what_song", "transfer"])
    )
    table = datasets.Dataset.from_dict({"text": ["hm", "tune", "pay"], "intent": [0, 1, 2]}, features)
    asked: list[Any] = []

    def load(*given: Any) -> Any:
        asked.append(given)
        return datasets.DatasetDict({"train": table, "test": table})

    monkeypatch.setattr(datasets, "load_dataset", load)
    data = load_task(declared("clinc150"), "", hub=True)
    assert asked == [("clinc/clinc_oos", "plus")]
    assert (data.labels, data.out_of_scope) == (("transfer", "what song"), ("hm",))
    with pytest.raises(TaskError, match="there is no folder clinc/clinc_oos"):
        load_task(declared("clinc150"), "clinc/clinc_oos")
    assert len(asked) == 1


def test_a_hub_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def fail(*given: Any) -> Any:
        raise ConnectionError("no way out")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(TaskError, match=r"'some/thing' cannot be loaded \(no way out\).*train.csv and test.csv"):
        load_task(declared("banking77"), "some/thing", hub=True)


def test_a_hub_s_files_that_cannot_be_read_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def fail(*given: Any) -> Any:
        raise datasets.exceptions.DatasetGenerationError("while generating") from ValueError("a column is missing")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(TaskError, match=r"'some/thing' cannot be loaded \(a column is missing\)"):
        load_task(declared("banking77"), "some/thing", hub=True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *given: (_ for _ in ()).throw(OSError()))
    with pytest.raises(TaskError, match=r"'some/thing' cannot be loaded \(OSError\)"):
        load_task(declared("banking77"), "some/thing", hub=True)


def test_a_hub_s_rows_without_a_label_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["a_a", "b_b"]))
    table = datasets.Dataset.from_dict({"text": ["one", "two", "none"], "label": [0, 1, -1]}, features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *given: {"train": table, "test": table})
    data = load_task(declared("banking77"), "", hub=True)
    assert [one.label for one in data.test] == ["a a", "b b"]
    assert [row.line for row in data.quarantined] == [3, 3]


def test_bad_rows_are_left_out_and_listed(tmp_path: Path) -> None:
    banking(tmp_path)
    with (tmp_path / "train.csv").open("a") as file:
        file.write(' ,card_arrival\nno label,\na,b,c\n"never closed,card_arrival\n')
    with (tmp_path / "test.csv").open("a") as file:
        file.write("strange,never_seen\n")
    data = load_task(declared("banking77"), tmp_path)
    assert len(data.train) == 3 and len(data.test) == 3
    assert [(row.file, row.line) for row in data.quarantined] == [
        ("train.csv", 7),
        ("train.csv", 8),
        ("train.csv", 9),
        ("train.csv", 10),
        ("test.csv", 6),
    ]
    reasons = [row.reason for row in data.quarantined]
    for reason, part in zip(
        reasons, ("text is empty", "label is empty", "3 fields", "quote", "'never_seen' is not among"), strict=True
    ):
        assert part in reason


def test_other_columns_are_refused_with_file_line_and_remedy(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", ["sentence", "category"], [("a", "b")])
    write_csv(tmp_path / "test.csv", ["text", "category"], [("a", "b")])
    with pytest.raises(TaskError, match=r"train.csv:1: the columns are sentence, category, and none is text; rename"):
        load_task(declared("banking77"), tmp_path)


def test_json_that_is_damaged_is_refused_with_its_place(tmp_path: Path) -> None:
    path = clinc(tmp_path / "data_full.json", test=[["move money", "transfer"], ["no label"]])
    with pytest.raises(TaskError, match=r"row 2 of 'test' is \['no label'\]"):
        load_task(declared("clinc150"), path)
    path.write_text('{"train": [\n["a" "b"]]}')
    with pytest.raises(TaskError, match=r"data_full.json:2: no JSON"):
        load_task(declared("clinc150"), path)


def test_missing_and_ambiguous_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"holds no file of the split 'train'; get train.csv and test.csv"):
        load_task(declared("banking77"), tmp_path)
    banking(tmp_path)
    (tmp_path / "train.jsonl").write_text('{"text": "a", "category": "b"}')
    with pytest.raises(TaskError, match=r"train.csv, train.jsonl may all be the split 'train'; leave one"):
        load_task(declared("banking77"), tmp_path)


def test_class_numbers_without_names_are_refused(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text('{"text": "a", "label": 11}\n{"text": "b", "label": 3}')
    with pytest.raises(TaskError, match=r"the labels are numbers \(11, 3 \.\.\.\) whose names are not in the file"):
        load_task(declared("banking77"), tmp_path)


def test_labels_that_read_the_same_are_refused(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_csv(tmp_path / f"{split}.csv", ["text", "category"], [("a", "top_up"), ("b", "top up?")])
    with pytest.raises(TaskError, match="'top up\\?' and 'top_up' are both 'top up' in words"):
        load_task(declared("banking77"), tmp_path)


def test_a_draw_is_proportional_and_leaves_no_class_out() -> None:
    rows = [Row("f", n, "t", "many") for n in range(90)] + [Row("f", n, "t", "some") for n in range(90, 99)]
    rows.append(Row("f", 99, "t", "one"))
    drawn = draw(rows, 10, "salt")
    counts = {label: sum(row.label == label for row in drawn) for label in ("many", "some", "one")}
    assert counts == {"many": 8, "some": 1, "one": 1}
    assert drawn == draw(rows, 10, "salt") and drawn != draw(rows, 10, "pepper")
    assert [row.line for row in drawn] == sorted(row.line for row in drawn)


def test_a_draw_gives_exactly_as_many_rows_as_asked() -> None:
    rows = [Row("f", n, "t", str(n % 7 * (n % 3))) for n in range(200)]
    assert [len(draw(rows, count, "s")) for count in (13, 50, 77, 199)] == [13, 50, 77, 199]


def test_dbpedia_is_cut_to_the_declared_rows(tmp_path: Path) -> None:
    rows = [(f"text {n}", "l", f"Class{n % 4}", "m") for n in range(60)]
    for split in ("train", "test"):
        write_csv(tmp_path / f"DBPEDIA_{split}.csv", ["text", "l1", "l2", "l3"], rows)
    data = load_task(small("dbpedia", train_rows=20, test_rows=8), tmp_path)
    assert (len(data.train), len(data.test)) == (20, 8)


def test_every_declared_task_has_the_protocol_of_the_paper() -> None:
    assert {name: (declared(name).tasks, declared(name).classes) for name in task_names()} == {
        "banking77": (7, 77),
        "clinc150": (10, 150),
        "dbpedia": (7, 70),
    }
    with pytest.raises(ValueError, match="there is no task 'clinc'; choose one of banking77"):
        declared("clinc")


def test_names_of_a_label_that_read_alike_are_one_label(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", ["text", "category"], [("a", "card_arrival "), ("b", "lost card")])
    rows = [("c", " Card_Arrival"), ("d", "card arrival"), ("e", "lost_card"), ("f", "stolen_card")]
    write_csv(tmp_path / "test.csv", ["text", "category"], rows)
    data = load_task(small("banking77"), tmp_path)
    assert data.labels == ("card arrival", "lost card")
    assert [one.label for one in data.test] == ["card arrival", "card arrival", "lost card"]
    assert [row.line for row in data.quarantined] == [5], "and another label is none of them"


def test_training_rows_of_which_none_can_be_used_say_why(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", ["text", "category"], [("", "card_arrival"), ("b", "")])
    write_csv(tmp_path / "test.csv", ["text", "category"], [("c", "card_arrival")])
    with pytest.raises(TaskError, match=r"none of 2 training rows can be used; train\.csv:2: the text is empty"):
        load_task(small("banking77"), tmp_path)


def test_training_rows_may_write_a_label_in_several_ways(tmp_path: Path) -> None:
    rows = [("a", "Card_arrival"), ("b", "card arrival"), ("c", "CARD_ARRIVAL"), ("d", "top_up")]
    for split in ("train", "test"):
        write_csv(tmp_path / f"{split}.csv", ["text", "category"], rows)
    data = load_task(small("banking77"), tmp_path)
    assert data.labels == ("card arrival", "top up")
    assert [one.label for one in data.train] == [one.label for one in data.test] == ["card arrival"] * 3 + ["top up"]
