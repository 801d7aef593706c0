"""Rewrites LoRA requests to content-addressed copies of their adapters, see pinned.py."""

import functools
import inspect
from typing import Any

import msgspec
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.engine.llm_engine import LLMEngine

from .pinned import number, pinned_path


def pin(request: Any) -> Any:
    """The request for the pinned copy of its adapter; requests for other kinds of adapters as they are.

    Each copy has its own number, so that no adapter is replaced in place.
    """
    path = None if request is None else pinned_path(request.lora_path)
    if path is None:
        return request
    return msgspec.structs.replace(request, lora_path=str(path), lora_int_id=number(path), load_inplace=False)


def pin_requests() -> None:
    """Patches vLLM to pin the adapters of requests and loads, once a process."""
    if getattr(LLMEngine.add_lora, "of_zweave", False):
        return
    signature = inspect.signature(InputProcessor.process_inputs)
    process, add, add_async = InputProcessor.process_inputs, LLMEngine.add_lora, AsyncLLM.add_lora

    @functools.wraps(process)
    def process_inputs(self: Any, *args: Any, **options: Any) -> Any:
        given = signature.bind(self, *args, **options)
        given.arguments["lora_request"] = pin(given.arguments.get("lora_request"))
        return process(*given.args, **given.kwargs)

    @functools.wraps(add)
    def add_lora(self: Any, lora_request: Any) -> Any:
        return add(self, pin(lora_request))

    @functools.wraps(add_async)
    async def add_lora_async(self: Any, lora_request: Any) -> Any:
        # The server keeps this object for later requests, which are to use what is loaded now.
        now = pin(lora_request)
        lora_request.lora_path, lora_request.lora_int_id = now.lora_path, now.lora_int_id
        lora_request.load_inplace = now.load_inplace
        return await add_async(self, lora_request)

    add_lora.of_zweave = True  # type: ignore[attr-defined]
    InputProcessor.process_inputs = process_inputs
    LLMEngine.add_lora = add_lora
    AsyncLLM.add_lora = add_lora_async
