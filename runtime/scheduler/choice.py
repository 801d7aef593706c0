"""Choices of experts in flight: the device has chosen, and the host does not know it yet.

The expert of a sequence acts from the end of the pooled tokens on. What comes before is the base model's whatever is
chosen; the tokens after it carry a *place*, a number beyond the bank's slots, where the device finds the slot that it
has chosen. Until the choice lands the sequence holds the slots of all candidates.
"""

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from torch import Tensor

from ..dispatcher import StateClassifier
from ..errors import ZweaveError
from ..experts.bank import Bank
from ..experts.resolved_mixture import ResolvedMixture
from .pooling import Pooling


@dataclass(slots=True, eq=False)
class Choice:
    """An expert that a device chooses.

    pooling: whose states are averaged; also the first pass that takes the choice's stead if there are too few slots
    classifier: chooses one of its labels
    mixtures: of each label; the base model and experts of scope "after_prompt"
    slots: of each label; none while the sequence is not running
    row: of what the device knows of it; None while the sequence is not running
    seed: states of the tokens that were found in the prefix cache, in parts [tokens, hidden]
    num_found: number of these tokens
    """

    pooling: Pooling
    classifier: StateClassifier
    mixtures: Seq[ResolvedMixture]
    slots: list[int] = field(default_factory=list)
    row: int | None = None
    seed: list[Tensor] = field(default_factory=list)
    num_found: int = 0

    def restart(self, num_found: int, seed: list[Tensor]) -> None:
        """Starts after tokens that were found in the prefix cache."""
        self.num_found, self.seed = num_found, seed

    def mixture_in(self, slot: int) -> ResolvedMixture | None:
        """The candidate that holds a slot; None if the base model has it, whether or not that is a candidate."""
        return next((m for m, s in zip(self.mixtures, self.slots, strict=True) if s == slot and slot), None)


class ChoiceSlots:
    """The slots and rows of choices in flight. All of them are made by one classifier, at one layer.

    num_rows: choices that may be in flight.
    """

    def __init__(self, bank: Bank, num_rows: int) -> None:
        self._bank = bank
        self._free = list(range(num_rows))
        self._num_in_flight = 0
        self._latest: Choice | None = None

    def try_acquire(self, choice: Choice) -> int | None:
        """Gives a choice a row and the slots of its candidates, and returns the place of the slot that is chosen.

        None, and nothing is given, if they are not to be had now.
        """
        if not self._free or not self._fits(choice):
            return None
        slot_of: dict[str, int] = {}
        for mixture in choice.mixtures:
            if mixture.digest in slot_of:
                continue
            slot = self._try_acquire_slot(mixture)
            if slot is None:
                self._release_slots(slot_of.values())
                return None
            slot_of[mixture.digest] = slot
        self._latest, self._num_in_flight = choice, self._num_in_flight + 1
        choice.slots = [slot_of[mixture.digest] for mixture in choice.mixtures]
        choice.row = self._free.pop()
        return self._bank.num_slots + choice.row

    def release(self, choice: Choice, kept: int = 0) -> None:
        """Takes a choice's row and its slots but `kept`, which is its sequence's from now on."""
        assert choice.row is not None
        self._release_slots(set(choice.slots) - {kept})
        self._free.append(choice.row)
        self._num_in_flight -= 1
        choice.slots, choice.row = [], None

    def _fits(self, choice: Choice) -> bool:
        """Whether a choice is made as those in flight are."""
        latest = self._latest
        if latest is None or not self._num_in_flight:
            return True
        return latest.classifier is choice.classifier and latest.pooling.layer == choice.pooling.layer

    def _try_acquire_slot(self, mixture: ResolvedMixture) -> int | None:
        try:
            return self._bank.try_acquire(mixture)
        except ZweaveError:  # reported if it is chosen
            return None

    def _release_slots(self, slots: Iterable[int]) -> None:
        for slot in slots:
            self._bank.release(slot)
