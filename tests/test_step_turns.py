"""Whoever loads beside an engine's steps waits for the one in flight, and no longer than that."""

from threading import Thread

from zweave.step_turns import StepTurns


def test_a_piece_waits_for_the_step_in_flight() -> None:
    turns, seen = StepTurns(piece=0, longest=60), []

    def load() -> None:
        turns.rest()
        seen.append("next piece")

    with turns.step():
        loader = Thread(target=load)
        loader.start()
        # In vain, while the step lasts.
        loader.join(0.05)
        seen.append("step ended")
    loader.join()
    assert seen == ["step ended", "next piece"]


def test_a_step_that_does_not_end_is_given_up() -> None:
    turns = StepTurns(piece=0, longest=0.01)
    with turns.step():
        turns.rest()


def test_less_than_a_piece_does_not_wait() -> None:
    turns = StepTurns(piece=float("inf"), longest=float("inf"))
    with turns.step():
        turns.rest()


def test_a_step_that_fails_has_ended() -> None:
    turns = StepTurns(piece=0, longest=float("inf"))
    try:
        with turns.step():
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        turns.rest()
