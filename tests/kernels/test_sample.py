"""Sampling on the device: the CPU's draws, row by row."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from zweave.engine.sampler import sample_token
from zweave.kernels.sample import sample_ref, sample_triton
from zweave.kernels.uniform import uniform_ref
from zweave.request import Sampling

# temperature, top_k, top_p, min_p
SETTINGS = [
    (0.0, 0, 1.0, 0.0),
    (1.0, 0, 1.0, 0.0),
    (0.7, 5, 1.0, 0.0),
    (1.0, 0, 0.8, 0.0),
    (1.3, 0, 1.0, 0.05),
    (0.9, 40, 0.9, 0.01),
    (1e-30, 0, 1.0, 0.0),
    (1.0, 0, 1e-9, 0.0),
    (2.0, 10**6, 1.0, 1.0),
]
VOCABULARIES = [1, 7, 1000, 1025, 3001]


def random_keys(count: int) -> tuple[Tensor, Tensor]:
    """Seeds and indices of full 64 bits, as int64; the first are the extremes."""
    words = np.random.default_rng(count).integers(0, 2**64, (2, count), dtype=np.uint64)
    words[:, :2] = [0, 2**64 - 1]
    return tuple(torch.from_numpy(row.view(np.int64)) for row in words)


def problem(vocabulary: int, rows_each: int) -> SimpleNamespace:
    """Rows of each setting: logits with ties and NaN around them, and parameters as the device has them."""
    rows = rows_each * len(SETTINGS)
    random = torch.Generator().manual_seed(vocabulary)
    logits = torch.full((rows, vocabulary + 3), float("nan"))[:, :vocabulary]
    logits[:] = (3 * torch.randn(rows, vocabulary, generator=random)).mul(8).round() / 8
    columns = list(zip(*(setting for setting in SETTINGS for _ in range(rows_each)), strict=True))
    dtypes = (torch.float32, torch.int32, torch.float32, torch.float32)
    parameters = [torch.tensor(c, dtype=dtype) for c, dtype in zip(columns, dtypes, strict=True)]
    seed, index = random_keys(rows + 2)
    return SimpleNamespace(logits=logits, arguments=(*parameters, seed[2:], index[2:]))


def on_the_cpu(p: SimpleNamespace) -> list[int]:
    temperature, top_k, top_p, min_p, seed, index = (column.tolist() for column in p.arguments)
    return [
        sample_token(
            row,
            Sampling(temperature=temperature[b], top_k=top_k[b], top_p=top_p[b], min_p=min_p[b]),
            seed[b] % 2**64,
            index[b] % 2**64,
        )
        for b, row in enumerate(p.logits)
    ]


def test_uniforms_are_numpys() -> None:
    seed, index = random_keys(300)
    wanted = [
        np.random.Generator(np.random.Philox(key=np.array(key, dtype=np.int64).view(np.uint64))).random()
        for key in zip(seed.tolist(), index.tolist(), strict=True)
    ]
    assert uniform_ref(seed, index).tolist() == wanted


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_the_reference_draws_as_the_cpu(vocabulary: int) -> None:
    p = problem(vocabulary, 20)
    ids, finite = sample_ref(p.logits, *p.arguments)
    assert ids.tolist() == on_the_cpu(p)
    assert finite.all()


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_the_kernel_draws_as_the_reference(vocabulary: int, interpreted) -> None:
    p = problem(vocabulary, 2)
    ids, finite = interpreted(sample_triton, p.logits, *p.arguments)
    assert ids.tolist() == sample_ref(p.logits, *p.arguments)[0].tolist()
    assert finite.all()


@pytest.mark.exhaustive
def test_of_many_draws_of_the_kernel_hardly_one_differs(interpreted) -> None:
    """Only one whose number falls within a rounding error of a boundary may."""
    p = problem(1500, 250)
    ids, _ = interpreted(sample_triton, p.logits, *p.arguments)
    assert (ids == torch.tensor(on_the_cpu(p))).double().mean() >= 0.999


@pytest.mark.parametrize("kind", ["reference", "kernel"])
def test_banned_tokens_are_not_drawn_and_broken_rows_are_told(kind: str, interpreted) -> None:
    p = problem(50, 4)
    p.logits[:, ::2] = float("-inf")
    p.logits[3, 7], p.logits[8, 9], p.logits[20] = float("nan"), float("inf"), float("-inf")
    p.logits[22] = 1.5
    broken = [3, 8, 20, 22]
    call = interpreted if kind == "kernel" else lambda function, *arguments: function(*arguments)
    ids, finite = call(sample_triton if kind == "kernel" else sample_ref, p.logits, *p.arguments)
    assert (~finite).nonzero().flatten().tolist() == broken
    assert ids[broken].tolist() == [0] * 4
    others = [row for row in range(len(ids)) if row not in broken]
    assert (ids[others] % 2 == 1).all()


def test_what_is_wrong_is_said(interpreted) -> None:
    p = problem(7, 1)
    with pytest.raises(ValueError, match="sample: logits must be a matrix of 1 to"):
        interpreted(sample_triton, p.logits[:, :0], *p.arguments)
    with pytest.raises(ValueError, match="sample: seed must be"):
        interpreted(sample_triton, p.logits, *p.arguments[:4], p.arguments[4][:2], p.arguments[5])
