"""What reads a description token by token, so that it knows which word stands where.

x = enter(norm(states)) + position          [texts, tokens, task]
x = attention layers, over a text's own tokens
v = norm(leave(queries attend to x))        [texts, task]
"""

import torch
from torch import Tensor, nn

from .encoders import MOST_TOKENS
from .token_states import TokenStates

ATTENTION_HEADS = 4


class Reader(nn.Module):
    """Token states to a vector for each text.

    width: of a state.
    task: of the vector, a multiple of 4.
    layers: of attention between the tokens.
    queries: learnt ones, whose answers make the vector.
    """

    def __init__(self, width: int, task: int, layers: int, queries: int) -> None:
        super().__init__()
        self.task = task
        self.enter = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, task))
        self.position = nn.Embedding(MOST_TOKENS, task)
        nn.init.normal_(self.position.weight, std=0.1)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                task,
                ATTENTION_HEADS,
                2 * task,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(task)
        self.queries = nn.Parameter(torch.randn(queries, task))
        self.attend = nn.MultiheadAttention(task, ATTENTION_HEADS, batch_first=True)
        self.leave = nn.Sequential(nn.Linear(queries * task, task), nn.LayerNorm(task))

    def forward(self, texts: TokenStates) -> Tensor:
        """[texts, task]."""
        padding = ~texts.mask
        x = self.enter(texts.states) + self.position.weight[: texts.states.shape[1]]
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=padding)
        x = self.norm(x)
        queries = self.queries.expand(len(texts), -1, -1)
        answers = self.attend(queries, x, x, key_padding_mask=padding, need_weights=False)[0]
        vector: Tensor = self.leave(answers.flatten(1))
        return vector
