"""Experts in vLLM: `pip install 'zweave[vllm]'`, see docs/vllm.md. Imports vLLM in the plugin alone."""

from .adapter import is_adapter, load_adapter, save_adapter

__all__ = ["is_adapter", "load_adapter", "save_adapter"]
