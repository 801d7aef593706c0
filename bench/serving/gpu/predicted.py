"""What steps and prompts on GPUs are predicted to take, beside an ideal server of the base model; needs no GPU."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import torch

from zweave.checkpoint import ModelConfig
from zweave.kernels import LinearMode
from zweave.planner import make_plan
from zweave.planner.gpu_cost import DEVICES, DeviceRates, PromptCost, StepCost, StepShape, Weights
from zweave.planner.plan import Plan

from ...harness.report import Column, Report, Row
from .decoders import decoder_config

MODES = (LinearMode.DENSE, LinearMode.DELTA, LinearMode.FACTORED)
# Times the ideal's speed, of a step of so many rows and so much context, with dependent launches.
TARGET_SHAPE = StepShape(64, 512, 1)
STEP_TARGETS = {LinearMode.DENSE: 1.05, LinearMode.DELTA: 0.95, LinearMode.FACTORED: 0.85}
# Of a step under many experts, times the time under one.
EXPERTS_TARGET = 1.02
# Of a prompt's products, times the time of the dense ones that the operations alone would take.
PROMPT_TARGET = 1.05
PROMPTS = (512, 2048)
COLUMNS = (
    Column("device", "device"),
    Column("work", "work"),
    Column("ideal_seconds", "ideal ms", ".2f", 1e3),
    *(Column(f"{mode.name.lower()}", f"{mode.name.lower()}", ".2f") for mode in MODES),
    *(Column(f"dependent_{mode.name.lower()}", f"{mode.name.lower()}, dependent", ".2f") for mode in MODES),
)
NOTES = (
    "Nothing here is measured. Steps: how many times as fast as the ideal one, as kernels are launched and with",
    "dependent launches. Experts: the time over that under one. Prompts: the time of the products over the ideal's.",
)


def predicted(args: argparse.Namespace) -> Report:
    """The table of a decoder, for all known devices, and which targets it is predicted to miss."""
    prediction = Prediction(decoder_config(args.shapes), getattr(torch, args.dtype).itemsize)
    rows: list[Row] = []
    for rates in DEVICES:
        shapes = [StepShape(batch, context, 1) for context, batch in product(args.context, args.batch)]
        found = [*(prediction.step(rates, shape) for shape in shapes)]
        found += [prediction.many_experts(rates, max(args.experts))]
        found += [prediction.prompt(rates, tokens) for tokens in PROMPTS]
        rows += [{"device": rates.name} | row for row in found]
    missed = [f"{row['device']}, {row['work']}: {row['missed']}." for row in rows if row["missed"]]
    return Report(
        "gpu-step-predicted",
        f"{args.shapes} in {args.dtype}, predicted",
        COLUMNS,
        rows,
        markdown=True,
        notes=[*NOTES, "Targets that are predicted to be missed:", *missed],
    )


@dataclass(frozen=True, slots=True)
class Prediction:
    """Rows of the table of one decoder, whose weights and cache have `itemsize` bytes a number."""

    config: ModelConfig
    itemsize: int

    @property
    def plan(self) -> Plan:
        return make_plan(self.config.adapted_shapes(), "gpu", self.itemsize)

    def step(self, rates: DeviceRates, shape: StepShape) -> Row:
        """How many times as fast as the ideal a step is in each mode."""
        ideal = self._step(LinearMode.DENSE, shape, is_ideal=True).seconds(rates)
        costs = {mode: self._step(mode, shape) for mode in MODES}
        plain = {mode: ideal / cost.seconds(rates, dependent=False) for mode, cost in costs.items()}
        dependent = {mode: ideal / cost.seconds(rates) for mode, cost in costs.items()}
        targets = STEP_TARGETS if shape == TARGET_SHAPE else {}
        return {
            "work": f"{shape.rows} x {shape.context}",
            "ideal_seconds": ideal,
            **_by_mode(plain),
            **_by_mode(dependent, "dependent_"),
            "missed": _misses(
                {mode: (dependent[mode], target) for mode, target in targets.items()}, larger_is_better=True
            ),
        }

    def many_experts(self, rates: DeviceRates, experts: int) -> Row:
        """The time of a step under so many experts over that under one."""
        many = StepShape(TARGET_SHAPE.rows, TARGET_SHAPE.context, experts)
        ratios = {
            mode: self._step(mode, many).seconds(rates) / self._step(mode, TARGET_SHAPE).seconds(rates)
            for mode in MODES[1:]
        }
        return {
            "work": f"{many.rows} x {many.context}, {experts} experts",
            **_by_mode(ratios, "dependent_"),
            "missed": _misses({mode: (ratio, EXPERTS_TARGET) for mode, ratio in ratios.items()}),
        }

    def prompt(self, rates: DeviceRates, tokens: int) -> Row:
        """The time of a prompt's products in each mode over that of the dense ones."""
        seconds = {
            mode: PromptCost.of(self.config, self.plan, mode, tokens, self.itemsize).seconds(rates)
            for mode in MODES
        }
        operations = {mode: Weights.of(self.plan, mode).operations for mode in MODES}
        dense = LinearMode.DENSE
        ratios = {mode: seconds[mode] / seconds[dense] for mode in MODES}
        targets = {mode: PROMPT_TARGET * operations[mode] / operations[dense] for mode in MODES}
        return {
            "work": f"prompt of {tokens}",
            "ideal_seconds": seconds[dense],
            **_by_mode(ratios),
            "missed": _misses({mode: (ratios[mode], targets[mode]) for mode in MODES}),
        }

    def _step(self, mode: LinearMode, shape: StepShape, is_ideal: bool = False) -> StepCost:
        return StepCost.of(self.config, self.plan, mode, shape, self.itemsize, is_ideal)


def _by_mode(ratios: Mapping[LinearMode, float], prefix: str = "") -> Row:
    return {f"{prefix}{mode.name.lower()}": ratio for mode, ratio in ratios.items()}


def _misses(found: Mapping[LinearMode, tuple[float, float]], larger_is_better: bool = False) -> str:
    """Words for the ratios, beside their targets, that are on the wrong side of them."""
    return ", ".join(
        f"{mode.name.lower()} {ratio:.3f}, wanted {target:.2f}"
        for mode, (ratio, target) in found.items()
        if (ratio < target if larger_is_better else ratio > target)
    )
