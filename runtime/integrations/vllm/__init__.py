"""Experts in vLLM: `pip install 'zweave[vllm]'`, see docs/vllm.md. Imports vLLM in the plugin alone."""

from .adapter import ADAPTER_FILES, is_adapter, load_adapter, save_adapter

__all__ = ["ADAPTER_FILES", "is_adapter", "load_adapter", "save_adapter"]
