"""Dispatchers: which expert answers a request that names none."""

from zweave.dispatch.dispatcher import Dispatcher, Look, Prompt, ReadScores, ReadState
from zweave.dispatch.file import load_dispatcher
from zweave.dispatch.fixed import FixedDispatcher, few_shot
from zweave.dispatch.hidden import HiddenDispatcher
from zweave.dispatch.prompt import PromptDispatcher
from zweave.dispatch.routes import Routes
from zweave.request import Dispatch

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
