"""Gives sequences the slots of their mixtures."""

from collections.abc import Iterable

from ..errors import ZweaveError
from ..experts.bank import Bank
from .choice import ChoiceSlots
from .sequence import Sequence


class SlotManager:
    """Takes and releases the slots of a bank. A sequence holds one: of the mixture that computes its next token.

    While the device chooses its expert it holds the slots of all candidates, and a place instead.

    max_sequences: that may run at once.
    """

    def __init__(self, bank: Bank, max_sequences: int) -> None:
        self._bank = bank
        self._choices = ChoiceSlots(bank, max_sequences)

    def take(self, sequence: Sequence, position: int) -> bool:
        """Takes the slot of the mixture that computes the token at a position; returns whether there is one.

        A choice that finds too few is the host's from now on. Raises ZweaveError if the mixture cannot be had any more.
        """
        if sequence.choice is not None:
            sequence.slot = self._choices.try_acquire(sequence.choice)
            if sequence.slot is not None:
                return True
            sequence.choose_on_host()
        sequence.slot = self._bank.try_acquire(sequence.mixture_at(position))
        return sequence.slot is not None

    def release(self, sequence: Sequence) -> None:
        """Gives a sequence's slot back, or those of all candidates, if it has one."""
        if sequence.slot is None:
            return
        if sequence.choice is None:
            self._bank.release(sequence.slot)
        else:
            self._choices.release(sequence.choice)
        sequence.slot = None

    def settle(self, sequence: Sequence, slot: int) -> None:
        """Gives all slots of a sequence's candidates back but the one that the device has chosen."""
        assert sequence.choice is not None
        self._choices.release(sequence.choice, kept=slot)

    def change(self, running: Iterable[Sequence]) -> list[tuple[Sequence, str]]:
        """Changes the slots of running sequences whose next token another mixture computes than the last one.

        Those that get none now keep their blocks and wait. Returns those whose mixture cannot be had any more.
        """
        failed: list[tuple[Sequence, str]] = []
        for sequence in running:
            if not sequence.earlier:
                continue
            digest = sequence.mixture_at(sequence.next_position).digest
            if sequence.slot is not None and self._bank.digest_of(sequence.slot) == digest:
                continue
            self.release(sequence)
            try:
                self.take(sequence, sequence.next_position)
            except ZweaveError as error:
                failed.append((sequence, str(error)))
        return failed
