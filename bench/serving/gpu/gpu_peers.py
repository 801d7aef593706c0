"""Others that serve the GPU bench's workload on the same device: transformers' `generate`, and PEFT."""

from collections.abc import Callable, Sequence
from functools import partial

from ...harness.harness import Provider
from ..fixtures import Answers, Fixtures
from ..peers.peer_providers import PeftLora, generate
from ..reference_model import load_transformers
from ..workload import Workload

# Answers that are held against the reference model, which merges weights for each.
CHECKED = 2
# PEFT goes through the adapters one by one, in each linear.
MOST_ADAPTERS = 8
TRANSFORMERS = "transformers"


def _transformers(
    fixtures: Fixtures, prompts: Sequence[Sequence[int]], workload: Workload, experts: int, device: str
) -> Provider:
    """The base model, all requests in one batch. Raises ImportError where transformers is not installed."""
    model = load_transformers(fixtures.checkpoint.directory, fixtures.torch_dtype).to(device)

    def regret(answers: Answers) -> float:
        return fixtures.regret(prompts[:CHECKED], answers[:CHECKED])

    serve = partial(generate, model, prompts, workload.new)
    return fixtures.text_provider(TRANSFORMERS, serve, regret, experts=0)


def _peft(
    fixtures: Fixtures, prompts: Sequence[Sequence[int]], workload: Workload, experts: int, device: str
) -> Provider:
    """Adapters of rank 16 in one batch. Raises ImportError where PEFT is not installed."""
    adapters = min(experts, MOST_ADAPTERS)
    names = fixtures.decomposition.names
    lora = PeftLora(fixtures.checkpoint.directory, names, adapters, fixtures.torch_dtype, device)

    def regret(answers: Answers) -> float:
        base = fixtures.reference_model.base
        changes = partial(lora.changes, base=base)
        return fixtures.mean_regret(prompts[:CHECKED], answers[:CHECKED], changes, adapters)

    serve = partial(lora, prompts, workload.new)
    return fixtures.text_provider("PEFT LoRA rank 16", serve, regret, experts=adapters)


PEERS: dict[str, Callable[[Fixtures, Sequence[Sequence[int]], Workload, int, str], Provider]] = {
    "transformers": _transformers,
    "peft": _peft,
}
