"""Keys of the prefix cache: equal where salt, mixture and tokens are, and compared from the beginning."""

import random

import pytest

from zweave.experts.mixture import BASE_DIGEST
from zweave.kv_cache.prefix_key import KEY_BYTES, PrefixKeys, common_prefix_length

TOKENS = [5, 0, 2**24 - 1, 7, 7, 7, 1]


@pytest.mark.parametrize("adapted_from", [0, 3, len(TOKENS)])
@pytest.mark.parametrize("salt", [None, "tenant"])
def test_keys_are_the_same_however_they_are_extended(salt: str | None, adapted_from: int) -> None:
    keys, steps, whole = PrefixKeys(), bytearray(), bytearray()
    for stop in range(len(TOKENS) + 1):
        keys.extend(steps, TOKENS[:stop], salt, "a", adapted_from)
    keys.extend(whole, TOKENS, salt, "a", adapted_from)
    base, adapted = keys.of(TOKENS, salt, BASE_DIGEST), keys.of(TOKENS, salt, "a")
    edge = adapted_from * KEY_BYTES
    assert steps == whole == base[:edge] + adapted[edge:]
    assert len(whole) == len(TOKENS) * KEY_BYTES


def test_other_salts_mixtures_and_tokens_have_other_keys() -> None:
    keys = PrefixKeys()
    sequences = [(salt, digest, token) for salt in (None, "x") for digest in ("a", "b") for token in (1, 2)]
    assert len({keys.of([token], salt, digest) for salt, digest, token in sequences}) == len(sequences)


@pytest.mark.parametrize("seed", range(5))
def test_the_common_prefix_is_counted_in_positions(seed: int) -> None:
    rng, keys = random.Random(seed), PrefixKeys()
    for _ in range(50):
        one, other = ([rng.randint(0, 1) for _ in range(rng.randint(0, 6))] for _ in range(2))
        expected = next((i for i in range(min(len(one), len(other))) if one[i] != other[i]), None)
        length = common_prefix_length(keys.of(one, None, "a"), bytearray(keys.of(other, None, "a")))
        assert length == (min(len(one), len(other)) if expected is None else expected)
