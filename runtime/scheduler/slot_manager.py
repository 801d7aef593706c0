"""Gives sequences the slots of their mixtures."""

from collections.abc import Iterable

from ..errors import ZweaveError
from ..experts.bank import Bank
from .sequence import Sequence


class SlotManager:
    """Takes and releases the slots of a bank. A sequence holds one: of the mixture that computes its next token."""

    def __init__(self, bank: Bank) -> None:
        self._bank = bank

    def take(self, sequence: Sequence, position: int) -> bool:
        """Takes the slot of the mixture that computes the token at a position; returns whether there is one.

        Raises ZweaveError if the mixture cannot be had any more.
        """
        sequence.slot = self._bank.try_acquire(sequence.mixture_at(position))
        return sequence.slot is not None

    def release(self, sequence: Sequence) -> None:
        """Gives a sequence's slot back, if it has one."""
        if sequence.slot is not None:
            self._bank.release(sequence.slot)
            sequence.slot = None

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
