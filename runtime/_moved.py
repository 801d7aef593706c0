"""Old paths of modules that have moved: an import from there warns and gives the module of today."""

import sys
import warnings
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "zweave.bank": "zweave.experts.bank",
    "zweave.bundled": "zweave.experts.bundled",
    "zweave.decompose": "zweave.decomposition.decomposition",
    "zweave.early_classifier": "zweave.dispatch.early_classifier",
    "zweave.expert": "zweave.experts.expert",
    "zweave.merger": "zweave.model.merger",
    "zweave.mixture": "zweave.experts.mixture",
    "zweave.prompts": "zweave.tasks.prompts",
    "zweave.support": "zweave.experts.support",
}


class MovedModules:
    """Finds the old paths, after all other finders have failed; the old path becomes a second name of the module."""

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name not in MOVED:
            return None
        warnings.warn(f"{name} is now {MOVED[name]}", DeprecationWarning, stacklevel=2)
        # A class serves as a loader as well as an instance does.
        return ModuleSpec(name, cls)  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: ModuleSpec) -> None:
        return None

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        sys.modules[module.__name__] = import_module(MOVED[module.__name__])
