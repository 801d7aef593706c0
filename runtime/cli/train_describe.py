"""`zweave train-describe`: trains a generator that turns descriptions of tasks into experts."""

import argparse

from ..describe.train.generated import GeneratorStep
from ..describe.train.generator_recipe import GeneratorRecipe
from ..describe.train.reading import ReadingRecipe
from ..describe.train.run import GeneratorRun
from ..device import parse_device
from ..options.engine_options import stderr
from ..options.task_options import data_folder
from .train import default_dtype

# Steps between two lines of progress.
_SHOWN = 10


def run(args: argparse.Namespace) -> int:
    parse_device(args.device)
    names = ("steps", "descriptions", "rows", "lr", "opening", "policy", "kl", "seed")
    recipe = GeneratorRecipe(**{name: getattr(args, name) for name in names})
    job = GeneratorRun(
        model=args.model,
        dtype=args.dtype or default_dtype(args.device),
        data=data_folder(args),
        out=args.out,
        encoder=args.encoder,
        attributes=args.attributes,
        words=args.words,
        first_layer=args.first_layer,
        upper_layer=args.upper_layer,
        reading=ReadingRecipe(args.reading_steps, 4 * args.reading_steps, seed=args.seed),
        warm_start=args.warm_start,
        device=args.device,
        listed=args.listed,
        texts=args.texts,
        one_order=args.one_order,
        static=args.static,
        split=args.split,
        recipe=recipe,
    )
    if job.state.exists():
        stderr.print(f"going on with the unfinished training in {job.state}", markup=False, soft_wrap=True)
    shown: list[GeneratorStep] = []

    def report(step: GeneratorStep) -> None:
        shown.append(step)
        if len(shown) == _SHOWN:
            loss, right = (sum(getattr(one, name) for one in shown) / _SHOWN for name in ("loss", "accuracy"))
            line = f"step {step.step + 1} of {recipe.steps}: loss {loss:.3f}, right {right:.3f}, "
            stderr.print(f"{line}change {step.change:.2e}", markup=False, highlight=False)
            shown.clear()

    try:
        is_done = job.train(report, args.minutes)
    except KeyboardInterrupt:
        stderr.print("interrupted: the same command goes on from the last saved step")
        return 130
    print(f"{args.out}: written" if is_done else f"{job.state}: unfinished, the same command goes on")
    return 0
