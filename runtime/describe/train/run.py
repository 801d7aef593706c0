"""The training of a generator and its files: the generator, its log and curves, and the state of an unfinished one."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ...checkpoint.checkpoint import resolve_model
from ...decomposition.decomposition import decompose
from ...errors import ZweaveError
from ...tasks.everyday import everyday_prompts
from ...tasks.render import answer_limit
from ..describer import Describer
from ..encoders import Encoder, open_encoder
from ..generator import Generator, GeneratorConfig
from ..generator_file import TrainedGenerator, known_vectors
from ..tasks import HiddenTask, as_task, hidden_tasks, split_levels
from ..tasks.hidden_task import BARE, LISTED, chosen_tasks, in_one_order, samples
from ..trained_experts import TrainedExperts
from .generated import ANY_TASK, GeneratorStep, GeneratorTraining, Learnt
from .generator_recipe import GeneratorRecipe
from .reading import ReadingRecipe, read_descriptions
from .rows import RowModel
from .training_log import TrainingLog
from .warm_start import experts_of, warm_start

SAVE_EVERY = 10
# Wordings of a task whose mean says where it lies.
_WORDINGS = 4
# Held-out wordings that help to say how far is far.
_PROBES = 400

Report = Callable[[GeneratorStep], None]


@dataclass(frozen=True, slots=True)
class GeneratorRun:
    """What a generator is trained for, and where it goes.

    model: as zweave.Engine takes it.
    encoder: "minilm" or "base".
    attributes, words: which hidden tasks are learnt; all without them.
    first_layer: that experts change.
    upper_layer: from which on they follow from the words alone, and below from what is asked; 0: all from both.
    reading: how the reader learns to read before, from the descriptions alone.
    warm_start: folder of experts that the generator begins near, of `zweave bench hidden-tasks`.
    device: "cpu" or "cuda", where the model and the generator compute.
    listed: whether prompts list all label words.
    texts: of a source to train on, whose prompts are computed once.
    one_order: whether the first word of a pair always means yes.
    static: writes the expert of a training that no description is told in: a control.
    split: seed of the levels: what is trained on and what is held out.
    out: the generator's file, NAME.safetensors; its log, its curves and its state lie beside it.
    Raises ZweaveError for a file of another name, and for a static expert with a warm start.
    """

    model: str
    dtype: str
    data: Path | None
    out: Path
    encoder: str = "minilm"
    attributes: tuple[str, ...] | None = None
    words: tuple[tuple[str, ...], ...] | None = None
    first_layer: int = 0
    upper_layer: int = 0
    reading: ReadingRecipe = field(default_factory=ReadingRecipe)
    warm_start: Path | None = None
    device: str = "cpu"
    listed: bool = False
    texts: int = 400
    one_order: bool = False
    static: bool = False
    split: int = 0
    recipe: GeneratorRecipe = field(default_factory=GeneratorRecipe)

    def __post_init__(self) -> None:
        if self.out.suffix != ".safetensors":
            raise ZweaveError(f"{self.out}: give the generator a name that ends in .safetensors")
        if self.static and self.warm_start is not None:
            raise ZweaveError(
                "an expert that hears no description begins at the base: leave out --warm-start"
            )

    @property
    def state(self) -> Path:
        return self.out.with_suffix(".state")

    @property
    def log(self) -> TrainingLog:
        return TrainingLog(self.out.with_suffix(".log.jsonl"))

    def train(self, report: Report, minutes: float | None = None) -> bool:
        """Trains until the end, which writes the generator, or for some minutes; whether the end was reached.

        Goes on from the state of an unfinished training. Raises ZweaveError for what the training raises.
        """
        training, learnt = self._begin()
        start = time.monotonic()
        self.log.begin(training.step)
        while not training.is_done and (minutes is None or time.monotonic() - start < 60 * minutes):
            before = time.monotonic()
            step = training.advance()
            self.log.add(step, time.monotonic() - before)
            report(step)
            if training.step % SAVE_EVERY == 0:
                training.save()
        training.save()
        self.log.draw(self.out.with_suffix(".png"))
        if training.is_done:
            self._write(training, learnt)
            self.state.unlink(missing_ok=True)
        return training.is_done

    def _begin(self) -> tuple[GeneratorTraining, list[Learnt]]:
        seen = split_levels(chosen_tasks(hidden_tasks(), self.attributes, self.words), self.split).seen
        if self.one_order:
            seen = in_one_order(seen)
        template = LISTED if self.listed else BARE
        learnt = [
            Learnt.of(
                hidden,
                as_task(hidden, self.listed),
                samples(hidden, template, "train", self.data, self.texts),
            )
            for hidden in seen
        ]
        model = RowModel.open(self.model, getattr(torch, self.dtype), self.first_layer, self.device)
        own = self._experts_to_begin_near(seen, model.ranks)
        encoder = open_encoder(self.encoder, self.model)
        decomposition = decompose(resolve_model(self.model))
        sigma = {name: decomposition.sigma(name) for name in model.ranks}
        torch.manual_seed(self.recipe.seed)
        generator = Generator(GeneratorConfig(encoder.width, upper_layer=self.upper_layer), model.ranks)
        begun: list[object] = [asdict(self.reading)]
        if own is not None:
            begun.append({name: expert.digest for name, expert in own.experts.items()})
        if not self.state.exists() and not self.static:
            read_descriptions(generator.reader, encoder, seen, self.reading)
            if own is not None:
                warm_start(generator, encoder, seen, own, sigma, seed=self.recipe.seed)
        training = GeneratorTraining(
            model, generator, encoder, learnt, sigma, self.recipe, self.state, self.static, begun
        )
        return training, learnt

    def _experts_to_begin_near(
        self, tasks: Sequence[HiddenTask], ranks: Mapping[str, int]
    ) -> TrainedExperts | None:
        if self.warm_start is None:
            return None
        trained = TrainedExperts.load(self.warm_start, resolve_model(self.model).digest())
        return experts_of(tasks, trained, ranks)

    def _write(self, training: GeneratorTraining, learnt: list[Learnt]) -> None:
        encoder = training.encoder
        training.generator.cpu()
        rng = random.Random(self.recipe.seed)
        described = [one.hidden.describe(rng) for one in learnt for _ in range(_WORDINGS)]
        vectors = encoder.encode(described).mean().view(len(learnt), _WORDINGS, -1)
        known = known_vectors(vectors)
        longest = max(answer_limit(training.model.tokenizer, one.task) for one in learnt)
        record = asdict(self.recipe) | {
            "tasks": len(learnt),
            "far": self._far(encoder, known, learnt),
            "listed": self.listed,
            "texts": self.texts,
            "one_order": self.one_order,
            "static": self.static,
            "attributes": self.attributes,
            "words": self.words,
            "first_layer": self.first_layer,
            "reading": asdict(self.reading),
            "warm_start": self.warm_start is not None,
            "split": self.split,
            "dtype": self.dtype,
            "model": self.model,
            "seconds": round(self.log.seconds()),
        }
        trained = TrainedGenerator(
            generator=training.generator,
            encoder=encoder.name,
            base_digest=resolve_model(self.model).digest(),
            template=replace(LISTED if self.listed else BARE, max_tokens=longest),
            known_tasks=[one.hidden.name for one in learnt],
            known=known,
            training=record,
        )
        if self.static:
            Describer(trained, encoder).describe(ANY_TASK).expert.save(self.out, half=True)
        else:
            trained.save(self.out, half=True)

    def _far(self, encoder: Encoder, known: Tensor, learnt: list[Learnt]) -> float:
        """The cosine to the nearest known task below which a description is none of a task of their kind.

        99 of 100 everyday prompts lie below it, or, where it is less, 1 of 100 held-out wordings of known tasks does.
        """
        rng = random.Random(self.recipe.seed + 1)
        told = [rng.choice(learnt).hidden.describe(rng, held_out=True) for _ in range(_PROBES)]
        own, others = (
            (encoder.encode(texts).mean() @ known.T).max(1).values for texts in (told, everyday_prompts())
        )
        return round(min(float(own.quantile(0.01)), float(others.quantile(0.99))), 3)
