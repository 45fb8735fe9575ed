"""Compute - consolidate - update as one transaction (paper.md section 3).

    with consolidation(model, sender=1, receiver=2, night=7) as sleep:
        ...train: the default state is the student...
        sleep.commit()

Leaving the block without `commit()`, by an exception or not, aborts: the model is bit for bit what it was.
With a journal the same holds for a crash of the process: what is on the disk is the state before the sleep or
the state after it, never a mixture.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sleep_pipeline.memory.journal import Journal
from sleep_pipeline.memory.levels import ACCUMULATED, BASE, PROSPECTIVE, SLOTS, WORKSPACE
from sleep_pipeline.memory.online import WakeUpdates
from sleep_pipeline.memory.operations import level_tensors, outside_views, state_of, states_of
from sleep_pipeline.memory.slots import CONTEXT, Sleep, Slot, SlotError


class Consolidation:
    """One sleep: the pair `sender -> receiver`, or a merge of slots when both are the same level.

    Args:
        model: a model with a memory; a PEFT model if a journal is given, since the journal saves it.
        sender: the level that hands on; `CONTEXT` (0) for the prompt.
        receiver: the level that receives: the next slower one, or the sender itself for a merge.
        slots: for a merge, the active slots to merge, at least two.
        night: the night, for the record.
        updates: the wake-time updates, if the sender's base weights have learned while awake.
        journal: where to keep the transaction on disk.
        adapter_name: which memory, if there are several.
        plastic: whether the receiver's earlier experts learn as well, which the paper leaves as they are. What a night
            taught is no longer in one slot alone then.

    Every sleep trains the same tensors anew, so every sleep needs an optimiser of its own.
    """

    def __init__(
        self,
        model: nn.Module,
        sender: int,
        receiver: int,
        slots: Iterable[int] | None = None,
        night: int | None = None,
        updates: WakeUpdates | None = None,
        journal: Journal | None = None,
        adapter_name: str | None = None,
        plastic: bool = False,
    ):
        self.model = model
        self.state = state_of(model, adapter_name)
        self.adapter_name = next(name for name, state in states_of(model).items() if state is self.state)
        self.sender, self.receiver, self.night = sender, receiver, night
        self.updates, self.journal = updates, journal
        self.open = False
        self.senders = self._check(slots)
        earlier = set(self.state.table.active(receiver)) - set(self.senders if sender == receiver else ())
        self.plastic = plastic and bool(earlier)
        self._stored: list[tuple[nn.Parameter, Tensor]] = []
        self._resumed = False

    def _check(self, slots: Iterable[int] | None) -> tuple[int, ...]:
        """Refuse what cannot succeed, before anything has changed; return the sender's slots."""
        outside_views(self.state)
        table = self.state.table
        table.slots(self.receiver)
        if table.sleep is not None:
            raise SlotError(f"a sleep is under way already ({table.sleep}): commit or abort it first")
        if self.sender == self.receiver:
            senders = tuple(sorted(set(slots or ())))
            inactive = set(senders) - set(table.active(self.receiver))
            if len(senders) < 2 or inactive:
                raise SlotError(
                    f"a merge in level {self.receiver} needs at least two active slots, but was given "
                    f"{list(senders)} (active: {list(table.active(self.receiver))})"
                )
            return senders
        if self.receiver != self.sender + 1:
            raise SlotError(f"level {self.sender} hands on to level {self.sender + 1}, not to level {self.receiver}")
        if slots is not None:
            raise SlotError("slots are for merges; a sleep between levels hands on all of the sender's experts")
        if self.sender == CONTEXT:
            return ()
        if self.state.pending[self.sender - 1] and self.updates is None:
            raise SlotError(
                f"level {self.sender} has accumulated {self.state.pending[self.sender - 1]} steps while awake: pass "
                "the WakeUpdates that know how to apply them"
            )
        return table.active(self.sender)

    @property
    def _moves_base(self) -> bool:
        """Whether the sender's base weights have anything to move: they learned now or before."""
        if not CONTEXT < self.sender < self.receiver:
            return False
        return self.state.moved[self.sender - 1] > 0 or self.state.pending[self.sender - 1] > 0

    def begin(self) -> "Consolidation":
        """Compute the sender's prospective weights and unlock the new expert.

        From now on the default state of the model is the student.

        Raises:
            SlotError: the receiver has no free slot.
        """
        table = self.state.table.copy()
        origin = "context" if self.sender == CONTEXT else f"level {self.sender}"
        if self.sender == self.receiver:
            origin = "merge of " + " and ".join(map(str, self.senders))
        slot = table.unlock(self.receiver, self.night, origin)
        table.sleep = Sleep(self.sender, self.receiver, slot, self.senders, self.night, self.plastic)
        self._log_begin(slot)
        self.before = self.state.table
        try:
            if self._moves_base:
                self._compute()
                self._log("computed", level=self.sender)
            for tensors in level_tensors(self.state, self.receiver):
                tensors.open_workspace(slot, table.slots(self.receiver)[slot].unlocks)
            if self.plastic:
                self._loosen()
            self.state.table = table
            self.state.trainable = True
            self.state.changed()
            self.open = True
            self._log("unlocked", level=self.receiver, slot=slot)
        except BaseException:
            self.abort()
            raise
        return self

    @classmethod
    def resume(
        cls,
        model: nn.Module,
        updates: WakeUpdates | None = None,
        journal: Journal | None = None,
        adapter_name: str | None = None,
    ) -> "Consolidation":
        """Take up the sleep that a memory was saved in, as a trainer's checkpoint in mid-training is.

        A plastic one cannot be aborted: what its earlier experts were is in the memory that was committed last. In half
        precision they go on from values that were rounded when the memory was loaded.

        Raises:
            SlotError: no sleep is under way, or a plastic one was begun or taken up in this very process.
        """
        state = state_of(model, adapter_name)
        sleep = state.table.sleep
        if sleep is None:
            raise SlotError("no sleep is under way in this memory: begin one")
        if state.hidden:
            raise SlotError(
                "this plastic sleep is open in this process: commit or abort it where it was begun or taken up"
            )
        self = cls.__new__(cls)
        self.model, self.state = model, state
        self.adapter_name = next(name for name, other in states_of(model).items() if other is state)
        self.sender, self.receiver, self.night = sleep.sender, sleep.receiver, sleep.night
        self.senders, self.updates, self.journal = sleep.senders, updates, journal
        self.before = state.table.copy()
        self.plastic, self._stored, self._resumed = sleep.plastic, [], True
        if self.plastic:
            self._loosen()
            state.sync_gradients()
        slots = self.before.slots(sleep.receiver)
        slots[sleep.slot] = Slot(unlocks=slots[sleep.slot].unlocks - 1)
        self.before.sleep = None
        self.before.events.pop()
        self.open = True
        if journal is not None:
            self._log_begin(sleep.slot)
        return self

    def _log_begin(self, slot: int) -> None:
        if self.journal is None:
            return
        live = self.journal.live()
        present = self.state.to_dict()
        if self.state.table.sleep is None and (live is None or live["state"] != present):
            # The memory was changed by hand, or learned while awake, since the last commit: a crash must not
            # lose that.
            name = self.journal.next_name()
            digest = self.journal.write_checkpoint(name, self._save)
            self._log("started", checkpoint=name, folder=self._folder, digest=digest, state=present)
        self.journal.prune()
        self._log(
            "begin",
            sender=self.sender,
            receiver=self.receiver,
            slot=slot,
            senders=list(self.senders),
            night=self.night,
        )

    def _loosen(self) -> None:
        """Let the receiver's earlier experts be trained: on copies, in float32 as all that is trained."""
        with torch.inference_mode(False):
            for tensors in level_tensors(self.state, self.receiver):
                for name in SLOTS:
                    slots = tensors.get_parameter(name)
                    self._stored.append((slots, slots.data))
                    dtype = torch.promote_types(slots.dtype, torch.float32)
                    self.state.hidden.append((slots, slots.data.to(dtype)))
                    slots.data = slots.data.to(dtype, copy=True)

    def _compute(self) -> None:
        if self.state.pending[self.sender - 1]:
            assert self.updates is not None
            self.updates.compute(self.sender)
            return
        with torch.no_grad():
            for tensors in level_tensors(self.state, self.sender):
                for base, future in zip(BASE, PROSPECTIVE, strict=True):
                    tensors.get_parameter(future).copy_(tensors.get_parameter(base))

    @property
    def _folder(self) -> str:
        """Where in a checkpoint PEFT saves this adapter."""
        return "" if self.adapter_name == "default" else self.adapter_name

    def _save(self, directory: str) -> None:
        # Left to itself, PEFT asks the hub whether the base model's vocabulary was resized.
        self.model.save_pretrained(  # type: ignore[operator]
            directory, selected_adapters=[self.adapter_name], save_embedding_layers=False
        )

    def _log(self, event: str, **fields: Any) -> None:
        if self.journal is not None:
            self.journal.append(event, **fields)

    def commit(self) -> int:
        """Apply the sender's update, reset its experts and activate the new one, and return its slot.

        Raises:
            SlotError: the sleep is not open, or a view is on.
        """
        self._must_be_open()
        undo = self._snapshot()
        flags = (self.state.table, list(self.state.moved), list(self.state.pending))
        try:
            slot = self._apply()
            if self.journal is not None:
                name = self.journal.next_name()
                digest = self.journal.write_checkpoint(name, self._save)
                self._log("prepared", checkpoint=name, digest=digest)
                self._log(
                    "committed",
                    checkpoint=name,
                    folder=self._folder,
                    digest=digest,
                    state=self.state.to_dict(),
                    night=self.night,
                )
        except BaseException:
            undo()
            self.state.table, self.state.moved, self.state.pending = flags
            self.state.changed()
            raise
        self.open, self._stored = False, []
        if self._moves_base and self.updates is not None:
            self.updates.committed(self.sender)
        return slot

    def _must_be_open(self) -> None:
        if not self.open:
            raise SlotError("this sleep is not open: it was committed, aborted or never begun")
        outside_views(self.state)

    def _apply(self) -> int:
        with torch.inference_mode(False):
            for slots, before in self._stored:
                slots.data, slots.grad = slots.data.to(before.dtype), None
        self.state.hidden = []
        table = self.state.table.copy()
        table.sleep = None
        if self.plastic:
            table.events.append((self.night, self.receiver, -1, "plastic"))
        slot = table.activate(self.receiver)
        if self.senders:
            table.reset(self.sender, self.senders, self.night)
        for tensors in level_tensors(self.state, self.receiver):
            tensors.store_workspace(slot)
        if self.senders:
            for tensors in level_tensors(self.state, self.sender):
                tensors.clear_slots(self.senders)
        moved, pending = list(self.state.moved), list(self.state.pending)
        if self._moves_base:
            with torch.no_grad():
                for tensors in level_tensors(self.state, self.sender):
                    for base, future, total in zip(BASE, PROSPECTIVE, ACCUMULATED, strict=True):
                        tensors.get_parameter(base).copy_(tensors.get_parameter(future))
                        tensors.get_parameter(future).zero_()
                        tensors.get_parameter(total).zero_()
            moved[self.sender - 1] += pending[self.sender - 1] > 0
            pending[self.sender - 1] = 0
        self.state.table, self.state.moved, self.state.pending = table, moved, pending
        self.state.changed()
        return slot

    def _snapshot(self) -> Callable[[], None]:
        """Copy every tensor that a commit changes; return what puts them back."""
        sleep = self.state.table.sleep
        assert sleep is not None
        trained, hidden = [(slots, slots.data) for slots, _ in self._stored], self.state.hidden
        rows = {(self.receiver, sleep.slot), *((self.sender, slot) for slot in self.senders)}
        saved: list[tuple[Tensor, Tensor]] = []
        for level, slot in sorted(rows):
            for tensors in level_tensors(self.state, level):
                saved += [
                    (tensors.get_parameter(name)[slot], tensors.get_parameter(name)[slot].clone()) for name in SLOTS
                ]
        whole: list[tuple[int, tuple[str, ...]]] = [(self.receiver, WORKSPACE)]
        if self._moves_base:
            whole.append((self.sender, (*BASE, *PROSPECTIVE, *ACCUMULATED)))
        for level, names in whole:
            for tensors in level_tensors(self.state, level):
                saved += [(tensors.get_parameter(name), tensors.get_parameter(name).detach().clone()) for name in names]

        def undo() -> None:
            for slots, data in trained:
                slots.data = data
            self.state.hidden = hidden
            with torch.no_grad():
                for tensor, copy in saved:
                    tensor.copy_(copy)

        return undo

    def abort(self) -> None:
        """Take everything back: the model is bit for bit what it was before `begin`.

        Raises:
            SlotError: a view is on, or the sleep is a plastic one that was taken up again.
        """
        outside_views(self.state)
        if self._stored and self._resumed:
            raise SlotError(
                "a plastic sleep that was taken up again cannot be aborted, since its earlier experts have been "
                "trained already: load the memory that was committed last"
            )
        self.open = False
        for tensors in level_tensors(self.state, self.receiver):
            tensors.clear_workspace()
        for slots, before in self._stored:
            slots.data, slots.grad = before.to(slots.device), None
        self._stored, self.state.hidden = [], []
        if self._moves_base:
            with torch.no_grad():
                for tensors in level_tensors(self.state, self.sender):
                    for name in PROSPECTIVE:
                        tensors.get_parameter(name).zero_()
            if self.updates is not None:
                self.updates.aborted(self.sender)
        self.state.table = self.before
        self.state.changed()
        self._log("aborted", night=self.night)


@contextmanager
def consolidation(
    model: nn.Module,
    sender: int,
    receiver: int,
    slots: Iterable[int] | None = None,
    night: int | None = None,
    updates: WakeUpdates | None = None,
    journal: Journal | None = None,
    adapter_name: str | None = None,
    plastic: bool = False,
) -> Iterator[Consolidation]:
    """Open a sleep for a block, with the arguments of `Consolidation`; without `commit()` it aborts."""
    sleep = Consolidation(model, sender, receiver, slots, night, updates, journal, adapter_name, plastic).begin()
    try:
        yield sleep
    finally:
        if sleep.open:
            sleep.abort()


def recover(directory: str | Path) -> Path | None:
    """Return the checkpoint to load after a crash, or None if nothing was ever committed there.

    Raises:
        JournalError: the live checkpoint is missing or damaged.
    """
    return Journal(directory).recover().live
