"""Attaches experts to a loaded model."""

from collections.abc import Mapping, Sequence

from torch import nn

from ...errors import ZweaveError
from ...experts.bank import Bank
from ...io.progress import Report
from ...planner.planner import hosted_plan
from .attached import Attached, ExpertFile
from .factors import decomposition_of
from .linear import AttachedLinear
from .router import Router
from .targets import COMPILED, find_targets


def attach(
    model: nn.Module,
    experts: Mapping[str, ExpertFile] | None = None,
    *,
    targets: Sequence[str] | None = None,
    slots: int = 64,
    progress: Report | None = None,
) -> Attached:
    """Replaces the linears of a loaded transformers model in place, so that each row of a batch can have an expert.

    The decomposition comes from the cache; a model that is not there is decomposed first. The model's parameters
    are frozen while experts are attached. `Attached.detach` restores the original modules.

    model: the loaded model, compiled or not.
    experts: name to an expert, its file, or the name of one that comes with zweave; more can be loaded later.
    targets: suffixes of the names of the linears to adapt, such as "q_proj"; by default every nn.Linear and Conv1D in
        a numbered layer.
    slots: number of experts and mixtures, with the base, whose scales are in memory at once.
    progress: as for `zweave.decomposition.decompose`; by default a progress bar.
    Raises ZweaveError for linears that are quantised, without data or not in bfloat16 or float32, for a model that is
    attached already, for experts that do not fit, and if the decomposition fails.
    """
    _require_transformers()
    # A compiled model calls the one that it was made of.
    model = getattr(model, COMPILED, model)
    found = find_targets(model, targets)
    decomposition = decomposition_of(model, found, progress)
    device = next(iter(found.values())).weight.device
    plan = {name: hosted_plan(target.shape) for name, target in found.items()}
    sigmas = {name: decomposition.sigma(name) for name in found}
    bank = Bank(sigmas, slots, device, decomposition.digest, plan)
    # What cannot be loaded is refused before the model changes.
    for name, expert in (experts or {}).items():
        bank.load(name, expert)
    router = Router(bank.tables.modes[:, 0].clone())
    linears = {
        name: AttachedLinear(target, decomposition.factors(name), bank.tables, index, router)
        for index, (name, target) in enumerate(found.items())
    }
    return Attached(model, bank, router, decomposition.digest, found, linears)


def _require_transformers() -> None:
    try:
        import transformers  # noqa: F401
    except ImportError:
        raise ZweaveError("attach needs transformers: pip install 'zweave[transformers]'") from None
