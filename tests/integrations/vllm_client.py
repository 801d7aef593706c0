"""Run by the interpreter with vLLM: asks an OpenAI server, with adapters coming and going under traffic.

    python vllm_client.py URL < job.json

job: {"models": [names], "prompts": [texts], "max_tokens", "bad": [directories],
      "changing": {"name", "directory", "contents": [directories]}}
Threads ask for `models` all the while. Meanwhile the changing adapter is loaded with each of its contents in turn,
asked for, and unloaded; the last time it is replaced in place. The last line of the output is
    {"steady": {model: [distinct answers a prompt]}, "changing": [[answers] a content], "refusals": [texts],
     "listed": [names], "failures": [texts]}
"""

import json
import shutil
import sys
import threading
import urllib.error
import urllib.request
from collections import defaultdict

from openai import OpenAI


def main() -> None:
    url, job = sys.argv[1], json.load(sys.stdin)
    client = OpenAI(base_url=f"{url}/v1", api_key="none", timeout=300, max_retries=0)

    def ask(model: str, prompt: str) -> str:
        answer = client.completions.create(
            model=model,
            prompt=prompt,
            temperature=0,
            max_tokens=job["max_tokens"],
            extra_body={"ignore_eos": True},
        )
        return answer.choices[0].text

    steady: dict[str, list[set[str]]] = {model: [set() for _ in job["prompts"]] for model in job["models"]}
    rounds: dict[str, int] = defaultdict(int)
    failures: list[str] = []
    done = threading.Event()

    def traffic(model: str) -> None:
        try:
            while not done.is_set() or not rounds[model]:
                for index, prompt in enumerate(job["prompts"]):
                    steady[model][index].add(ask(model, prompt))
                rounds[model] += 1
        except Exception as failure:
            failures.append(f"{model}: {failure}")

    threads = [threading.Thread(target=traffic, args=(model,)) for model in job["models"]]
    for thread in threads:
        thread.start()
    changing, answers, listed = job["changing"], [], []
    name, directory = changing["name"], changing["directory"]
    for turn, content in enumerate(changing["contents"]):
        shutil.copytree(content, directory, dirs_exist_ok=True)
        last = turn == len(changing["contents"]) - 1
        post(url, "load_lora_adapter", {"lora_name": name, "lora_path": directory, "load_inplace": last})
        listed = [model.id for model in client.models.list().data]
        answers.append([ask(name, prompt) for prompt in job["prompts"]])
        if turn < len(changing["contents"]) - 2:
            post(url, "unload_lora_adapter", {"lora_name": name})
    refusals = [
        post(url, "load_lora_adapter", {"lora_name": "bad", "lora_path": path}, fails=True)
        for path in job["bad"]
    ]
    # The server lives on, and what was refused disturbs nothing.
    answers.append([ask(name, prompt) for prompt in job["prompts"]])
    done.set()
    for thread in threads:
        thread.join()
    result = {
        "steady": {model: [sorted(texts) for texts in found] for model, found in steady.items()},
        "changing": answers,
        "refusals": refusals,
        "listed": listed,
        "failures": failures,
    }
    print(json.dumps(result))


def post(url: str, route: str, body: dict, fails: bool = False) -> str:
    request = urllib.request.Request(
        f"{url}/v1/{route}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=300) as response:
            assert not fails, f"{body} was taken"
            return response.read().decode()
    except urllib.error.HTTPError as error:
        text = error.read().decode()
        assert fails, f"{body} was refused: {text}"
        return text


if __name__ == "__main__":
    main()
