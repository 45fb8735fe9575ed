import json
import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from sleep_pipeline.evaluation.probes import ProbeError, asked_earlier
from sleep_pipeline.evaluation.settings import EvaluationSettings
from sleep_pipeline.generation.sampler import WindowError
from sleep_pipeline.memories.contexts import Context
from sleep_pipeline.memories.records import Content, Memory, memories_to_frame
from sleep_pipeline.memories.settings import CollectSettings, MaskSettings
from sleep_pipeline.night_model import MachineSettings, MemorySettings, NightModel
from sleep_pipeline.pipelines.seed import nodes
from sleep_pipeline.pipelines.seed.nodes import FOR_DREAMS, TO_ASK, TO_LEARN, _use, parent_checkpoint
from sleep_pipeline.registry import Night, NightRegistry, RegistryError, manifest_digest
from sleep_pipeline.seeding import night as seeding
from sleep_pipeline.seeding.night import Learned
from sleep_pipeline.seeding.settings import SeedingSettings


def registered(folder: Path) -> NightRegistry:
    checkpoint = folder / "night_001"
    checkpoint.mkdir()
    (checkpoint / "manifest.json").write_text("{}", encoding="utf-8")
    registry = NightRegistry(folder)
    registry.register(Night(1, 0, "night_001", manifest_digest(checkpoint), "2026-01-01T00:00:00Z"))
    return registry


def test_a_night_grows_from_the_champion(tmp_path: Path) -> None:
    assert parent_checkpoint(tmp_path, 1) is None
    registry = registered(tmp_path)
    assert parent_checkpoint(tmp_path, 2) is None, "a night that was not promoted is nobody's parent"
    registry.promote(1)
    assert parent_checkpoint(tmp_path, 2) == tmp_path / "night_001"


def test_a_registered_night_is_not_lived_again(tmp_path: Path) -> None:
    registered(tmp_path)
    with pytest.raises(RegistryError, match=r"night 1 is registered.*as night 2"):
        parent_checkpoint(tmp_path, 1)


def test_the_use_of_a_question_is_its_own_and_dreams_are_judged_by_other_ones_than_the_night() -> None:
    uses = [_use(f"How many inns has town {number}?", CollectSettings()) for number in range(2000)]
    assert uses == [_use(f"how many  inns has town {number}?", CollectSettings()) for number in range(2000)]
    shares = {use: uses.count(use) / len(uses) for use in (TO_LEARN, TO_ASK, FOR_DREAMS)}
    assert shares[TO_LEARN] == pytest.approx(0.8, abs=0.03)
    assert shares[TO_ASK] == pytest.approx(0.1, abs=0.03)
    assert shares[FOR_DREAMS] == pytest.approx(0.1, abs=0.03)


def test_what_people_ask_is_neither_learned_nor_asked_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sleep_pipeline.seeding.teacher import TeacherData, TeacherSample

    made_up = [f"How many inns has town {number}?" for number in range(60)]
    learned = [question for question in made_up if _use(question, CollectSettings()) == TO_LEARN]
    folder = tmp_path / "probes"
    folder.mkdir()
    row = {"question": learned[0].upper().replace(" ", "  "), "answer": "two", "source": "m/notes.md:3"}
    (folder / "mine.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    withheld = []

    def gather(*_: Any, **more: Any) -> Any:
        withheld.extend(question for question in made_up if more["withheld"](question))
        samples = [TeacherSample(0, "questions", question, "two", 1.0) for question in made_up]
        return SimpleNamespace(data=TeacherData(samples), lessons=made_up, open_book=[], seconds={})

    samples, lessons, probes, summary = sampled(gather, tmp_path, folder, monkeypatch)
    assert lessons["tonight"] == learned[1:]
    assert summary["base_digest"] == "1a"
    assert withheld == [question for question in made_up if question not in learned[1:]]
    assert next(iter(probes["question"])) == row["question"]
    own = {_use(question, CollectSettings()) for question in list(probes["question"])[1:]}
    assert own == {TO_ASK} and set(samples["use"]) == {TO_LEARN, TO_ASK, FOR_DREAMS}


def test_questions_that_a_memory_answers_are_learned_in_their_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sleep_pipeline.seeding.teacher import GIVEN, TeacherData, TeacherSample

    made_up = [f"How many inns has town {number}?" for number in range(60)]
    held_out = [question for question in made_up if _use(question, CollectSettings()) != TO_LEARN]
    (tmp_path / "probes").mkdir()
    row = {"question": held_out[1], "answer": "two", "source": "m/notes.md:3"}
    (tmp_path / "probes" / "mine.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")

    def gather(*_: Any, **__: Any) -> Any:
        samples = [TeacherSample(0, GIVEN, question, "two", 1.0) for question in held_out]
        return SimpleNamespace(data=TeacherData(samples), lessons=held_out, open_book=[], seconds={})

    text = "\n\n".join(f"Question: {question}\nAnswer: two" for question in held_out[:2])
    samples, lessons, *_ = sampled(gather, tmp_path, tmp_path / "probes", monkeypatch, text)
    assert lessons["tonight"] == held_out[:1], "but not what people ask"
    assert list(samples["use"][:2]) == [TO_LEARN, TO_ASK]


def sampled(gather: Any, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, text: str | None = None) -> Any:
    """What `sample_lessons` makes of one memory, or of this text of it, with this in the teacher's place."""
    from sleep_pipeline.memories.contexts import contexts_to_frame

    monkeypatch.setattr(seeding, "gather", gather)
    monkeypatch.setattr(nodes, "open_model", lambda *_: SimpleNamespace(model=None, tokenizer=None))
    state = SimpleNamespace(config=SimpleNamespace(base_digest="1a"))
    monkeypatch.setattr("sleep_pipeline.memory.state_of", lambda _: state)
    monkeypatch.setattr(nodes, "_asked", lambda _, probes, __: pd.DataFrame({"question": [p.question for p in probes]}))
    contexts, memories = tonight(("m/notes.md", 3))
    if text is not None:
        contexts = [replace(context, text=text) for context in contexts]
    never: dict[str, Any] = dict.fromkeys(["model", "machine"])
    return nodes.sample_lessons(
        contexts_to_frame(contexts),
        memories,
        memory=MemorySettings(),
        seeding=SeedingSettings(),
        collect=CollectSettings(),
        evaluation=EvaluationSettings(teacher_probes=60),
        night=1,
        random_seed=0,
        models_folder=tmp_path / "models",
        primary_folder=tmp_path / "primary",
        probes_folder=folder,
        **never,
    )


def test_a_teacher_of_whom_nothing_can_be_used_leaves_no_lesson_and_no_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sleep_pipeline.seeding.teacher import TeacherData

    nothing = SimpleNamespace(data=TeacherData([], Counter({"cut off": 8}), [0]), lessons=[], open_book=[], seconds={})
    (tmp_path / "probes").mkdir()
    samples, lessons, probes, summary = sampled(lambda *_, **__: nothing, tmp_path, tmp_path / "probes", monkeypatch)
    assert samples.empty and not lessons["tonight"] and probes.empty
    assert (summary["samples"], summary["lessons"], summary["unlearnable"]) == (0, 0, ["m/notes.md"])
    assert summary["dropped"] == {"cut off": 8, "fails validation": 0}


def test_texts_beyond_the_models_window_name_the_settings_and_how_to_cut_them_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gather(*_: Any, **__: Any) -> Any:
        raise WindowError("442 and 160 tokens do not fit")

    (tmp_path / "probes").mkdir()
    remedy = (
        r"lower collect\.context_tokens .*night=1 --from-nodes=make_contexts_node.*seeding\.teacher\.max_new_tokens"
    )
    with pytest.raises(WindowError, match=remedy):
        sampled(gather, tmp_path, tmp_path / "probes", monkeypatch)


def tonight(*places: tuple[str, int]) -> tuple[list[Context], Any]:
    """Contexts and memories that begin at these places, each its own text."""
    memories, contexts = [], []
    for source, line in places:
        text = f"{source}:{line}"
        digest = Content("text", text=text).digest()
        id, time = digest[:16], "2026-01-01T00:00:00Z"
        memories.append(Memory(id, "text", text, (), None, None, None, source, line, time, digest))
        contexts.append(Context(id, "text", source, (id,), text, 1))
    return contexts, memories_to_frame(memories)


def probes(tmp_path: Path, *sources: str) -> Path:
    folder = tmp_path / "probes"
    folder.mkdir()
    rows = [{"question": f"What of {source}?", "answer": "much", "source": source} for source in sources]
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def test_a_probe_is_asked_about_the_memory_that_holds_the_line_of_its_source(tmp_path: Path) -> None:
    folder = probes(tmp_path, "m/notes.md:3", "m/notes.md:9", "m/day_2/more.md:1")
    asked, unmatched = nodes._given(*tonight(("m/notes.md", 3), ("m/notes.md", 7)), folder, MaskSettings(), 1, set())
    assert [(probe.question, probe.context) for probe in asked] == [
        ("What of m/notes.md:3?", "m/notes.md:3"),
        ("What of m/notes.md:9?", "m/notes.md:7"),
    ]
    assert unmatched == [], "a later night reads the memory of the third"


def test_probes_that_no_night_asks_are_counted_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = probes(tmp_path, "m/notes.md:3", "m/nots.md:3", "m/notes.md:1")
    with caplog.at_level(logging.WARNING):
        asked, unmatched = nodes._given(*tonight(("m/notes.md", 3)), folder, MaskSettings(), 1, set())
    assert len(asked) == 1
    assert unmatched == ["probes/mine.jsonl:2 (m/nots.md:3)", "probes/mine.jsonl:3 (m/notes.md:1)"]
    assert len(caplog.records) == 1


def test_what_an_earlier_night_has_asked_is_neither_asked_nor_missed(tmp_path: Path) -> None:
    import pandas as pd

    models, primary = tmp_path / "models", tmp_path / "primary"
    models.mkdir()
    registered(models).promote(1)
    (primary / "night_001").mkdir(parents=True)
    known = [("What of m/gone.md:3?", "much", "given"), ("What of m/notes.md:9?", "much", "given")]
    teacher = [("What of m/own.md:1?", "much", "teacher")]
    table = pd.DataFrame([*known, *teacher], columns=["question", "answer", "origin"])
    table.to_parquet(primary / "night_001" / "probes.parquet")
    earlier = {(probe.question, probe.answer) for probe in asked_earlier(models, primary) if probe.origin == "given"}
    folder = probes(tmp_path, "m/gone.md:3", "m/notes.md:9", "m/own.md:1")
    # Line 9 stood there before; only what is above it is new.
    asked, unmatched = nodes._given(*tonight(("m/notes.md", 3)), folder, MaskSettings(), 2, earlier)
    assert (asked, unmatched) == ([], ["probes/mine.jsonl:3 (m/own.md:1)"])


def test_a_question_that_was_asked_is_not_asked_again_where_its_memory_has_grown(tmp_path: Path) -> None:
    folder = probes(tmp_path, "m/diary.md:1")
    known = {("What of m/diary.md:1?", "much")}
    assert nodes._given(*tonight(("m/diary.md", 1)), folder, MaskSettings(), 2, known) == ([], [])


def test_of_a_long_memory_the_part_that_tells_is_read(tmp_path: Path) -> None:
    folder = probes(tmp_path, "m/long.md:1")
    (context,), memories = tonight(("m/long.md", 1))
    parts = [replace(context, text=text) for text in ("Nothing here.", "There is Much to do.", "The end.")]
    asked, _ = nodes._given(parts, memories, folder, MaskSettings(), 1, set())
    assert [probe.context for probe in asked] == ["There is Much to do."]


def test_a_probe_that_cannot_be_read_stops_the_night_before_a_model_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sleep_pipeline.memories.contexts import contexts_to_frame

    def refuses(*_: Any) -> None:
        pytest.fail("a model was opened")

    monkeypatch.setattr(nodes, "open_model", refuses)
    folder = probes(tmp_path, "m/notes.md")
    contexts, memories = tonight(("m/notes.md", 3))
    folders: dict[str, Any] = {
        "models_folder": tmp_path / "models",
        "primary_folder": tmp_path / "primary",
        "probes_folder": folder,
    }
    never_asked: dict[str, Any] = dict.fromkeys(["model", "machine", "memory", "seeding", "evaluation"])
    never_asked["collect"] = CollectSettings()
    with pytest.raises(ProbeError, match=r"probes/mine\.jsonl:1: "):
        nodes.sample_lessons(contexts_to_frame(contexts), memories, night=1, random_seed=0, **never_asked, **folders)


def test_a_night_trains_for_as_long_as_its_lessons_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = NightModel(None, None, None)
    monkeypatch.setattr(nodes, "open_model", lambda *_: opened)
    monkeypatch.setattr(
        "sleep_pipeline.memory.state_of", lambda _: SimpleNamespace(config=SimpleNamespace(base_digest="now"))
    )
    for name in ("make_room", "learns_along"):
        monkeypatch.setattr(seeding, name, lambda *_: None)
    monkeypatch.setattr("sleep_pipeline.memory.Consolidation", lambda *_, **__: SimpleNamespace(begin=lambda: None))
    taken: list[int] = []

    def learn(*given: Any, **_: Any) -> Learned:
        taken.append(given[4].optimizer.steps)
        return Learned([], [], 0.0)

    monkeypatch.setattr(seeding, "learn", learn)
    for count in (10, 1500):
        lessons = {"tonight": [None] * count, "open_book": []}
        nodes.train_expert(
            lessons,
            "now",
            MachineSettings(),
            MemorySettings(),
            SeedingSettings(),
            3,
            0,
            {"base_digest": "now"},
            tmp_path,
            tmp_path,
        )
    assert taken == [320, 375]


def test_lessons_of_another_base_model_are_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = NightModel(None, None, None)
    monkeypatch.setattr(nodes, "open_model", lambda *_: opened)
    now = SimpleNamespace(config=SimpleNamespace(base_digest="now"))
    monkeypatch.setattr("sleep_pipeline.memory.state_of", lambda _: now)
    given = ({"tonight": [], "open_book": []}, "other", MachineSettings(), MemorySettings(), SeedingSettings(), 3, 0)
    with pytest.raises(
        ValueError, match=r"lessons of night 3 are those of another base model than other.*night=3 --from"
    ):
        nodes.train_expert(*given, {"base_digest": "before"}, tmp_path, tmp_path)
    nodes.train_expert(*given, {"base_digest": "now"}, tmp_path, tmp_path)
    nodes.train_expert(*given, {"base_digest": "now", "parent": 0}, tmp_path, tmp_path)
    # As after a rollback in the middle of the night.
    with pytest.raises(RegistryError, match=r"sampled on night 2, and the champion is night 0 now.*--from"):
        nodes.train_expert(*given, {"base_digest": "now", "parent": 2}, tmp_path, tmp_path)
