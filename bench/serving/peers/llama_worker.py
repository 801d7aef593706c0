"""The other end of `PeerProcess` for llama.cpp: loads a model, then answers the workload for every line that it reads.

A script that needs llama-cpp-python alone, neither zweave nor torch, so that any environment that has it will do. All
requests of a turn are one batch; under adapters those of one adapter are, since a batch of llama.cpp's has one.
"""

import ctypes
import json
import os
import sys
from collections.abc import Sequence
from itertools import cycle
from typing import Any

import llama_cpp as llama
import numpy as np

FORMATS = {
    "q8_0": llama.LLAMA_FTYPE_MOSTLY_Q8_0,
    "q4_0": llama.LLAMA_FTYPE_MOSTLY_Q4_0,
    "q4_1": llama.LLAMA_FTYPE_MOSTLY_Q4_1,
}


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        job = json.load(file)
    # Answers go to standard output; what llama.cpp prints goes to the log.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if job["format"] and not os.path.isfile(job["model"]):
        quantize(job["source"], job["model"], job["format"], job["threads"])
    model, turns = Model(job), cycle(job["turns"])
    print(json.dumps("ready"), file=answers, flush=True)
    for _ in sys.stdin:
        print(json.dumps(serve(model, job["prompts"], job["new"], next(turns))), file=answers, flush=True)


def quantize(source: str, target: str, kind: str, threads: int) -> None:
    """The file that llama.cpp's own quantiser makes of another."""
    options = llama.llama_model_quantize_default_params()
    options.ftype, options.nthread = FORMATS[kind], threads
    if llama.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(options)):
        raise RuntimeError(f"llama.cpp cannot quantise {source} to {kind}")


def serve(
    model: "Model", prompts: Sequence[list[int]], new: int, turn: Sequence[str | None]
) -> list[list[int]]:
    """The answers, request i under adapter turn[i]; None for no adapter."""
    answers: list[list[int]] = [[] for _ in prompts]
    for adapter in dict.fromkeys(turn):
        mine = [index for index, each in enumerate(turn) if each == adapter]
        model.use(adapter)
        for index, answer in zip(mine, model.generate([prompts[i] for i in mine], new), strict=True):
            answers[index] = answer
    return answers


class Model:
    """A model, a context for all requests, and the adapters in memory."""

    def __init__(self, job: dict[str, Any]) -> None:
        llama.llama_backend_init()
        path = job["model"]
        self._model = _loaded(
            path, llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
        )
        requests, prompt = len(job["prompts"]), len(job["prompts"][0])
        options = llama.llama_context_default_params()
        options.n_seq_max = requests
        options.n_ctx = requests * (prompt + job["new"])
        options.n_batch = requests * prompt
        options.n_threads = options.n_threads_batch = job["threads"]
        self._context = _loaded(path, llama.llama_init_from_model(self._model, options))
        self._vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))
        self._batch = llama.llama_batch_init(requests * prompt, 0, 1)
        adapters = {adapter for turn in job["turns"] for adapter in turn if adapter}
        self._adapters = {
            adapter: _loaded(adapter, llama.llama_adapter_lora_init(self._model, adapter.encode()))
            for adapter in sorted(adapters)
        }

    def use(self, adapter: str | None) -> None:
        """The adapter that what follows is computed under."""
        chosen = [self._adapters[adapter]] if adapter else []
        pointers = (llama.llama_adapter_lora_p_ctypes * len(chosen))(
            *(ctypes.cast(each, llama.llama_adapter_lora_p_ctypes) for each in chosen)
        )
        scales = (ctypes.c_float * len(chosen))(*(1.0 for _ in chosen))
        if llama.llama_set_adapters_lora(self._context, pointers, len(chosen), scales):
            raise RuntimeError(f"llama.cpp cannot use the adapter {adapter}")

    def generate(self, prompts: Sequence[list[int]], new: int) -> list[list[int]]:
        """Greedy answers of `new` tokens to prompts of one length, as one batch."""
        # Otherwise it would go on from what it remembers of the last prompts.
        llama.llama_memory_clear(llama.llama_get_memory(self._context), True)
        size = len(prompts[0])
        rows = [
            (token, position, sequence)
            for sequence, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        tokens = self._decode(rows, range(size - 1, len(rows), size))
        answers = [[token] for token in tokens]
        for position in range(size, size + new - 1):
            rows = [(token, position, sequence) for sequence, token in enumerate(tokens)]
            tokens = self._decode(rows, range(len(rows)))
            for answer, token in zip(answers, tokens, strict=True):
                answer.append(token)
        return answers

    def _decode(self, rows: Sequence[tuple[int, int, int]], wanted: range) -> list[int]:
        """The likeliest next token after each wanted row; a row is a token, its position and its sequence."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for index, (token, position, sequence) in enumerate(rows):
            batch.token[index], batch.pos[index] = token, position
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
            batch.logits[index] = index in wanted
        if llama.llama_decode(self._context, batch):
            raise RuntimeError("llama.cpp cannot decode the batch")
        return [int(self._logits(index).argmax()) for index in wanted]

    def _logits(self, index: int) -> Any:
        return np.ctypeslib.as_array(
            llama.llama_get_logits_ith(self._context, index), shape=(self._vocabulary,)
        )


def _loaded(path: str, pointer: Any) -> Any:
    if not pointer:
        raise RuntimeError(f"llama.cpp cannot load {path}")
    return pointer


if __name__ == "__main__":
    main()
