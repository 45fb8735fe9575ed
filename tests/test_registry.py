"""The register of nights: what may follow what, and that no crash tears it."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sleep_pipeline.registry import (
    BASE,
    MANIFEST,
    Night,
    NightRegistry,
    RegistryError,
    manifest_digest,
    write_atomically,
)


@pytest.fixture
def registry(tmp_path: Path) -> NightRegistry:
    return NightRegistry(tmp_path / "models")


def make_night(registry: NightRegistry, number: int, parent: int | None = None, text: str = "") -> Night:
    """A night with a checkpoint on disk; it learned the memory `m<number>`."""
    folder = registry.folder / f"night_{number:03d}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).write_text(json.dumps({"night": number, "text": text}))
    return Night(
        number=number,
        parent=number - 1 if parent is None else parent,
        checkpoint=folder.name,
        manifest_digest=manifest_digest(folder),
        time=f"2026-11-{number:02d}T03:00:00+00:00",
        decision={"promote": True, "checks": []},
        scores={"recall_gain": 0.5, "forgetting": None},
        memories=(f"m{number}",),
    )


def sleep(registry: NightRegistry, number: int, parent: int | None = None) -> None:
    registry.register(make_night(registry, number, parent))
    registry.promote(number)


def test_before_the_first_night_the_base_model_is_live(registry: NightRegistry) -> None:
    assert registry.champion() is None
    assert registry.next_night() == 1
    assert registry.known_memories() == frozenset()
    assert not registry.path.exists()


def test_a_registered_night_is_the_challenger_and_comes_back_whole(registry: NightRegistry) -> None:
    night = make_night(registry, 1)
    registry.register(night)
    assert registry.night(1) == night
    assert registry.aliases() == {"challenger": 1}
    assert registry.champion() is None


def test_promoting_moves_the_aliases(registry: NightRegistry) -> None:
    sleep(registry, 1)
    assert registry.aliases() == {"champion": 1, "previous_champion": BASE}
    sleep(registry, 2)
    assert registry.aliases() == {"champion": 2, "previous_champion": 1}
    assert registry.champion() == registry.night(2)


def test_promoting_the_champion_again_keeps_the_previous_one(registry: NightRegistry) -> None:
    sleep(registry, 1)
    sleep(registry, 2)
    registry.promote(2)
    assert registry.aliases() == {"champion": 2, "previous_champion": 1}


def test_registering_the_same_night_again_changes_nothing(registry: NightRegistry) -> None:
    sleep(registry, 1)
    before = registry.path.read_bytes()
    registry.register(replace(make_night(registry, 1), time="2027-01-01T00:00:00+00:00"))
    assert registry.path.read_bytes() == before


def test_a_different_night_of_the_same_number_is_an_error_with_both_digests(registry: NightRegistry) -> None:
    first, second = make_night(registry, 1), make_night(registry, 1, text="other")
    registry.register(first)
    with pytest.raises(RegistryError) as error:
        registry.register(second)
    assert first.manifest_digest in str(error.value)
    assert second.manifest_digest in str(error.value)
    assert "run it as night 2" in str(error.value)


def test_the_memories_of_a_rejected_night_are_new_again(registry: NightRegistry) -> None:
    sleep(registry, 1)
    registry.register(make_night(registry, 2))
    registry.reject(2)
    assert registry.known_memories() == {"m1"}
    assert registry.night(2).status == "rejected"
    assert registry.aliases() == {"champion": 1, "previous_champion": BASE}
    assert registry.next_night() == 3


def test_a_challenger_has_taught_nothing_yet(registry: NightRegistry) -> None:
    registry.register(make_night(registry, 1))
    assert registry.known_memories() == frozenset()


def test_known_memories_are_those_of_the_whole_line_of_the_champion(registry: NightRegistry) -> None:
    sleep(registry, 1)
    sleep(registry, 2)
    registry.register(make_night(registry, 3))
    registry.reject(3)
    sleep(registry, 4, parent=2)
    assert registry.known_memories() == {"m1", "m2", "m4"}
    assert [night.number for night in registry.lineage()] == [1, 2, 4]
    assert [night.number for night in registry.lineage(3)] == [1, 2, 3]


def test_rolling_back_swaps_the_champions_and_back_again(registry: NightRegistry) -> None:
    sleep(registry, 1)
    sleep(registry, 2)
    assert registry.rollback() == registry.night(1)
    assert registry.known_memories() == {"m1"}
    assert registry.aliases() == {"champion": 1, "previous_champion": 2}
    assert registry.rollback() == registry.night(2)
    assert registry.known_memories() == {"m1", "m2"}


def test_the_first_night_rolls_back_to_the_base_model(registry: NightRegistry) -> None:
    sleep(registry, 1)
    assert registry.rollback() is None
    assert registry.champion() is None
    assert registry.known_memories() == frozenset()


def test_a_night_after_a_rollback_starts_a_branch(registry: NightRegistry) -> None:
    sleep(registry, 1)
    sleep(registry, 2)
    registry.rollback()
    assert registry.next_night() == 3
    sleep(registry, 3, parent=1)
    assert registry.known_memories() == {"m1", "m3"}


def test_a_rollback_goes_to_any_night_that_the_champion_grew_from(registry: NightRegistry) -> None:
    for number in (1, 2, 3):
        sleep(registry, number)
    assert registry.rollback(1) == registry.night(1)
    assert registry.aliases()["previous_champion"] == 3
    assert registry.known_memories() == {"m1"}
    with pytest.raises(RegistryError, match="night 1 did not grow from night 3: roll back to one of the base model"):
        registry.rollback(3)
    with pytest.raises(RegistryError, match="night 1 is the champion already"):
        registry.rollback(1)
    assert registry.rollback() == registry.night(3), "back to the previous champion"
    assert registry.rollback(BASE) is None
    assert registry.known_memories() == frozenset()


def test_without_a_previous_champion_there_is_nothing_to_roll_back_to(registry: NightRegistry) -> None:
    registry.register(make_night(registry, 1))
    with pytest.raises(RegistryError, match="names no previous champion"):
        registry.rollback()


def test_a_rollback_to_a_checkpoint_that_is_gone_is_refused_and_changes_nothing(registry: NightRegistry) -> None:
    sleep(registry, 1)
    sleep(registry, 2)
    (registry.folder / "night_001" / MANIFEST).unlink()
    before = registry.path.read_bytes()
    with pytest.raises(RegistryError, match=r"night_001 holds no complete checkpoint .*dvc pull"):
        registry.rollback()
    assert registry.path.read_bytes() == before


def test_a_checkpoint_with_another_manifest_is_refused(registry: NightRegistry) -> None:
    sleep(registry, 1)
    assert registry.checkpoint(1) == registry.folder / "night_001"
    make_night(registry, 1, text="changed")
    with pytest.raises(RegistryError, match="restore it with `dvc checkout`"):
        registry.checkpoint(1)


def refusals() -> dict[str, Any]:
    def rejected_parent(registry: NightRegistry) -> None:
        registry.register(make_night(registry, 3))
        registry.reject(3)
        registry.register(make_night(registry, 4, parent=3))

    def stale_parent(registry: NightRegistry) -> None:
        registry.register(make_night(registry, 3, parent=1))
        registry.promote(3)

    def rejected_promotion(registry: NightRegistry) -> None:
        registry.register(make_night(registry, 3))
        registry.reject(3)
        registry.promote(3)

    return {
        "night 3 is not registered": lambda registry: registry.promote(3),
        "night 9 is not registered": lambda registry: registry.register(make_night(registry, 3, parent=9)),
        "night 4 grew from night 3, which was rejected": rejected_parent,
        "night 3 grew from night 1, but night 2 is the champion": stale_parent,
        "night 3 was rejected: run its memories again as night 4": rejected_promotion,
        "the champion stands on night 1: roll back first": lambda registry: registry.reject(1),
        "night 0 is older than the last one, 2": lambda registry: registry.register(make_night(registry, 0, BASE)),
        "night 3 is rejected: register it as complete": lambda registry: registry.register(
            replace(make_night(registry, 3), status="rejected")
        ),
    }


@pytest.mark.parametrize("message", list(refusals()))
def test_what_would_break_the_line_is_refused(registry: NightRegistry, message: str) -> None:
    sleep(registry, 1)
    sleep(registry, 2)
    with pytest.raises(RegistryError, match=message):
        refusals()[message](registry)


def test_rejecting_a_night_that_was_rolled_back_closes_the_way_to_it(registry: NightRegistry) -> None:
    sleep(registry, 1)
    sleep(registry, 2)
    registry.rollback()
    registry.reject(2)
    assert registry.aliases() == {"champion": 1}
    with pytest.raises(RegistryError):
        registry.rollback()


def told(registry: NightRegistry, number: int) -> dict[str, Any]:
    """What a night tells when it is registered."""
    return asdict(registry.night(number)) | {"aliases": registry.aliases()}


def test_a_register_that_is_gone_is_restored_from_what_its_nights_told(registry: NightRegistry) -> None:
    records = []
    for number in (1, 2, 3):
        registry.register(make_night(registry, number, min(number - 1, 1)))
        (registry.reject if number == 2 else registry.promote)(number)
        records.append(json.loads(json.dumps(told(registry, number))))
    before = registry.path.read_bytes()
    registry.path.unlink()
    assert registry.restore(records) == [1, 2, 3]
    assert registry.path.read_bytes() == before
    registry.rollback()
    assert registry.restore(records) == []
    assert registry.aliases()["champion"] == 1, "a rollback here is not undone"


def test_nights_that_were_lived_elsewhere_follow_those_that_are_known(registry: NightRegistry) -> None:
    sleep(registry, 1)
    here = registry.path.read_bytes()
    sleep(registry, 2)
    record = told(registry, 2)
    registry.path.write_bytes(here)
    assert registry.restore([told(registry, 1), record]) == [2]
    assert registry.aliases() == {"champion": 2, "previous_champion": 1}


def test_what_cannot_be_restored_is_refused_and_changes_nothing(registry: NightRegistry) -> None:
    sleep(registry, 1)
    sleep(registry, 2)
    first, second = told(registry, 1), told(registry, 2)
    before = registry.path.read_bytes()
    with pytest.raises(RegistryError, match="two lives"):
        registry.restore([first | {"manifest_digest": "f" * 64}])
    with pytest.raises(RegistryError, match="record of a night is damaged"):
        registry.restore([{"number": 3}])
    assert registry.path.read_bytes() == before
    registry.path.unlink()
    with pytest.raises(RegistryError, match="night 1 is not registered"):
        registry.restore([second])
    assert not registry.path.exists()


@pytest.mark.parametrize("fault", ["os.fsync", "os.replace"])
def test_a_write_that_fails_leaves_the_old_register(
    registry: NightRegistry, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    sleep(registry, 1)
    before = registry.path.read_bytes()
    night = make_night(registry, 2)

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(fault, fail)
        with pytest.raises(OSError, match="No space left"):
            registry.register(night)
    assert registry.path.read_bytes() == before
    assert sorted(path.name for path in registry.folder.iterdir()) == ["night_001", "night_002", "registry.json"]
    registry.register(night)
    assert registry.night(2) == night


KILLED = """
import os, sys
from sleep_pipeline.registry import NightRegistry
real = os.replace
def dying(source, target):
    if sys.argv[2] == "after":
        real(source, target)
    os._exit(9)
os.replace = dying
NightRegistry(sys.argv[1]).promote(2)
"""


@pytest.mark.parametrize(("moment", "champion"), [("before", 1), ("after", 2)])
def test_a_process_that_dies_at_the_rename_leaves_one_whole_register(
    registry: NightRegistry, moment: str, champion: int
) -> None:
    sleep(registry, 1)
    registry.register(make_night(registry, 2))
    died = subprocess.run([sys.executable, "-c", KILLED, str(registry.folder), moment], check=False)
    assert died.returncode == 9
    assert registry.champion() == registry.night(champion)
    registry.promote(2)
    assert registry.aliases() == {"champion": 2, "previous_champion": 1}


def test_text_reaches_the_disk_before_its_name_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    fsync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (steps.append("fsync"), fsync(descriptor))[1])
    monkeypatch.setattr(os, "replace", lambda *paths: (steps.append("rename"), rename(*paths))[1])
    write_atomically(tmp_path / "file", "text")
    assert steps == ["fsync", "rename", "fsync"]
    assert (tmp_path / "file").read_text() == "text"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is damaged"),
        ("[]", "has version None"),
        ('{"version": 2}', "has version 2; this release reads version 1"),
        ('{"version": 1, "nights": []}', "is damaged"),
        ('{"version": 1, "nights": [], "aliases": {"champion": 4}}', "night 4 is not registered"),
    ],
)
def test_a_file_that_is_no_register_is_an_error(registry: NightRegistry, content: str, message: str) -> None:
    registry.folder.mkdir()
    registry.path.write_text(content)
    with pytest.raises(RegistryError, match=message):
        registry.nights()


def test_a_score_that_is_no_number_is_refused_before_the_file_is_touched(registry: NightRegistry) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        registry.register(replace(make_night(registry, 1), scores={"recall_gain": float("nan")}))
    assert not registry.path.exists()


class AnyHistory(RuleBasedStateMachine):
    """Nights, promotions, rejections and rollbacks in any order, against sets of memories kept by hand."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.registry = NightRegistry(self.folder.name)
        self.taught: dict[int, frozenset[str]] = {BASE: frozenset()}
        self.champion, self.previous = BASE, -1
        self.challenger = -1
        self.rejected: set[int] = set()

    def teardown(self) -> None:
        self.folder.cleanup()

    @rule()
    def dream(self) -> None:
        number = self.registry.next_night()
        self.registry.register(make_night(self.registry, number, self.champion))
        self.taught[number] = self.taught[self.champion] | {f"m{number}"}
        self.challenger = number

    @precondition(lambda self: self.challenger > 0)
    @rule()
    def promote(self) -> None:
        if self.registry.night(self.challenger).parent != self.champion:
            with pytest.raises(RegistryError):
                self.registry.promote(self.challenger)
            return
        self.registry.promote(self.challenger)
        self.previous, self.champion, self.challenger = self.champion, self.challenger, -1

    @precondition(lambda self: self.challenger > 0)
    @rule()
    def reject(self) -> None:
        self.registry.reject(self.challenger)
        self.rejected.add(self.challenger)
        self.challenger = -1

    @precondition(lambda self: self.previous >= 0)
    @rule()
    def rollback(self) -> None:
        self.registry.rollback()
        self.champion, self.previous = self.previous, self.champion

    @rule(data=st.data())
    def repeat_a_registration(self, data: st.DataObject) -> None:
        nights = self.registry.nights()
        if nights:
            before = self.registry.path.read_bytes()
            self.registry.register(replace(nights[data.draw(st.sampled_from(sorted(nights)))], status="complete"))
            assert self.registry.path.read_bytes() == before

    @invariant()
    def the_champion_knows_what_its_line_learned(self) -> None:
        live = self.registry.champion()
        assert (BASE if live is None else live.number) == self.champion
        assert self.registry.known_memories() == self.taught[self.champion]
        assert {n for n, night in self.registry.nights().items() if night.status == "rejected"} == self.rejected
        assert self.registry.aliases().get("previous_champion", -1) == self.previous


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(max_examples=20, stateful_step_count=12, deadline=None)
