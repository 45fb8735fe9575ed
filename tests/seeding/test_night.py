"""A night's seeding from end to end: all of it happens, or nothing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import made_up
import peft
import pytest
import torch
from made_up import Script, asleep, lesson, lessons, settings, state, without_context
from tiny_models import learn as learn_expert
from tiny_models import one_level, with_memory
from torch import nn

from sleep_pipeline.generation.reading import reading_batches
from sleep_pipeline.memory import ContinuumMemoryConfig, LevelConfig, Pair, base_view
from sleep_pipeline.memory.operations import state_of
from sleep_pipeline.memory.slots import SlotTable
from sleep_pipeline.seeding import agreement, teacher
from sleep_pipeline.seeding import night as module
from sleep_pipeline.seeding.judges import Trio
from sleep_pipeline.seeding.lessons import Lesson
from sleep_pipeline.seeding.night import BaseJudge, gather, hand_on, learn, make_room, seed_night
from sleep_pipeline.seeding.replay import ReplayStore
from sleep_pipeline.seeding.settings import SeedingSettings

CONTEXTS = ["Mira lives in Osk.", "Osk has 12 inns."]
ASK = {"prompts": [{"kind": "quiz", "ask": "Quiz"}], "replies": 2, "check": "replies", "reasked": 2, "top_k": 6}


class Strict:
    """A judge who lets nothing pass but what is the same."""

    def agree(self, trios: Sequence[Trio]) -> list[bool]:
        return [one == other for _, one, other in trios]


@pytest.fixture
def model(tiny_model: Any) -> nn.Module:
    """The tiny model with an empty memory."""
    return peft.get_peft_model(made_up.louder(tiny_model), one_level(num_slots=4))


@pytest.fixture
def talkative(monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher who asks one question of each text and knows its answer."""
    for part in (teacher, agreement):
        monkeypatch.setattr(part, "TransformersSampler", Script)
    replies = {
        "Quiz": ["Question: Where does Mira live?\nAnswer: Osk", "Question: How many inns?\nAnswer: 12 of them"],
        "Where does Mira live?": ["Osk"],
        "How many inns?": ["12 of them"],
    }
    monkeypatch.setattr(Script, "replies", replies)


def small(**changes: Any) -> SeedingSettings:
    return settings(teacher=ASK, **changes)


def fingerprint(model: nn.Module, store: ReplayStore) -> tuple[Any, Any]:
    lessons = [[(one.ids, night) for one, night in pool.lessons] for pool in store.pools.values()]
    return state_of(model).to_dict(), (lessons, [pool.offered for pool in store.pools.values()])


@pytest.mark.usefixtures("talkative")
def test_a_night_leaves_an_expert_and_lessons_for_replay(model: nn.Module, tiny_tokenizer: Any) -> None:
    before = state(model)
    store = ReplayStore(10, 10)
    first, second = (
        seed_night(model, tiny_tokenizer, CONTEXTS, small(), store, night=night, judge=Strict()) for night in (1, 2)
    )
    assert (first.slot, second.slot) == (0, 1)
    assert state_of(model).table.active(1) == (0, 1)
    assert first.gathered.data.unlearnable == []
    assert len(first.gathered.lessons) == 4
    assert [night for _, night in store.pools["stored"].lessons] == [1] * 4 + [2] * 4
    assert "divergence/stored" not in first.learned.history[-1]
    assert "divergence/stored" in second.learned.history[-1]
    assert first.learned.rollouts
    assert first.seconds.keys() == {"sampling", "beliefs", "open book", "training"}
    after = state(model)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert {name.rsplit(".", 1)[-1] for name in changed} == {"keys", "offsets", "down", "up"}
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.usefixtures("talkative")
def test_every_lesson_of_a_night_is_read_some_times(model: nn.Module, tiny_tokenizer: Any) -> None:
    few = small(rows=4, optimizer={"passes": 7.0}, on_policy=0.0)
    for night, count in ((1, 2), (2, 1)):
        seeded = seed_night(model, tiny_tokenizer, CONTEXTS[:count], few, ReplayStore(10, 10), night=night)
        assert len(seeded.gathered.lessons) == 2 * count
        assert seeded.learned.history[-1]["step"] == (7 if count == 2 else 4), "never fewer than the settings' 4 steps"


@pytest.mark.slow
@pytest.mark.usefixtures("talkative")
def test_the_same_night_twice_gives_bitwise_the_same_model(tiny_settings: Any, tiny_tokenizer: Any) -> None:
    from sleep_pipeline.pretraining.trainer import build_model

    ended = []
    for noise in range(2):
        torch.manual_seed(noise)
        model = peft.get_peft_model(build_model(tiny_settings.architecture, tiny_tokenizer, seed=0), one_level())
        torch.manual_seed(noise)
        seed_night(model, tiny_tokenizer, CONTEXTS, small(), ReplayStore(5, 5), night=1, judge=Strict())
        ended.append(state(model))
    assert all(torch.equal(ended[0][name], ended[1][name]) for name in ended[0])


@pytest.mark.usefixtures("talkative")
@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_earlier_experts_learn_along_if_they_have_a_rate(rate: float, model: nn.Module, tiny_tokenizer: Any) -> None:
    store = ReplayStore(10, 10)
    given = settings(teacher={**ASK, "experts": False}, on_policy=0.0, optimizer={"earlier_rate": rate})
    seed_night(model, tiny_tokenizer, CONTEXTS, given, store, night=1)
    before = state(model)
    seed_night(model, tiny_tokenizer, CONTEXTS, given, store, night=2)
    for name, tensor in state(model).items():
        if name.endswith((".keys", ".up")):
            assert torch.equal(tensor[0], before[name][0]) == (rate == 0), name
            assert not torch.equal(tensor[1], before[name][1]), name
    assert state_of(model).table.active(1) == (0, 1)
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.usefixtures("talkative")
def test_experts_whose_lessons_are_not_at_hand_stand_still(model: nn.Module, tiny_tokenizer: Any) -> None:
    given = settings(teacher={**ASK, "experts": False}, on_policy=0.0, optimizer={"earlier_rate": 1.0, "steps": 2})
    seed_night(model, tiny_tokenizer, CONTEXTS, given, ReplayStore(10, 10), night=1)
    before = state(model)
    seed_night(model, tiny_tokenizer, CONTEXTS, given, ReplayStore(10, 10), night=2)
    for name, tensor in state(model).items():
        if name.endswith((".keys", ".up")):
            assert torch.equal(tensor[0], before[name][0]), name


@pytest.mark.slow
@pytest.mark.usefixtures("talkative")
@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_a_loss_that_is_no_number_leaves_model_and_store_as_they_were(
    rate: float, model: nn.Module, tiny_tokenizer: Any
) -> None:
    store = ReplayStore(10, 10)
    seed_night(model, tiny_tokenizer, CONTEXTS, small(), store, night=1, judge=Strict())
    tensors, before = state(model), fingerprint(model, store)
    wild = settings(
        teacher={**ASK, "experts": False},
        optimizer={"learning_rate": 1e38, "clip_norm": 1e30, "earlier_rate": rate},
    )
    with pytest.raises(FloatingPointError, match="nothing of this night has been kept"):
        seed_night(model, tiny_tokenizer, CONTEXTS, wild, store, night=2, judge=Strict())
    after = state(model)
    assert all(torch.equal(after[name], tensors[name]) for name in tensors)
    assert fingerprint(model, store) == before
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert seed_night(model, tiny_tokenizer, CONTEXTS, small(), store, night=2, judge=Strict()).slot == 1


def test_where_the_teacher_agrees_with_nothing_the_night_ends_without_an_expert(
    model: nn.Module, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in (teacher, agreement):
        monkeypatch.setattr(part, "TransformersSampler", Script)
    monkeypatch.setattr(Script, "replies", {"Quiz": ["Question: Who?\nAnswer: Mira"], "Who?": ["Jon", "nobody"]})
    store = ReplayStore(10, 10)
    store.add("stored", without_context(lessons(2)), night=1)
    tensors, before = state(model), fingerprint(model, store)
    seeded = seed_night(model, tiny_tokenizer, CONTEXTS, small(), store, night=2, judge=Strict())
    assert seeded.slot is None
    assert seeded.gathered.data.unlearnable == [0, 1]
    assert seeded.gathered.data.dropped["disagrees with itself"] == 2
    assert (seeded.learned.history, seeded.learned.rollouts) == ([], [])
    after = state(model)
    assert all(torch.equal(after[name], tensors[name]) for name in tensors)
    assert fingerprint(model, store) == before


@pytest.mark.slow
@pytest.mark.usefixtures("talkative")
def test_lessons_in_reading_are_rehearsed_and_kept(
    model: nn.Module, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [lesson(9, 4, seed, k=6) for seed in range(2)]
    monkeypatch.setattr(module, "self_made_documents", lambda *_: ["A town."])
    monkeypatch.setattr(module, "open_book_lessons", lambda *_: made)
    store = ReplayStore(10, 10)
    given = small(replay={"open_book_documents": 1})
    seeded = seed_night(model, tiny_tokenizer, CONTEXTS, given, store, night=1, judge=Strict())
    assert [one.ids for one in store.lessons("open_book")] == [one.ids for one in made]
    assert "divergence/open_book" in seeded.learned.history[-1]


@pytest.mark.usefixtures("talkative")
def test_no_more_is_written_and_read_at_a_time_than_the_teacher_may(
    model: nn.Module, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"written": [], "read": []}  # type: dict[str, list[int]]

    class Noted(Script):
        def __init__(self, model: Any, tokenizer: Any, given: Any) -> None:
            super().__init__(model, tokenizer, given)
            sizes["written"].append(given.batch_size)

    def noted(model: Any, texts: Any, rows: int, logits: bool = True) -> Any:
        sizes["read"].append(rows)
        return reading_batches(model, texts, rows, logits)

    monkeypatch.setattr("sleep_pipeline.seeding.lessons.TransformersSampler", Noted)
    monkeypatch.setattr("sleep_pipeline.seeding.lessons.reading_batches", noted)
    monkeypatch.setitem(Script.replies, "<|system|>", ["A town."])
    for size, read in ((2, 2), (48, 32)):
        sizes |= {"written": [], "read": []}
        replay = {"open_book_documents": 3, "free_texts": 100, "altered_texts": 4}
        gather(model, tiny_tokenizer, CONTEXTS, settings(teacher={**ASK, "batch_size": size}, replay=replay), seed=0)
        assert sizes["written"] == [size] * 3, "documents, replies about them, and free texts"
        assert sizes["read"] == [read] * 3, "tonight's lessons, those in reading, and altered texts"


def test_the_base_judge_asks_the_bare_model() -> None:
    model = asleep()
    ids = torch.tensor([[5, 6, 7]])
    said = []

    class Listening:
        def agree(self, trios: Sequence[Trio]) -> list[bool]:
            said.append(model(input_ids=ids).logits)
            return [True] * len(trios)

    with torch.no_grad():
        assert BaseJudge(model, Listening()).agree([("", "a", "b")]) == [True]  # type: ignore[arg-type]
        with base_view(model):
            bare = model(input_ids=ids).logits
        assert torch.equal(said[0], bare)
        assert not torch.equal(model(input_ids=ids).logits, bare)


class Fatal(Exception):
    """Stands for a kill."""


class Mortal:
    """A judge of whims who does not live to see a given step."""

    def __init__(self, asked: int = 0) -> None:
        self.left = asked

    def agree(self, trios: Sequence[Trio]) -> list[bool]:
        self.left -= 1
        if not self.left:
            raise Fatal
        return [len(one) % 2 == 0 for _, one, _ in trios]


WHIMS = {"alpha": 0.3, "imitation": {"gamma": 1.0}}


@pytest.mark.slow
def test_a_killed_night_goes_on_where_it_was_saved(tiny_tokenizer: Any, tmp_path: Path) -> None:
    given = small(optimizer={"checkpoint_every": 2}, **WHIMS)
    store = ReplayStore(10, 10)
    store.add("stored", lessons(3, first=20), night=1)

    def run(folder: str, judge: Mortal, resume: bool = False) -> tuple[nn.Module, Any]:
        model = asleep(filled=False)
        return model, learn(
            model, tiny_tokenizer, lessons(), store, given, 5, judge=judge, folder=tmp_path / folder, resume=resume
        )

    whole, _ = run("whole", Mortal())
    with pytest.raises(Fatal):
        run("killed", Mortal(asked=4))
    resumed, learned = run("killed", Mortal(), resume=True)
    assert {row["step"] for row in learned.rollouts} == {2, 3}
    for (name, one), (_, other) in zip(state(whole).items(), state(resumed).items(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.slow
def test_a_night_killed_while_it_saved_goes_on_from_what_is_complete(tiny_tokenizer: Any, tmp_path: Path) -> None:
    given = small(optimizer={"checkpoint_every": 2}, **WHIMS)
    with pytest.raises(Fatal):
        learn(
            asleep(),
            tiny_tokenizer,
            lessons(),
            ReplayStore(1, 1),
            given,
            5,
            judge=Mortal(asked=4),
            folder=tmp_path,
        )
    torn = tmp_path / "checkpoint-3"
    torn.mkdir()
    (torn / "trained.safetensors").write_bytes((tmp_path / "checkpoint-2" / "trained.safetensors").read_bytes())
    learned = learn(
        asleep(), tiny_tokenizer, lessons(), ReplayStore(1, 1), given, 5, judge=Mortal(), folder=tmp_path, resume=True
    )
    assert {row["step"] for row in learned.rollouts} == {2, 3}


@pytest.mark.slow
def test_the_checkpoints_of_another_night_are_not_gone_on_with(tiny_tokenizer: Any, tmp_path: Path) -> None:
    given = small(optimizer={"checkpoint_every": 2})
    for seed in (5, 6):
        store, judge = ReplayStore(1, 1), Mortal()
        learned = learn(
            asleep(), tiny_tokenizer, lessons(), store, given, seed, judge=judge, folder=tmp_path, resume=True
        )
        assert {row["step"] for row in learned.rollouts} == {0, 1, 2, 3}


@pytest.mark.slow
def test_nothing_to_resume_is_a_beginning(tiny_tokenizer: Any, tmp_path: Path) -> None:
    for folder in (tmp_path / "missing", tmp_path):
        learned = learn(asleep(), tiny_tokenizer, lessons(), ReplayStore(1, 1), small(), 5, folder=folder, resume=True)
        assert {row["step"] for row in learned.rollouts} == {0, 1, 2, 3}


def test_without_weight_on_imitation_nobody_is_asked(tiny_tokenizer: Any) -> None:
    given = small(alpha=1.0, imitation={"gamma": 0.5})
    learned = learn(asleep(), tiny_tokenizer, lessons(), ReplayStore(1, 1), given, 5, judge=Mortal(asked=1))
    assert learned.rollouts == []
    assert learned.history[-1]["on_policy_share"] == 0.5


def full() -> nn.Module:
    """A memory with room for one more expert alone, which only a merge may take."""
    model = made_up.louder(with_memory(one_level(num_slots=3)))
    for seed, night in enumerate((7, 3)):
        learn_expert(model, seed=seed, night=night)
    return model


def test_a_full_level_merges_its_two_oldest_experts_and_an_open_one_stays(tiny_tokenizer: Any) -> None:
    store = ReplayStore(10, 10)
    store.add("stored", without_context(lessons(4)), night=1)
    roomy = made_up.louder(with_memory(one_level(num_slots=4)))
    for seed in range(2):
        learn_expert(roomy, seed=seed)
    assert make_room(roomy, tiny_tokenizer, store, small(), night=8, seed=0) is None
    model = full()
    assert make_room(model, tiny_tokenizer, store, small(), night=8, seed=0) == 2
    assert state_of(model).table.active(1) == (2,)


@pytest.mark.slow
def test_a_level_that_hands_on_tonight_fills_its_last_slot_first(tiny_tokenizer: Any) -> None:
    levels = [LevelConfig(period=3, num_slots=3, rank=3, base_width=5), LevelConfig(num_slots=3, rank=3)]
    model = made_up.louder(with_memory(ContinuumMemoryConfig(levels=levels)))
    for night in (1, 2):
        learn_expert(model, level=1, seed=night, night=night)
    store = ReplayStore(10, 10)
    store.add("stored", without_context(lessons(4)), night=1)
    assert make_room(model, tiny_tokenizer, store, small(), night=3, seed=0) is None
    assert state_of(model).table.active(1) == (0, 1)
    assert make_room(model, tiny_tokenizer, store, small(), night=2, seed=0) == 2


def test_a_full_level_without_anything_to_learn_from_says_so(tiny_tokenizer: Any) -> None:
    model = full()
    with pytest.raises(ValueError, match="level 1 of the memory is full, and no lesson is kept"):
        make_room(model, tiny_tokenizer, ReplayStore(1, 1), small(), night=8, seed=0)
    assert state_of(model).table.active(1) == (0, 1)


@pytest.mark.slow
def test_every_merge_is_trained_though_the_last_one_left_its_checkpoint(tiny_tokenizer: Any, tmp_path: Path) -> None:
    given = small(optimizer={"checkpoint_every": 2})
    ended = []
    for folder in ("merge", "merge", "other"):
        model, store = full(), ReplayStore(10, 10)
        night = 9 if ended else 8
        store.add("stored", without_context(lessons(4, first=night)), night=1)
        make_room(model, tiny_tokenizer, store, given, night=night, seed=night, folder=tmp_path / folder)
        ended.append(state(model))
    assert all(torch.equal(ended[1][name], ended[2][name]) for name in ended[1])


@pytest.mark.slow
def test_a_level_hands_its_experts_on_when_its_period_is_over(tiny_tokenizer: Any) -> None:
    levels = [LevelConfig(period=2, num_slots=3, rank=3, base_width=5), LevelConfig(num_slots=3, rank=3)]
    model = made_up.louder(with_memory(ContinuumMemoryConfig(levels=levels)))
    for night in (1, 2):
        learn_expert(model, level=1, seed=night, night=night)
    store = ReplayStore(10, 10)
    for night in (1, 2):
        store.add("stored", without_context(lessons(4, first=night)), night=night)
    assert hand_on(model, tiny_tokenizer, store, small(), night=1, seed=0) == []
    assert state_of(model).table.active(1) == (0, 1)
    assert hand_on(model, tiny_tokenizer, store, small(), night=2, seed=0) == [Pair(1, 2)]
    assert state_of(model).table.active(1) == ()
    assert state_of(model).table.active(2) == (0,)


@pytest.mark.slow
def test_a_full_level_that_was_kept_from_handing_on_does_so_before_the_next_night(
    tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = [LevelConfig(period=2, num_slots=2, rank=3, base_width=5), LevelConfig(num_slots=3, rank=3)]
    model = made_up.louder(with_memory(ContinuumMemoryConfig(levels=levels)))
    store = ReplayStore(10, 10)
    for night in (1, 2):
        learn_expert(model, level=1, seed=night, night=night)
        store.add("stored", without_context(lessons(4, first=night)), night=night)
    # Killed before the second night handed on: there is no slot for a third expert, nor for one merged from two.
    assert state_of(model).table.active(1) == (0, 1)
    assert make_room(model, tiny_tokenizer, store, small(), night=3, seed=0) is None
    assert (state_of(model).table.active(1), state_of(model).table.active(2)) == ((), (0,))
    learn_expert(model, level=1, seed=3, night=3)


def test_a_level_whose_turn_was_missed_hands_on_all_that_it_holds_on_the_next_night(
    tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = [
        LevelConfig(period=2, num_slots=4, rank=3, base_width=5),
        LevelConfig(period=4, num_slots=4, rank=3, base_width=5),
        LevelConfig(num_slots=3, rank=3),
    ]
    model = made_up.louder(with_memory(ContinuumMemoryConfig(levels=levels)))
    store, taught = ReplayStore(50, 10), []

    def noted(model: Any, tokenizer: Any, lessons: Sequence[Lesson], *_: Any, **__: Any) -> None:
        taught.append({night for lesson, night in store.pools["stored"].lessons if lesson in lessons})

    monkeypatch.setattr(module, "learn", noted)
    moved = {}
    for night in range(1, 10):
        if night in (4, 8):
            continue  # turned down, or nothing to learn
        learn_expert(model, level=1, seed=night, night=night)
        store.add("stored", without_context(lessons(2, first=10 * night)), night=night)
        moved[night] = hand_on(model, tiny_tokenizer, store, small(), night=night, seed=0)
    assert {night: pairs for night, pairs in moved.items() if pairs} == {
        2: [Pair(1, 2)],
        5: [Pair(1, 2), Pair(2, 3)],
        6: [Pair(1, 2)],
        9: [Pair(1, 2), Pair(2, 3)],
    }
    assert taught == [{1, 2}, {3, 5}, {1, 2, 3, 5}, {6}, {7, 9}, {6, 7, 9}]
    table = state_of(model).table
    assert (table.active(1), table.active(2), table.active(3)) == ((), (), (0, 1))
    assert SlotTable.from_dict(table.to_dict()).handed_on(2) == 9


def test_a_memory_of_one_level_has_nobody_to_hand_on_to(tiny_tokenizer: Any) -> None:
    model = full()
    before = state(model)
    assert hand_on(model, tiny_tokenizer, ReplayStore(1, 1), small(), night=4, seed=0) == []
    assert all(torch.equal(before[name], tensor) for name, tensor in state(model).items())


@pytest.mark.usefixtures("talkative")
@pytest.mark.parametrize("experts", [True, False])
def test_the_teacher_has_the_experts_of_earlier_nights_only_if_asked(
    model: nn.Module, tiny_tokenizer: Any, experts: bool
) -> None:
    given = settings(teacher={**ASK, "experts": experts})
    fresh = module.gather(model, tiny_tokenizer, CONTEXTS, given, seed=1).lessons
    learn_expert(model, seed=3)
    later = module.gather(model, tiny_tokenizer, CONTEXTS, given, seed=1).lessons
    same = [torch.equal(a.teacher.log_probs_NK, b.teacher.log_probs_NK) for a, b in zip(fresh, later, strict=True)]
    assert all(same) is not experts


@pytest.mark.slow
def test_a_penalty_shuts_the_new_gate_on_lessons_in_reading(tiny_tokenizer: Any) -> None:
    store = ReplayStore(10, 10)
    store.add("open_book", without_context(lessons(3)), night=1)
    openness = {}
    for penalty in (1e-9, 5.0):
        given = small(on_policy=0.0, replay={"gate_penalty": penalty}, optimizer={"steps": 20, "learning_rate": 1e-2})
        learned = learn(asleep(), tiny_tokenizer, lessons(first=20), store, given, seed=0)
        openness[penalty] = [step["openness/reading"] for step in learned.history if "openness/reading" in step][-1]
    assert openness[5.0] < 0.9 * openness[1e-9]
