"""Loads a task from a folder of the published files, or through `datasets` from a hub."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sleep_pipeline.evaluation.tasks.data import SPLITS, Example, LabelledData, Quarantined, TaskError
from sleep_pipeline.evaluation.tasks.declaration import TaskDeclaration
from sleep_pipeline.evaluation.tasks.labels import in_words, words_of
from sleep_pipeline.evaluation.tasks.rows import SUFFIXES, Row, column, named, read_rows, read_splits, suffix_of

_NAMES = {"train": ("train", "training"), "validation": ("val", "valid", "validation", "dev"), "test": ("test",)}


def load_task(declaration: TaskDeclaration, source: str | Path, hub: bool = False) -> LabelledData:
    """Read a task; rows that cannot be used are left out and listed.

    Args:
        declaration: which task.
        source: the folder that holds its files, a file with all of its splits, or a data set's name on the hub; an
            empty name with `hub` takes the declared one.
        hub: whether `source` is a name on the hub, which `datasets` may fetch.

    Raises:
        TaskError: files are missing, ambiguous or unreadable, or their columns or labels are not those of the task.
    """
    rows = _from_hub(declaration, str(source)) if hub else _from_folder(declaration, Path(source))
    for split in ("train", "test"):
        if not rows[split]:
            raise TaskError(f"{source}: the split {split!r} has no rows; {_remedy(declaration)}")
    return _labelled(declaration, rows, str(source))


def _remedy(declaration: TaskDeclaration) -> str:
    return f"get {declaration.obtain}"


def _from_folder(declaration: TaskDeclaration, source: Path) -> dict[str, list[Row]]:
    if source.is_file():
        return _whole_file(declaration, source)
    if not source.is_dir():
        raise TaskError(f"there is no folder {source}; {_remedy(declaration)}, and give the folder they are in")
    if declaration.splits_file is not None:
        for folder in (source, source / "data"):
            for name in (declaration.splits_file, f"{declaration.splits_file}.gz"):
                if (folder / name).is_file():
                    return _whole_file(declaration, folder / name)
    rows: dict[str, list[Row]] = {}
    folders = [source, source / "data", *([source / declaration.hub.config] if declaration.hub.config else [])]
    for split in SPLITS:
        paths = next(filter(None, (_files(folder, split) for folder in folders)), [])
        if not paths and split != "validation":
            raise TaskError(f"{source}: holds no file of the split {split!r}; {_remedy(declaration)}")
        rows[split] = [
            row for path in paths for row in read_rows(path, declaration.text_columns, declaration.label_columns)
        ]
    return rows


def _whole_file(declaration: TaskDeclaration, path: Path) -> dict[str, list[Row]]:
    if declaration.splits_file is None:
        raise TaskError(f"{path}: {declaration.name} has a file a split; give the folder that holds them")
    found = read_splits(path)
    rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for name, more in found.items():
        for split in SPLITS:
            if name.removeprefix(f"{declaration.out_of_scope}_") in _NAMES[split]:
                rows[split] += more
    return rows


def _files(folder: Path, split: str) -> list[Path]:
    """The files of a split in a folder, which are of one kind: one, or the shards of one.

    Raises:
        TaskError: there are several, and no telling which.
    """
    if not folder.is_dir():
        return []
    files = [path for path in sorted(folder.iterdir()) if suffix_of(path) in SUFFIXES and path.is_file()]
    mine = [path for path in files if set(re.split(r"[^a-z]+", path.name.lower())) & set(_NAMES[split])]
    whole = [path for path in mine if not re.search(r"-\d+-of-\d+", path.name)]
    if (whole and len(mine) > 1) or len({suffix_of(path) for path in mine}) > 1:
        raise TaskError(
            f"{folder}: {', '.join(path.name for path in mine)} may all be the split {split!r}; leave one of them"
        )
    return mine


def _from_hub(declaration: TaskDeclaration, source: str) -> dict[str, list[Row]]:
    import datasets

    name = source or declaration.hub.name
    config = declaration.hub.config if name == declaration.hub.name else None
    try:
        loaded: Mapping[str, Any] = datasets.load_dataset(name, config)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        # What reads the files failed, and `datasets` says only that something did.
        why = error.__cause__ if isinstance(error, datasets.exceptions.DatasetsError) and error.__cause__ else error
        told = next(iter(str(why).splitlines()), type(why).__name__)
        raise TaskError(
            f"the hub's data set {name!r} cannot be loaded ({told}); check the name, the network and HF_HUB_OFFLINE, "
            f"or {_remedy(declaration)}"
        ) from error
    rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for part, table in loaded.items():
        split = next((split for split in SPLITS if part in _NAMES[split]), None)
        if split is None:
            continue
        where = f"{name}/{part}"
        text = column(table.column_names, declaration.text_columns, where)
        label = column(table.column_names, declaration.label_columns, where)
        classes = getattr(table.features[label], "names", None)
        for number, record in enumerate(zip(table[text], table[label], strict=True), start=1):
            words, answer = record[0], named(record[1], classes)
            empty = words is None or answer is None
            rows[split].append(Row(where, number, "" if empty else str(words), "" if empty else str(answer)))
    return rows


def _labelled(declaration: TaskDeclaration, rows: Mapping[str, Sequence[Row]], source: str) -> LabelledData:
    quarantined: list[Quarantined] = []
    good = {split: _usable(rows[split], quarantined) for split in SPLITS}
    if rows["train"] and not good["train"]:
        first = quarantined[0]
        told = f"{first.file}:{first.line}: {first.reason}"
        raise TaskError(f"{source}: none of {len(rows['train'])} training rows can be used; {told}")
    apart = {split: [row for row in good[split] if row.label == declaration.out_of_scope] for split in SPLITS}
    inside = {split: [row for row in good[split] if row.label != declaration.out_of_scope] for split in SPLITS}
    published = {row.label for row in inside["train"]}
    if published and all(label.isdigit() for label in published):
        raise TaskError(
            f"{source}: the labels are numbers ({', '.join(sorted(published)[:3])} ...) whose names are not in the "
            f"file; {_remedy(declaration)}"
        )
    try:
        words = words_of(published)
    except ValueError as error:
        raise TaskError(f"{source}: {error}") from error
    # Names that read alike are one label, whatever their case and underscores: that of the last of them.
    names = {said: label for label, said in words.items()}
    known: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        for row in inside[split]:
            name = names.get(in_words(row.label))
            if name is not None:
                known[split].append(replace(row, label=name))
                continue
            told = f"the label {row.label!r} is not among those of the training rows; correct it or delete the row"
            quarantined.append(Quarantined(row.file, row.line, told))
    sizes = {"train": declaration.train_rows, "validation": declaration.test_rows, "test": declaration.test_rows}
    drawn = {split: draw(known[split], sizes[split], f"{declaration.name}/{split}") for split in SPLITS}
    train, validation, test = (
        tuple(Example(row.text.strip(), words[row.label]) for row in drawn[split]) for split in SPLITS
    )
    outside, before = (tuple(row.text.strip() for row in apart[split]) for split in ("test", "validation"))
    return LabelledData(declaration, tuple(names), train, validation, test, outside, tuple(quarantined), before)


def _usable(rows: Iterable[Row], quarantined: list[Quarantined]) -> list[Row]:
    good = []
    for row in rows:
        problem = row.problem
        if problem is None and not row.text.strip():
            problem = "the text is empty; fill it in or delete the row"
        if problem is None and not row.label.strip():
            problem = "the label is empty; fill it in or delete the row"
        if problem is None:
            good.append(replace(row, label=row.label.strip()))
        else:
            quarantined.append(Quarantined(row.file, row.line, problem))
    return good


def draw(rows: Sequence[Row], count: int | None, salt: str) -> list[Row]:
    """So many rows, drawn in proportion to the classes but at least one of each, in the order of the file.

    Shares are rounded by largest remainder; the same rows every time, so that all seeds speak of the same questions.
    """
    if count is None or count >= len(rows):
        return list(rows)
    places: dict[str, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        places[row.label].append(place)
    if count < len(places):
        raise TaskError(f"{count} rows cannot hold {len(places)} classes; draw more")
    exact = {label: count * len(own) / len(rows) for label, own in places.items()}
    shares = {label: max(1, int(share)) for label, share in exact.items()}
    # Rare classes that got their one row may have made the sum too large: the largest classes pay for that.
    while (excess := sum(shares.values()) - count) != 0:
        step = -1 if excess > 0 else 1
        fitting = [
            label for label in sorted(shares) if (shares[label] > 1 if step < 0 else shares[label] < exact[label])
        ]
        label = max(fitting, key=lambda one: (exact[one] - shares[one]) * step)
        shares[label] += step
    rng = random.Random(salt)
    chosen = [place for label in sorted(places) for place in rng.sample(places[label], shares[label])]
    return [rows[place] for place in sorted(chosen)]
