import pytest

from sleep_pipeline.memory import Sleep, Slot, SlotError, SlotState, SlotTable


def test_a_slot_goes_from_free_through_training_and_active_to_free() -> None:
    table = SlotTable.of_sizes([2])
    assert table.unlock(1, night=3, origin="context") == 0
    assert table.slots(1)[0] == Slot(SlotState.TRAINING, 3, "context", 1)
    assert table.activate(1) == 0
    assert table.active(1) == (0,)
    assert table.reset(1, [0]) == (0,)
    assert table.slots(1)[0] == Slot(unlocks=1)
    assert [event for *_, event in table.events] == ["unlock", "activate", "reset"]


def test_a_training_slot_can_be_given_up() -> None:
    table = SlotTable.of_sizes([2])
    table.unlock(1)
    table.reset(1, [0])
    assert table.training() is None


def test_the_lowest_free_slot_is_taken_so_that_active_slots_stay_dense() -> None:
    table = SlotTable.of_sizes([3])
    for _ in range(3):
        table.unlock(1)
        table.activate(1)
    table.reset(1, [0, 1])
    assert table.unlock(1) == 0


def test_merging_is_due_while_one_slot_is_still_free_for_it() -> None:
    table = SlotTable.of_sizes([3])
    due = []
    for _ in range(3):
        due.append(table.must_merge(1))
        table.unlock(1)
        table.activate(1)
    assert due == [False, False, True]


def test_a_full_level_refuses_to_unlock_and_says_what_to_do() -> None:
    table = SlotTable.of_sizes([2])
    for _ in range(2):
        table.unlock(1)
        table.activate(1)
    before = table.copy()
    with pytest.raises(SlotError, match="level 1 has no free slot \\(2 of 2 in use\\): merge two"):
        table.unlock(1)
    assert table == before


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda table: table.unlock(2), "still in training"),
        (lambda table: table.activate(2), "no slot in training to activate"),
        (lambda table: table.reset(1, [1]), "slot 1 of level 1 is free"),
        (lambda table: table.reset(1, [0, 1]), "slot 1 of level 1 is free"),
        (lambda table: table.reset(1, [9]), "level 1 has no slot 9"),
        (lambda table: table.unlock(0), "no level 0 with slots"),
        (lambda table: table.unlock(3), "levels run from 1 to 2"),
    ],
)
def test_a_refused_transition_changes_nothing(act: object, message: str) -> None:
    table = SlotTable.of_sizes([2, 2])
    table.unlock(1)
    before = table.copy()
    with pytest.raises(SlotError, match=message):
        act(table)
    assert table == before


def test_the_saved_table_is_the_same_table() -> None:
    table = SlotTable.of_sizes([2, 2])
    table.unlock(1, night=1)
    table.activate(1)
    table.sleep = Sleep(1, 2, table.unlock(2, night=2), (0,), 2)
    assert SlotTable.from_dict(table.to_dict()) == table


def test_a_saved_table_that_breaks_an_invariant_is_refused() -> None:
    table = SlotTable.of_sizes([2, 2])
    table.unlock(1)
    record = table.to_dict()
    record["levels"][1][0]["state"] = "training"
    with pytest.raises(SlotError, match="more than one slot is in training"):
        SlotTable.from_dict(record)
    record["levels"][1][0]["state"] = "asleep"
    with pytest.raises(SlotError, match="not a saved slot table"):
        SlotTable.from_dict(record)
    record = table.to_dict()
    record["sleep"] = {"sender": 0, "receiver": 2, "slot": 0, "senders": [], "night": None}
    with pytest.raises(SlotError, match="does not match the slots in training"):
        SlotTable.from_dict(record)
