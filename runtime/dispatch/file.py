"""Loads a dispatcher from a file: JSON that names a strategy, or Python that defines one (docs/dispatch.md)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..dispatcher import Dispatcher, probe_method
from ..engine.engine import Engine
from ..errors import ZweaveError, one_line
from ..experts.mixture import ExpertChoice, Mixture
from ..io.json_text import parse_json
from ..io.python_file import python_object
from ..validation import is_integer
from .early_classifier import EarlyClassifier
from .fixed import FixedDispatcher, few_shot, search_result
from .hidden import HiddenDispatcher
from .prompt import CONTENT_FREE, PromptDispatcher
from .routes import Routes

Load = Callable[[Engine, Iterable[ExpertChoice]], None]
Make = Callable[[Engine], Dispatcher]

_ROUTES = {"experts", "threshold", "soft"}
_KEYS: Mapping[str, tuple[set[str], set[str]]] = {  # strategy: its required and its optional keys
    "prompt": (
        {"experts", "instruction"},
        {"opening", "expert", "instruction_first", "text_tokens", "calibration"},
    ),
    "hidden": ({"experts", "classifier"}, set()),
    "few-shot": ({"file"}, set()),
    "fixed": ({"expert"}, set()),
}


@dataclass(frozen=True, slots=True)
class DispatcherFile:
    """A dispatcher's file, read and checked as far as that goes without an engine.

    experts: what it names; expert files, whose names end in .safetensors, lie beside it.
    """

    path: Path
    experts: tuple[ExpertChoice, ...]
    _make: Make

    @classmethod
    def read(cls, path: Path) -> "DispatcherFile":
        """Reads a .json or runs a .py file; ZweaveError for one that is missing or malformed."""
        if path.suffix not in (".json", ".py") or not path.is_file():
            raise ZweaveError(f"a dispatcher is a .json or .py file, and {path} is none")
        if path.suffix == ".py":
            dispatcher: Any = python_object(path, "dispatcher")
            if probe_method(dispatcher) is None or not callable(getattr(dispatcher, "choose", None)):
                raise ZweaveError(
                    f"{path} defines no dispatcher: give the name to an object with probe and choose"
                )
            return cls(path, (), lambda engine: dispatcher)
        try:
            fields = parse_json(path.read_text(encoding="utf-8"))
            if not isinstance(fields, dict):
                raise ZweaveError("it must be a JSON object")
            return cls(path, *_from_fields(fields, path.parent))
        except ValueError as error:
            raise ZweaveError(f"{path} is not JSON in UTF-8 ({one_line(error)})") from None
        except ZweaveError as error:
            raise ZweaveError(f"{path}: {error}") from None

    def dispatcher(self, engine: Engine, load: Load) -> Dispatcher:
        """The dispatcher, as `load_dispatcher` gives it."""
        try:
            load(engine, self.experts)
            for choice in self.experts:
                engine.check_expert(choice)
            return self._make(engine)
        except ZweaveError as error:
            raise ZweaveError(f"{self.path}: {error}") from None


def load_dispatcher(engine: Engine, path: Path, load: Load = lambda engine, choices: None) -> Dispatcher:
    """Reads a .json or runs a .py file. A `prompt` strategy is calibrated on the engine.

    load: loads the experts that the file names into the engine; by default they must be loaded already.
    Raises ZweaveError for a file that is missing or malformed.
    """
    return DispatcherFile.read(path).dispatcher(engine, load)


def _from_fields(fields: dict[str, Any], folder: Path) -> tuple[tuple[ExpertChoice, ...], Make]:
    """The experts that a file names, and what makes its dispatcher once they are loaded."""
    strategy = fields.get("strategy")
    if not isinstance(strategy, str) or strategy not in _KEYS:
        raise ZweaveError(f"strategy must be one of {', '.join(_KEYS)}, not {strategy!r}")
    needed, optional = _KEYS[strategy]
    allowed = needed | optional | (_ROUTES if "experts" in needed else set())
    for key in sorted(needed - fields.keys()):
        raise ZweaveError(f"the strategy {strategy} needs {key!r}")
    for key in sorted(fields.keys() - allowed - {"strategy"}):
        raise ZweaveError(f"the strategy {strategy} has no {key!r}: it takes {', '.join(sorted(allowed))}")
    if strategy == "few-shot":
        path = _beside(folder, fields["file"], "file")
        search_result(path)
        return (), lambda engine: few_shot(engine, path)
    expert = _resolved(fields.get("expert"), folder)
    Mixture.parse(expert)
    if strategy == "fixed":
        return (expert,), lambda engine: FixedDispatcher(expert)
    routes = _routes(fields, folder)
    experts = (expert, *routes.experts.values())
    if strategy == "hidden":
        path = _beside(folder, fields["classifier"], "classifier")
        hidden = HiddenDispatcher(EarlyClassifier.load(path), routes)
        return experts, lambda engine: hidden
    return experts, _prompt(fields, routes, expert)


def _prompt(fields: Mapping[str, Any], routes: Routes, expert: ExpertChoice) -> Make:
    texts = fields.get("calibration", list(CONTENT_FREE))
    words = [fields["instruction"], fields.get("opening", "")]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in (*words, *texts)):
        raise ZweaveError("instruction and opening must be texts, and calibration a list of texts")
    first, limit = fields.get("instruction_first", False), fields.get("text_tokens")
    if not isinstance(first, bool) or not (limit is None or is_integer(limit)):
        raise ZweaveError("instruction_first must be true or false, and text_tokens a whole number")
    found = PromptDispatcher(routes, *words, expert=expert, instruction_first=first, text_tokens=limit)
    return lambda engine: found.calibrated(engine, texts) if texts else found


def _routes(fields: Mapping[str, Any], folder: Path) -> Routes:
    experts = fields["experts"]
    if not isinstance(experts, dict):
        raise ZweaveError("experts must map labels to experts")
    resolved = {label: _resolved(choice, folder) for label, choice in experts.items()}
    return Routes(resolved, fields.get("threshold", 0.0), fields.get("soft", False))


def _resolved(choice: Any, folder: Path) -> ExpertChoice:
    """An expert as the file says it, with expert files found beside it."""
    if isinstance(choice, dict):
        return {str(_resolved(name, folder)): weight for name, weight in choice.items()}
    if isinstance(choice, str) and choice.endswith(".safetensors"):
        return str(folder / choice)
    found: ExpertChoice = choice
    return found


def _beside(folder: Path, name: object, key: str) -> Path:
    if not isinstance(name, str) or not name:
        raise ZweaveError(f"{key} must be a file's name, not {name!r}")
    return folder / name
