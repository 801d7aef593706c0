"""The other end of `PeerProcess`: loads one peer, then answers the workload for every line that it reads."""

import json
import os
import sys
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import torch

from zweave.checkpoint import Checkpoint
from zweave.experts import Expert

from ..workload import Workload, random_expert, turns

Serve = Callable[[], list[list[int]]]


def main() -> None:
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    # Answers go to standard output; what libraries print goes to the log.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve = PEERS[job["peer"]](job)
    print(json.dumps("ready"), file=answers, flush=True)
    for _ in sys.stdin:
        print(json.dumps(serve()), file=answers, flush=True)


def _workload(job: dict[str, Any]) -> tuple[Workload, list[list[int]]]:
    workload = Workload(job["requests"], job["prompt"], job["new"])
    return workload, workload.prompts(Checkpoint(job["model"]).config)


def _experts(job: dict[str, Any]) -> list[Expert]:
    config, leading = Checkpoint(job["model"]).config, 8 if job["leading"] else 1
    return [random_expert(config, index, leading=leading) for index in range(job["experts"])]


def _zweave(job: dict[str, Any]) -> Serve:
    from zweave.adapters.component_pool import pages_of_rank
    from zweave.engine import Engine
    from zweave.kernels import PAGE

    from ..engine_server import EngineServer

    workload, _ = _workload(job)
    # Rounds repeat their prompts: with a prefix cache only the first would compute them.
    engine = Engine(
        job["model"],
        dtype=job["dtype"],
        prefix_cache=False,
        slots=max(1, job["experts"]),
        lora_components=PAGE * pages_of_rank(job["rank"]) * len(job["adapters"]),
        weights=job["weights"],
    )
    if job["compressed"]:
        names = engine.load_adapters(job["adapters"][0])
    else:
        names = [f"expert{index}" for index in range(job["experts"])]
        for name, adapter in zip(names, job["adapters"] or _experts(job), strict=True):
            engine.load_expert(name, adapter)
    adapters_of = cycle(turns(names, workload.requests))
    return lambda: EngineServer(engine, workload, next(adapters_of))()


def _transformers(job: dict[str, Any]) -> Serve:
    from ..reference_model import load_transformers
    from .peer_providers import generate

    workload, prompts = _workload(job)
    model = load_transformers(Path(job["model"]), getattr(torch, job["dtype"]))
    return lambda: generate(model, prompts, workload.new)


def _attached(job: dict[str, Any]) -> Serve:
    from .peer_providers import AttachedExperts

    workload, prompts = _workload(job)
    attached = AttachedExperts(Path(job["model"]), _experts(job), getattr(torch, job["dtype"]))
    return lambda: attached(prompts, workload.new)


def _peft(job: dict[str, Any]) -> Serve:
    from peft import PeftModel

    from ..reference_model import load_transformers
    from .peer_providers import generate

    workload, prompts = _workload(job)
    dtype = getattr(torch, job["dtype"])
    model: Any = load_transformers(Path(job["model"]), dtype)
    first, *others = job["adapters"]
    model = PeftModel.from_pretrained(model, first, adapter_name=first.replace(".", "_"))
    for directory in others:
        model.load_adapter(directory, directory.replace(".", "_"))
    model.to(dtype).eval()
    adapters = [directory.replace(".", "_") for directory in job["adapters"]]
    adapters_of = cycle(turns(adapters, workload.requests))
    return lambda: generate(model, prompts, workload.new, adapter_names=next(adapters_of))


def _vllm(job: dict[str, Any]) -> Serve:
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    workload, prompts = _workload(job)
    adapters = [LoRARequest(path, index + 1, path) for index, path in enumerate(job["adapters"])]
    engine = LLM(
        job["model"],
        dtype=job["dtype"],
        max_model_len=workload.prompt + workload.new + 1,
        max_num_seqs=workload.requests,
        enable_prefix_caching=False,
        seed=0,
        **job["options"],
    )
    requests = [{"prompt_token_ids": prompt} for prompt in prompts]
    sampling = SamplingParams(temperature=0, max_tokens=workload.new, ignore_eos=True)
    adapters_of = cycle(turns(adapters, workload.requests))

    def serve() -> list[list[int]]:
        outputs = engine.generate(requests, sampling, lora_request=next(adapters_of) or None, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    return serve


PEERS: dict[str, Callable[[dict[str, Any]], Serve]] = {
    "zweave": _zweave,
    "transformers": _transformers,
    "attached": _attached,
    "peft": _peft,
    "vllm": _vllm,
}

if __name__ == "__main__":
    main()
