"""Dispatchers: which expert answers a request that names none."""

from ..dispatcher import Dispatch, Dispatcher, Look, Prompt, ReadScores, ReadState
from .file import load_dispatcher
from .fixed import FixedDispatcher, few_shot
from .hidden import HiddenDispatcher
from .prompt import PromptDispatcher
from .routes import Routes

__all__ = [
    "Dispatch",
    "Dispatcher",
    "FixedDispatcher",
    "HiddenDispatcher",
    "Look",
    "Prompt",
    "PromptDispatcher",
    "ReadScores",
    "ReadState",
    "Routes",
    "few_shot",
    "load_dispatcher",
]
