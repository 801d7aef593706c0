"""What a bench was predicted to measure, as its rows have it."""

from .harness import Outcome


def prediction_keys(outcome: Outcome, predicted: float | None, device: str) -> dict[str, object]:
    """predicted_seconds, predicted_for and vs_predicted of a row, or nothing where there is no prediction.

    device: whose rates it is made of.
    """
    if predicted is None:
        return {}
    return {
        "predicted_seconds": predicted,
        "predicted_for": device,
        "vs_predicted": outcome.seconds and outcome.seconds / predicted,
    }
