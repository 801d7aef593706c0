"""What a plan keeps on a GPU, the modes of its steps, and what they and batch invariance are predicted to cost."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from zweave.kernels import GridKind, LinearMode

from .gpu_cost import Decoder, DeviceRates, PromptCost, StepCost, StepShape
from .plan import Plan, memory
from .planner import make_plan

# The step and the prompt that prices are told for.
USUAL_STEP = StepShape(rows=64, context=512, experts=0)
USUAL_PROMPT = 512


class Adaptable(Decoder, Protocol):
    """A model whose matrices can be planned."""

    def adapted_shapes(self) -> Mapping[str, tuple[int, int]]: ...


def resident_bytes(plan: Plan, value_bytes: int) -> dict[str, int]:
    """Bytes of W, U and V of all matrices."""
    kept = [matrix.resident(value_bytes) for matrix in plan.values()]
    return {name: sum(one[name] for one in kept) for name in ("W", "U", "V")}


def step_modes(plan: Plan) -> list[LinearMode]:
    """The modes that a step can take, the cheapest first; the plan is the same for all matrices."""
    modes = {matrix.mode_of(support) for matrix in plan.values() for support in (0, 1, matrix.rank)}
    return sorted(mode for mode in modes if mode is not None)


@dataclass(frozen=True, slots=True)
class ModePrediction:
    """Predicted seconds of a step of decoding, and of the products of a prompt."""

    mode: LinearMode
    decode: float
    prompt: float


def predict_modes(
    decoder: Decoder,
    plan: Plan,
    shape: StepShape,
    tokens: int,
    value_bytes: int,
    rates: DeviceRates,
    by_library: bool = True,
    head_grid: GridKind | None = None,
) -> list[ModePrediction]:
    """What each mode of a plan is predicted to cost.

    tokens: of the prompt
    by_library: whether its products are a library's, as they are but for `batch_invariant=True`
    head_grid: on which the head lies, if on any
    """
    return [
        ModePrediction(
            mode,
            StepCost.of(decoder, plan, mode, shape, value_bytes, head_grid=head_grid).seconds(rates),
            PromptCost.of(decoder, plan, mode, tokens, value_bytes, by_library).seconds(rates),
        )
        for mode in step_modes(plan)
    ]


@dataclass(frozen=True, slots=True)
class InvariancePrice:
    """What `batch_invariant=True` costs the base model: each times what is without it.

    weights: bytes that a step reads
    decode: predicted seconds of a step of decoding
    prompt: predicted seconds of a prompt's products
    """

    weights: float
    decode: float
    prompt: float

    @classmethod
    def of(
        cls,
        model: Adaptable,
        value_bytes: int,
        rates: DeviceRates,
        shape: StepShape = USUAL_STEP,
        tokens: int = USUAL_PROMPT,
    ) -> "InvariancePrice":
        shapes = model.adapted_shapes()
        invariant = make_plan(shapes, "gpu", value_bytes, batch_invariant=True)
        free = make_plan(shapes, "gpu", value_bytes)
        dear = predict_modes(model, invariant, shape, tokens, value_bytes, rates, by_library=False)[0]
        base = predict_modes(model, free, shape, tokens, value_bytes, rates)[0]
        return cls(
            memory(invariant, value_bytes) / resident_bytes(free, value_bytes)["W"],
            dear.decode / base.decode,
            dear.prompt / base.prompt,
        )

    def line(self, rates: DeviceRates, shape: StepShape = USUAL_STEP, tokens: int = USUAL_PROMPT) -> str:
        return (
            f"batch_invariant=True reads {self.weights:.2f} times the bytes of the base model's linears; predicted for "
            f"an {rates.name}: {self.decode:.2f} times the time of a step of {shape.rows} sequences of {shape.context} "
            f"tokens, {self.prompt:.2f} times that of a prompt's products at {tokens} tokens"
        )
