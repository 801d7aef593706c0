"""`zweave describe`: makes an expert of a sentence that says what to do with a text."""

import argparse
import json

from ..checkpoint.checkpoint import resolve_model
from ..decomposition.decomposition import Decomposition
from ..describe.describer import Describer
from ..describe.generator import change
from ..options.engine_options import stderr


def run(args: argparse.Namespace) -> int:
    digest = resolve_model(args.model).digest()
    found = Describer.load(args.generator, args.model, digest).describe(args.text)
    found.expert.save(args.out, half=True)
    decomposition = Decomposition.open(digest)
    sigma = {name: decomposition.sigma(name) for name in found.expert.z}
    moved = float(change({name: z[None] for name, z in found.expert.z.items()}, sigma)[0].sqrt())
    if args.json:
        figures = {
            "nearest": found.nearest,
            "similarity": found.similarity,
            "is_far": found.is_far,
            "change": moved,
        }
        print(json.dumps({"expert": str(args.out)} | figures))
    else:
        print(
            f"{args.out}: nearest known task {found.nearest} (cosine {found.similarity:.2f}); changes the matrices by "
            f"{moved:.2%} of their norm"
        )
    if found.is_far:
        stderr.print(
            "this is far from every description that the generator was trained on: the expert is a guess",
            markup=False,
            soft_wrap=True,
        )
    return 0
