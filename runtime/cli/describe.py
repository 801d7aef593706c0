"""`zweave describe`: makes an expert of a sentence that says what to do with a text."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict

import torch
from torch import Tensor

from ..checkpoint.checkpoint import resolve_model
from ..decomposition.decomposition import Decomposition, decompose
from ..describe.describer import Describer
from ..describe.generator import change
from ..describe.trained_experts import load_static
from ..evaluation.answer_effect import AnswerEffect
from ..experts.expert import Expert
from ..options.engine_options import stderr
from ..tasks.everyday import everyday_prompts

# Everyday prompts on which the effect on answers is measured, evenly over their kinds.
_PROMPTS = 16


def run(args: argparse.Namespace) -> int:
    checkpoint = resolve_model(args.model)
    digest = checkpoint.digest()
    static = None if args.static is None else load_static(args.static, digest)
    found = Describer.load(args.generator, args.model, digest).describe(args.text)
    decomposition = decompose(checkpoint)
    figures: dict[str, object] = {
        "nearest": found.nearest,
        "similarity": found.similarity,
        "is_far": found.is_far,
        "change": _distance(found.expert.z, {}, decomposition),
    }
    said = (
        f"{args.out}: nearest known task {found.nearest} (cosine {found.similarity:.2f}); changes the matrices by "
        f"{figures['change']:.2%} of their norm"
    )
    if static is not None:
        figures["from_static"] = _distance(found.expert.z, static.z, decomposition)
        said += f", and is {figures['from_static']:.2%} away from {args.static}"
    if args.effect:
        effect = _effect(args.model, found.expert)
        figures["effect"] = asdict(effect)
        words = ", ".join(f"{word!r} {share:.2f}" for word, share in effect.words.items())
        said += (
            f"; KL to the base {effect.divergence:.2f} nats at the first token of answers, which is {words}"
        )
    found.expert.save(args.out, half=True)
    print(json.dumps({"expert": str(args.out)} | figures) if args.json else said)
    if found.is_far:
        stderr.print(
            "this is far from every description that the generator was trained on: the expert is a guess",
            markup=False,
            soft_wrap=True,
        )
    return 0


def _distance(z: Mapping[str, Tensor], other: Mapping[str, Tensor], decomposition: Decomposition) -> float:
    """The root mean square of ||W' - W''|| / ||W|| over the matrices of either expert; W'' is W without the other."""
    sigma = {name: decomposition.sigma(name) for name in {**z, **other}}
    apart = {name: 1 + z.get(name, torch.ones(())) - other.get(name, torch.ones(())) for name in sigma}
    return float(change({name: part[None] for name, part in apart.items()}, sigma)[0].sqrt())


def _effect(model: str, expert: Expert) -> AnswerEffect:
    from ..engine.engine import Engine

    engine = Engine(model, dtype="float32")
    engine.load_expert("described", expert)
    prompts = everyday_prompts()
    texts = prompts[:: len(prompts) // _PROMPTS][:_PROMPTS]
    assert expert.prompt_template is not None
    return AnswerEffect.of(engine, "described", expert.prompt_template, texts)
