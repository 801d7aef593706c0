"""Dispatchers: which expert answers a request that names none."""

import warnings

from ..dispatcher import Dispatch, Dispatcher, Probe, Prompt, ReadScores, ReadState, StateClassifier
from .early_classifier import EarlyClassifier
from .file import load_dispatcher
from .fixed import FixedDispatcher, few_shot
from .hidden import HiddenDispatcher
from .prompt import PromptDispatcher
from .routes import Routes

__all__ = [
    "Dispatch",
    "Dispatcher",
    "EarlyClassifier",
    "FixedDispatcher",
    "HiddenDispatcher",
    "Probe",
    "Prompt",
    "PromptDispatcher",
    "ReadScores",
    "ReadState",
    "Routes",
    "StateClassifier",
    "few_shot",
    "load_dispatcher",
]


def __getattr__(name: str) -> object:
    """`Look` is the former name of `Probe`."""
    if name != "Look":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn("zweave.dispatch.Look is now called Probe", DeprecationWarning, stacklevel=2)
    return Probe
