"""Run by the interpreter with vLLM: answers batches of prompts, each request under an adapter or the base.

    python vllm_answers.py MODEL < job.json

job: {"max_tokens", "batches": [{"prompts": [[token ids]], "adapters": [directory or null], "copy"}]}. "copy" is
[from, to] or null: it overwrites one adapter directory by another before the batch. The last line of the output is a
list, for each batch of a list, for each request of [token ids, log-probabilities, tokens from the prefix cache].
"""

import json
import shutil
import sys

from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest


def main() -> None:
    job = json.load(sys.stdin)
    llm = LLM(
        sys.argv[1], quantization="svf", enable_lora=True, max_loras=4, dtype="float32", max_model_len=512,
        block_size=32, enable_prefix_caching=True,
    )  # fmt: skip
    sampling = SamplingParams(temperature=0, max_tokens=job["max_tokens"], logprobs=1, ignore_eos=True)
    names: dict[str, LoRARequest] = {}
    answers = []
    for batch in job["batches"]:
        if batch["copy"]:
            shutil.copytree(*batch["copy"], dirs_exist_ok=True)
        for directory in filter(None, batch["adapters"]):
            names.setdefault(directory, LoRARequest(directory, len(names) + 1, directory))
        outputs = llm.generate(
            [{"prompt_token_ids": prompt} for prompt in batch["prompts"]],
            sampling,
            lora_request=[names[directory] if directory else None for directory in batch["adapters"]],
            use_tqdm=False,
        )
        answers.append([read(output) for output in outputs])
    print(json.dumps(answers))


def read(output) -> tuple[list[int], list[float], int]:
    answer = output.outputs[0]
    tokens = list(answer.token_ids)
    chosen = [step[token].logprob for token, step in zip(tokens, answer.logprobs, strict=True)]
    return tokens, chosen, output.num_cached_tokens or 0


if __name__ == "__main__":
    main()
