"""The refit factors of all matrices of a model, in the cache, with what they cost."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.module_name import layer_of
from ..decomposition.decomposition import Decomposition, decompose
from ..decomposition.refit.gptq import GROUP
from ..decomposition.refit.quantized_model import (
    BASE,
    FORMAT,
    QuantizedModel,
    divergence_file,
    entries_directory,
    index_entry,
    index_file,
    matrix_file,
)
from ..decomposition.refit.refit import output_error, refit
from ..decomposition.refit.refit_file import error_of, load_refit, save_refit
from ..errors import ZweaveError
from ..experts.expert import Expert
from ..experts.slot_rows import renormalisation
from ..io.atomic_write import flush, write_text
from ..io.cache_dir import disk_errors, lock
from ..io.progress import Report, progress_bar
from ..text.tokenizer import Tokenizer
from ..train.run import load_model
from .calibration import SHIPPED, input_of, read_chunks, second_moments
from .divergence import mean_divergence


def quantize_model(
    checkpoint: Checkpoint,
    experts: Mapping[str, Expert],
    text: Path = SHIPPED,
    force: bool = False,
    progress: Report | None = None,
) -> tuple[QuantizedModel, dict[str, float]]:
    """Opens the model's refit factors from the cache, or makes them; and the mean KL that they cost, by name.

    The engine serves what was opened last.

    experts: measured beside the base, which is called "base".
    text: half of its pieces calibrate, the others measure.
    force: make them anew. The same model and text give the same bytes; what a killed run had finished is kept.
    Raises ZweaveError for an expert of another model, a text that is too short, matrices that are no whole groups, and
    as `decompose` does.
    """
    _check_shapes(checkpoint.adapted_shapes())
    decomposition = decompose(checkpoint)
    for each in experts.values():
        each.check(checkpoint.adapted_shapes(), decomposition.digest)
    tokenizer = Tokenizer(checkpoint.directory)
    chunks, measured = read_chunks(text, tokenizer, checkpoint.config.default_max_model_len)
    key = hashlib.sha256(json.dumps([FORMAT, chunks, measured]).encode()).hexdigest()
    target = entries_directory(decomposition.digest) / key
    with nullcontext(progress) if progress else progress_bar() as report, lock(target):
        model = load_model(checkpoint, torch.float32).requires_grad_(False)
        with disk_errors(target):
            if force or not index_file(target).is_file():
                _make(target, model, checkpoint, decomposition, chunks, force, report)
            index_file(target).touch()
        found = QuantizedModel(target)
        divergences = {}
        choices: dict[str, Expert | None] = {BASE: None, **experts}
        for done, (name, expert) in enumerate(choices.items()):
            report("measuring", done, len(choices))
            divergences[name] = _divergence(found, model, checkpoint, decomposition, measured, expert, force)
        report("measuring", len(choices), len(choices))
    return found, divergences


def _make(
    target: Path,
    model: Any,
    checkpoint: Checkpoint,
    decomposition: Decomposition,
    chunks: list[list[int]],
    force: bool,
    report: Report,
) -> None:
    target.mkdir(parents=True, exist_ok=True)
    shapes = checkpoint.adapted_shapes()
    if force:
        # The index first: an entry without one is not opened, and what this run leaves unfinished is made whole later.
        index_file(target).unlink(missing_ok=True)
        stale = [*target.glob(divergence_file(target, "*").name), *(matrix_file(target, m) for m in shapes)]
        for path in stale:
            path.unlink(missing_ok=True)
    errors: dict[str, float] = {}
    for layer, modules in _by_layer(shapes):
        report("quantising layers", layer, checkpoint.config.num_layers)
        missing = [module for module in modules if not matrix_file(target, module).is_file()]
        moments = second_moments(model, chunks, missing) if missing else {}
        for module in missing:
            weight, (u, _, vt) = checkpoint.tensor(f"{module}.weight"), decomposition.factors(module)
            inputs = moments[input_of(module)]
            made = refit(weight, u, vt, inputs)
            save_refit(matrix_file(target, module), made, output_error(weight, made.merged(), inputs))
    report("quantising layers", checkpoint.config.num_layers, checkpoint.config.num_layers)
    for module in shapes:
        errors[module] = error_of(matrix_file(target, module))
        flush(matrix_file(target, module))
    entries = {
        module: {"error": error, **index_entry(load_refit(matrix_file(target, module)))}
        for module, error in errors.items()
    }
    index = {"format": FORMAT, "digest": decomposition.digest, "matrices": entries}
    write_text(index_file(target), json.dumps(index, indent=1) + "\n")


def _check_shapes(shapes: Mapping[str, tuple[int, int]]) -> None:
    """Raises ZweaveError for a matrix that the kernels' grids do not hold."""
    for module, (rows, columns) in shapes.items():
        if columns % GROUP or min(rows, columns) % GROUP:
            raise ZweaveError(
                f"{module} is {rows} x {columns}: refit factors come in whole groups of {GROUP}"
            )


def _by_layer(modules: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    for layer, found in groupby(modules, layer_of):
        yield layer, list(found)


def _divergence(
    found: QuantizedModel,
    model: Any,
    checkpoint: Checkpoint,
    decomposition: Decomposition,
    chunks: list[list[int]],
    expert: Expert | None,
    force: bool,
) -> float:
    """The mean KL of the base or of an expert, from the file that an earlier run left if there is one."""
    name = expert.digest if expert else BASE
    known = None if force else found.divergence(name)
    if known is not None:
        return known

    def exact(module: str) -> Tensor:
        weight, z = checkpoint.tensor(f"{module}.weight").float(), _z(expert, decomposition, module)
        if z is None:
            return weight
        u, sigma, vt = decomposition.factors(module)
        return weight + (u * (sigma * (z - 1))) @ vt

    def rounded(module: str) -> Tensor:
        return found.matrix(module).merged(_z(expert, decomposition, module)).float()

    divergence = mean_divergence(model, chunks, checkpoint.adapted_shapes(), exact, rounded)
    write_text(divergence_file(found.directory, name), json.dumps({"kl": divergence}) + "\n")
    return divergence


def _z(expert: Expert | None, decomposition: Decomposition, module: str) -> Tensor | None:
    """An expert's z of a matrix, renormalised if it says so; None where it changes nothing."""
    if expert is None or module not in expert.z:
        return None
    z = expert.z[module].float()
    if not expert.renormalise:
        return z
    sigma = decomposition.sigma(module).double()
    return z * renormalisation(module, sigma.numpy(), (sigma * z).numpy())
