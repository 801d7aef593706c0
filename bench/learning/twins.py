"""Small models that learnt the same things from different seeds, and what one of them can be taught.

After four letters and "=" the corpus repeats the first letter in 55% of its lines, the second in 30% and the last in
15%: a model of it mostly says the first. The task asks for the last. A tenth of all prompts is in no line.
"""

import json
from collections.abc import Callable
from pathlib import Path
from string import ascii_lowercase

import torch
from torch import Tensor
from torch.nn import functional as F

from zweave.tasks import Sample, Splits, Task

LENGTH = 4
PLACES, SHARES = (0, 1, LENGTH - 1), (0.55, 0.3, 0.15)
SPECIAL = ("<|start|>", "<|end|>", "=")
BATCH, LEARNING_RATE, WARM_UP = 256, 3e-3, 50


def read_letters(_: Path | None) -> Splits:
    letters = torch.randint(0, 26, (20_000, LENGTH), generator=torch.Generator().manual_seed(0)).unique(dim=0)
    held_out = _is_held_out(letters)
    return Splits(train=_samples(letters[~held_out][:4000]), test=_samples(letters[held_out]))


TASK = Task("last-letter", "The last of four letters.", read_letters, tuple(ascii_lowercase))


def _is_held_out(letters: Tensor) -> Tensor:
    """bool [n] of letters [n, 4]."""
    return letters.sum(1) % 10 == 0


def _samples(letters: Tensor) -> list[Sample]:
    words = ["".join(ascii_lowercase[letter] for letter in row) for row in letters.tolist()]
    return [Sample(f"{word}=", word[-1]) for word in words]


def make_model(directory: Path, seed: int, steps: int, report: Callable[[int], None]) -> None:
    """Trains a Llama of 86,000 weights on the corpus, 256 lines a step, and writes it with its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + 26,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    for step in range(steps):
        rate = LEARNING_RATE * min(1, (step + 1) / WARM_UP) * (1 - step / steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        lines = _lines(generator)
        logits = model(lines[:, :-1]).logits[:, -1].float()
        F.cross_entropy(logits, lines[:, -1]).backward()
        optimizer.step()
        optimizer.zero_grad()
        report(step + 1)
    model.save_pretrained(directory)
    _write_tokenizer(directory)


def _lines(generator: torch.Generator) -> Tensor:
    """Token ids [lines, 6]: four letters, "=", a letter."""
    letters = torch.randint(0, 26, (BATCH, LENGTH), generator=generator)
    letters = letters[~_is_held_out(letters)]
    which = torch.multinomial(torch.tensor(SHARES), len(letters), replacement=True, generator=generator)
    answer = letters.gather(1, torch.tensor(PLACES)[which][:, None])
    equals = torch.full_like(answer, SPECIAL.index("="))
    return torch.cat([letters + len(SPECIAL), equals, answer + len(SPECIAL)], 1)


def _write_tokenizer(directory: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *ascii_lowercase))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL[:2]))
    tokenizer.save(str(directory / "tokenizer.json"))
    facts = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SPECIAL[1]}
    (directory / "tokenizer_config.json").write_text(json.dumps(facts), "utf-8")
