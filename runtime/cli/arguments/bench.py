"""`zweave bench`: one question a bench, all providers in one run, their output checked first.

Every bench prints a table (docs/bench.md). It exits with 1 if the output of a provider is wrong; such a provider gets
no times.
"""

import argparse
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from ...errors import ZweaveError
from ...options.file_options import add_overwrite_option
from ..parser import Deferred

# The module below `zweave.bench`, and the question that it answers.
BENCHES = {
    "linear": (
        "kernels.linear",
        "How near do the linears come to the machine's roofs, and what does an expert cost?",
    ),
    "mix": ("kernels.mix", "What does it cost to mix experts into a scale row?"),
    "step": ("serving.step", "How long does one decode step take, with all that belongs to it?"),
    "engine": ("serving.engine", "How many tokens a second does a mixed batch get, here and elsewhere?"),
    "peers": (
        "serving.peers.peers",
        "How fast are other servers on the same requests, and our experts inside them?",
    ),
    "lora": (
        "serving.lora.lora",
        "What does it cost to serve many LoRA adapters at once, here and elsewhere?",
    ),
    "experts": ("serving.experts", "Does the cost of a batch depend on how many experts it holds?"),
    "descriptions": (
        "serving.descriptions",
        "What does it cost to describe an expert in place of naming it?",
    ),
    "prefix-tree": (
        "serving.prefix_tree",
        "How long does it take to find a prompt among many whose keys and values are cached?",
    ),
    "train": ("learning.train", "How long does a training step take, against one that rebuilds the weights?"),
    "train-together": (
        "learning.train_together",
        "What do several trainings gain by sharing their passes?",
    ),
    "few-shot": (
        "learning.few_shot",
        "How long does a few-shot search take for a candidate, against rebuilding the weights for each?",
    ),
    "lora-accuracy": (
        "learning.lora.accuracy",
        "What are trained LoRA adapters worth in each way of serving them?",
    ),
    "lora-adapters": (
        "learning.lora.make_adapters",
        "Makes the trained adapters that `lora-accuracy` measures, and keeps them in the cache.",
    ),
    "description-similarity": (
        "learning.describe.similarity",
        "Do experts look alike where their descriptions do?",
    ),
    "description-reading": (
        "learning.describe.reading",
        "Can a description be read: what it asks for, and which word means yes?",
    ),
    "hidden-tasks": (
        "learning.describe.hidden_tasks",
        "Can experts that act after the prompt do tasks that the prompt hides?",
    ),
    "weights": (
        "learning.weights",
        "What do the forms in which weights can stay cost: divergence, perplexity and accuracy?",
    ),
    "transfer": ("learning.transfer", "What is an expert worth on another model of the same shapes?"),
    "two-pass": ("serving.two_pass.two_pass", "What does it cost not to know a prompt's task?"),
    "serve": ("serving.http.serve", "What does HTTP cost, and how long do clients wait?"),
    "gpu-check": (
        "kernels.gpu_check",
        "Are the kernels of a GPU right, on random shapes, eager and replayed in a graph with new slots?",
    ),
    "gpu-roofs": ("kernels.gpu_roofs", "What can this GPU do at most, and what does a launch cost?"),
    "gpu-linear": ("kernels.gpu_linear", "The linears on a GPU: how near to the roofs, and to cuBLAS?"),
    "gpu-products": (
        "kernels.gpu_products",
        "How long do the products of a layer take on a GPU, by whom, and what of that is a fixed cost?",
    ),
    "gpu-attention": (
        "kernels.gpu_attention",
        "How near does attention on a GPU come to the roofs?",
    ),
    "gpu-step": (
        "serving.gpu.gpu_step",
        "How long does one decode step on a GPU take, beside an ideal server of the base model?",
    ),
    "gpu-engine": (
        "serving.gpu.gpu_engine",
        "How many tokens a second does the GPU engine give, and how long does the host work for a step?",
    ),
    "gpu-profile": ("kernels.gpu_profile", "Why are the slowest kernels slow?"),
    "gpu-summary": (
        "serving.gpu.gpu_summary",
        "What did `bench gpu` measure, beside what was predicted?",
    ),
    "gpu": ("gpu", "One command for a machine with a GPU and no network: builds, tests and measures."),
}


class _BenchParser(argparse.ArgumentParser):
    """Adds the arguments of its bench when it parses: of a bench that is not asked nothing is loaded.

    A module of arguments may have a function `check`, for what only several arguments together say is wrong.
    """

    bench: str | None = None
    _check: Callable[[argparse.Namespace], None] = staticmethod(lambda args: None)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        if self.bench is not None:
            self._add_bench(self.bench)
            self.bench = None
        found = super().parse_known_args(args, namespace)
        try:
            self._check(found[0])
        except ZweaveError as error:
            self.error(str(error))
        return found

    def _add_bench(self, name: str) -> None:
        # That of a machine where nothing is built yet stands alone.
        where = "gpu" if name == "gpu" else f"arguments.{name.replace('-', '_')}"
        arguments = import_module(f"zweave.bench.{where}")
        self.description = arguments.__doc__
        arguments.add_arguments(self)
        self.set_defaults(bench=name)
        if name == "gpu":
            self.set_defaults(run=Deferred("bench"))
            return
        self.add_argument("--json", action="store_true", help="print a line of JSON instead of the table")
        self.add_argument("--plot", metavar="FILE", type=Path, help="write a figure, PNG")
        add_overwrite_option(self)
        self.set_defaults(run=Deferred("bench", outputs=("--plot",)))
        self._check = getattr(arguments, "check", self._check)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    benches = parser.add_subparsers(
        title="benches", metavar="BENCH", required=True, parser_class=_BenchParser
    )
    for name, (_, question) in BENCHES.items():
        benches.add_parser(name, help=question).bench = name
