"""`zweave describe`: makes an expert of a sentence that says what to do with a text."""

import argparse
import json
from dataclasses import asdict

from ..checkpoint.checkpoint import resolve_model
from ..decomposition.decomposition import Decomposition
from ..describe.describer import Describer
from ..describe.generator import change
from ..dispatch.everyday import everyday_prompts
from ..evaluation.answer_effect import AnswerEffect
from ..experts.expert import Expert
from ..options.engine_options import stderr

# Everyday prompts on which the effect on answers is measured, evenly over their kinds.
_PROMPTS = 16


def run(args: argparse.Namespace) -> int:
    digest = resolve_model(args.model).digest()
    static = None if args.static is None else Expert.load(args.static)
    found = Describer.load(args.generator, args.model, digest).describe(args.text)
    found.expert.save(args.out, half=True)
    figures: dict[str, object] = {
        "nearest": found.nearest,
        "similarity": found.similarity,
        "is_far": found.is_far,
        "change": _distance(found.expert, None, digest),
    }
    said = (
        f"{args.out}: nearest known task {found.nearest} (cosine {found.similarity:.2f}); changes the matrices by "
        f"{figures['change']:.2%} of their norm"
    )
    if static is not None:
        figures["from_static"] = _distance(found.expert, static, digest)
        said += f", and is {figures['from_static']:.2%} away from {args.static}"
    if args.effect:
        effect = _effect(args.model, found.expert)
        figures["effect"] = asdict(effect)
        words = ", ".join(f"{word!r} {share:.2f}" for word, share in effect.words.items())
        said += (
            f"; KL to the base {effect.divergence:.2f} nats at the first token of answers, which is {words}"
        )
    print(json.dumps({"expert": str(args.out)} | figures) if args.json else said)
    if found.is_far:
        stderr.print(
            "this is far from every description that the generator was trained on: the expert is a guess",
            markup=False,
            soft_wrap=True,
        )
    return 0


def _distance(expert: Expert, other: Expert | None, digest: str) -> float:
    """The root mean square over the matrices of ||W' - W''|| / ||W||; without another expert W'' is W."""
    decomposition = Decomposition.open(digest)
    delta = {name: z - (1 if other is None else other.z.get(name, 1)) for name, z in expert.z.items()}
    sigma = {name: decomposition.sigma(name) for name in delta}
    return float(change({name: (1 + part)[None] for name, part in delta.items()}, sigma)[0].sqrt())


def _effect(model: str, expert: Expert) -> AnswerEffect:
    from ..engine.engine import Engine

    engine = Engine(model, dtype="float32")
    engine.load_expert("described", expert)
    prompts = everyday_prompts()
    texts = prompts[:: len(prompts) // _PROMPTS][:_PROMPTS]
    assert expert.prompt_template is not None
    return AnswerEffect.of(engine, "described", expert.prompt_template, texts)
