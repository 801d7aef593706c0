"""A model cut before a layer: what no expert changes is computed once, and the rest starts from it."""

from collections.abc import Sequence

from torch import Tensor, nn


class Entering(nn.Module):
    """Stands for the embeddings: gives the states that were set, whatever the tokens are."""

    states: Tensor

    def forward(self, tokens: Tensor) -> Tensor:
        return self.states


class Half(nn.Module):
    """Some layers of a model of transformers, as the trainer's forward pass takes a model."""

    def __init__(
        self, model: nn.Module, layers: Sequence[nn.Module], enter: nn.Module, norm: nn.Module
    ) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens, self.model.norm = enter, norm
        self.model.rotary_emb = model.get_submodule("model.rotary_emb")
        self.model.layers = nn.ModuleList(layers)


def halves(model: nn.Module, first_layer: int) -> tuple[Half, Half, Entering]:
    """The layers below the first one that experts change, those from it on, and what their states are given to."""
    layers = list(model.get_submodule("model.layers").children())
    lower = Half(model, layers[:first_layer], model.get_submodule("model.embed_tokens"), nn.Identity())
    entering = Entering()
    upper = Half(model, layers[first_layer:], entering, model.get_submodule("model.norm"))
    return lower, upper, entering
