"""The prefix cache in the engine: the same bits with and without it, and nothing stale is ever reused."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from zweave import Engine, Expert, Request, Result, Sampling, ZweaveError

TinyEngine = Callable[..., Engine]
PROMPT = [3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9, 32, 38, 46, 26, 4, 33, 8, 32, 7, 9]


@pytest.fixture
def make_engine(tiny_engine: TinyEngine) -> Iterator[TinyEngine]:
    """`tiny_engine` with the expert "tail" of scope after_prompt; every block must come back in the end."""
    made: list[Engine] = []

    def make(dtype: str = "float32", **options: object) -> Engine:
        engine = tiny_engine(dtype, **options)
        engine.load_expert("tail", replace(engine.bank.registered("b").read(), scope="after_prompt"))
        made.append(engine)
        return engine

    yield make
    for engine in made:
        stats = engine.stats()
        assert not engine.has_work
        assert stats.blocks_in_use == 0
        assert stats.blocks_cached + stats.blocks_free == engine.config.kv_tokens // engine.config.block_size


def ask(engine: Engine, prompt: list[int] = PROMPT, **fields: object) -> Result:
    fields = {"max_tokens": 6, "ignore_eos": True, "logprobs": 96, **fields}
    return engine.generate(Request(prompt, **fields))[0]


def traffic(count: int) -> list[Request]:
    """Requests that begin alike in many ways, under everything that an engine can compute."""
    experts = [None, "a", {"a": 0.5, "b": 0.5}, "late", {"b": [1.2, -0.3]}, "tail", None, "tail"]
    generator = torch.Generator().manual_seed(0)
    tails = torch.randint(0, 96, (count, 12), generator=generator).tolist()
    return [
        Request(
            (PROMPT * 2)[: 3 * i % 40] + tails[i][: 1 + i % 4],
            expert=experts[i % 8],
            max_tokens=1 + i % 9,
            ignore_eos=True,
            logprobs=96,
            sampling=Sampling(temperature=float(i % 3 == 2), seed=i),
            salt=(None, None, "tenant")[i % 3],
            kv_reuse="approximate" if i % 5 == 4 else "exact",
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "options",
    [{}, {"kv_tokens": 76, "slots": 3}, {"max_batch_tokens": 7, "max_sequences": 7}, {"block_size": 6}],
    ids=str,
)
def test_results_are_the_same_bit_for_bit(make_engine: TinyEngine, dtype: str, options: dict) -> None:
    requests = traffic(48)
    plain = make_engine(dtype, prefix_cache=False).generate(requests)
    assert all(result.reuse is None and result.reused_tokens == 0 for result in plain)
    engine = make_engine(dtype, **options)
    for results in (engine.generate(requests), engine.generate(requests[::-1])[::-1]):
        assert results == plain
    assert engine.stats().tokens_reused > 300
    assert [ask(engine, request.prompt, expert=request.expert) for request in requests[::5]] == [
        ask(make_engine(dtype, prefix_cache=False), request.prompt, expert=request.expert)
        for request in requests[::5]
    ]


@pytest.mark.parametrize("expert", [None, "a", {"a": 0.5, "late": 0.25}, "tail"], ids=str)
def test_a_conversation_computes_each_turn_once(make_engine: TinyEngine, expert: object) -> None:
    engine, fresh = make_engine(), make_engine(prefix_cache=False)
    prompt, known = list(PROMPT), 0
    for turn in range(4):
        result = ask(engine, prompt, expert=expert, max_tokens=7)
        assert result == ask(fresh, prompt, expert=expert, max_tokens=7)
        assert result.reused_tokens == known
        if turn:
            assert result.reuse == ("after_prompt" if expert == "tail" else "same_mixture")
        # Of an after_prompt expert's answer nothing can be reused: as a part of a prompt it is the base's.
        known = len(prompt) - 1 if expert == "tail" else len(prompt) + len(result.token_ids) - 1
        prompt = [*prompt, *result.token_ids, 50 + turn, 60]


def test_an_after_prompt_expert_reuses_the_bases_prompt_whole(make_engine: TinyEngine) -> None:
    engine, fresh = make_engine(), make_engine(prefix_cache=False)
    chat = [{"role": "user", "content": "ab cd ef gh ij"}]
    tokens = engine.tokenizer.chat(chat)
    start = engine.tokenizer.after_prompt_start(tokens)
    assert 0 < start < len(tokens) - 4
    ask(engine, tokens)
    first = ask(engine, tokens, expert="tail")
    assert first == ask(fresh, tokens, expert="tail")
    assert (first.reuse, first.reused_tokens) == ("after_prompt", start)
    again = ask(engine, tokens, expert="tail")
    assert again == first
    assert (again.reuse, again.reused_tokens) == ("same_mixture", len(tokens) - 1)
    # What the expert computed is not the base's.
    assert ask(engine, tokens) == ask(fresh, tokens)
    assert ask(engine, tokens, expert="b") == ask(fresh, tokens, expert="b")


def test_an_expert_that_leaves_layers_alone_goes_on_from_the_bases(make_engine: TinyEngine) -> None:
    engine, fresh = make_engine(), make_engine(prefix_cache=False)
    ask(engine)
    first = ask(engine, expert="late")
    assert first == ask(fresh, expert="late")
    assert (first.reuse, first.reused_tokens, first.resumed_tokens) == ("first_layer", 0, len(PROMPT))
    again = ask(engine, expert="late")
    assert (again.reuse, again.reused_tokens, again.resumed_tokens) == ("same_mixture", len(PROMPT) - 1, 0)
    # A mixture adapts what any of its experts does.
    mixed = ask(engine, expert={"late": 0.5, "a": 0.5})
    assert (mixed.resumed_tokens, mixed) == (0, ask(fresh, expert={"late": 0.5, "a": 0.5}))
    # A part of it under a longer prompt, and a part of the prompt's last block.
    longer = [*PROMPT[:18], 1, 2, 3, 4, 5]
    part = ask(engine, longer, expert={"late": 0.5})
    assert (part.reused_tokens, part.resumed_tokens, part) == (
        0,
        18,
        ask(fresh, longer, expert={"late": 0.5}),
    )
    assert engine.stats().tokens_resumed == len(PROMPT) + 18


@pytest.mark.parametrize("values", ["other", "all layers"])
def test_a_late_expert_that_was_changed_goes_on_from_no_stale_states(
    make_engine: TinyEngine, values: str
) -> None:
    engine, fresh = make_engine(), make_engine(prefix_cache=False)
    ask(engine)
    ask(engine, expert="late")
    for each in (engine, fresh):
        late, a = (each.bank.registered(name).read() for name in ("late", "a"))
        changed = replace(late, z={name: 2 - z for name, z in late.z.items()}) if values == "other" else a
        each.load_expert("late", changed)
    after = ask(engine, expert="late")
    assert after == ask(fresh, expert="late")
    assert after.resumed_tokens == (len(PROMPT) if values == "other" else 0)


def test_states_are_kept_only_while_an_expert_wants_them(make_engine: TinyEngine) -> None:
    engine = make_engine()
    engine.unload_expert("late")
    ask(engine)
    engine.load_expert("late", make_engine().bank.registered("late").read())
    assert ask(engine, expert="late").resumed_tokens == 0
    ask(engine, [1, *PROMPT])
    assert ask(engine, [1, *PROMPT], expert="late").resumed_tokens == len(PROMPT) + 1
    assert ask(engine, [1, *PROMPT], expert="late", salt="x").resumed_tokens == 0


def test_approximate_reuse_is_the_expert_after_the_prompt(make_engine: TinyEngine) -> None:
    engine, fresh = make_engine(), make_engine(prefix_cache=False)
    tokens = engine.tokenizer.chat([{"role": "user", "content": "ab cd ef gh ij"}])
    start = engine.tokenizer.after_prompt_start(tokens)
    ask(engine, tokens)
    found = ask(engine, tokens, expert="b", kv_reuse="approximate")
    assert found == replace(ask(fresh, tokens, expert="tail"), expert="b")
    assert (found.reuse, found.reused_tokens) == ("approximate", start)
    exact = ask(engine, tokens, expert="b")
    assert (exact, exact.reused_tokens) == (ask(fresh, tokens, expert="b"), 0)
    assert exact.logprobs != found.logprobs
    # For who acts after the prompt anyway it changes nothing, and the base has nothing to approximate.
    assert ask(engine, tokens, expert="tail", kv_reuse="approximate").reuse in (
        "after_prompt",
        "same_mixture",
    )
    assert ask(engine, tokens, kv_reuse="approximate").reuse == "same_mixture"
    with pytest.raises(ZweaveError, match="kv_reuse must be 'exact' or 'approximate', not 'fast'"):
        Request(PROMPT, kv_reuse="fast")


def one_ulp(expert: Expert) -> Expert:
    module = min(expert.z)
    z = expert.z[module].clone()
    z[0] = torch.nextafter(z[0], torch.tensor(math.inf))
    return replace(expert, z={**expert.z, module: z})


CHANGES: dict[str, Callable[[Expert, Expert], Expert]] = {
    "other values": lambda expert, other: other,
    "one ulp": lambda expert, other: one_ulp(expert),
    "renormalised": lambda expert, other: replace(expert, renormalise=True),
    "another scope": lambda expert, other: replace(expert, scope="after_prompt"),
    "a matrix less": lambda expert, other: replace(expert, z=dict(list(expert.z.items())[1:])),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_an_expert_that_was_changed_reuses_nothing(
    make_engine: TinyEngine, change: Callable[[Expert, Expert], Expert]
) -> None:
    engine, fresh = make_engine(), make_engine(prefix_cache=False)
    before = ask(engine, expert="a")
    for each in (engine, fresh):
        each.load_expert("a", change(each.bank.registered("a").read(), each.bank.registered("b").read()))
    after = ask(engine, expert="a")
    assert after == ask(fresh, expert="a")
    assert after.reused_tokens == 0
    assert after.logprobs != before.logprobs


@pytest.mark.parametrize(
    "other", [{"a": math.nextafter(0.5, 1), "b": 0.5}, {"a": 0.5, "b": [0.5, 0.25]}], ids=str
)
def test_a_mixture_that_differs_reuses_nothing(make_engine: TinyEngine, other: dict) -> None:
    engine, fresh = make_engine(), make_engine(prefix_cache=False)
    ask(engine, expert={"a": 0.5, "b": 0.5})
    assert ask(engine, expert={"b": 0.5, "a": 0.5}).reused_tokens == len(PROMPT) - 1
    result = ask(engine, expert=other)
    assert (result.reused_tokens, result) == (0, ask(fresh, expert=other))


def test_the_same_values_under_another_name_are_reused(make_engine: TinyEngine) -> None:
    engine = make_engine()
    ask(engine, expert="a")
    engine.load_expert("copy", engine.bank.registered("a").read())
    assert ask(engine, expert={"copy": 0.25, "a": 0.75}).reused_tokens == len(PROMPT) - 1


def test_a_salt_keeps_tenants_apart(make_engine: TinyEngine) -> None:
    engine = make_engine()
    reused = [ask(engine, salt=salt).reused_tokens for salt in ("x", "y", None, "x", None)]
    assert reused == [0, 0, 0, len(PROMPT) - 1, len(PROMPT) - 1]
    for wrong in ("", 5, b"x"):
        with pytest.raises(ZweaveError, match="salt"):
            Request(PROMPT, salt=wrong)


@pytest.mark.parametrize("options", [{}, {"max_batch_tokens": 8, "max_sequences": 8}], ids=str)
def test_samples_of_a_prompt_compute_it_once(make_engine: TinyEngine, options: dict) -> None:
    requests = [
        Request(PROMPT, expert=expert, max_tokens=5, ignore_eos=True, sampling=Sampling(1.0, seed=seed))
        for expert in ("a", "b")
        for seed in range(8)
    ]
    engine = make_engine(**options)
    results = engine.generate(requests)
    assert results == make_engine(prefix_cache=False).generate(requests)
    assert len({tuple(result.token_ids) for result in results}) > 8
    # For each expert the prompt once, its last token by each sample, and four of five tokens generated.
    assert engine.stats().tokens_computed == 2 * (len(PROMPT) + 7 + 8 * 4)
    assert [result.reused_tokens for result in results] == 2 * ([0] + 7 * [len(PROMPT) - 1])


def test_cancelled_and_failing_requests_leave_right_blocks(make_engine: TinyEngine) -> None:
    engine, fresh = make_engine(max_batch_tokens=8, max_sequences=8), make_engine(prefix_cache=False)
    leader = engine.add(Request(PROMPT, max_tokens=4, ignore_eos=True))
    follower = engine.add(Request(PROMPT, max_tokens=4, ignore_eos=True, logprobs=96))
    broken = engine.add(Request(PROMPT, expert={"a": 1e30}))
    engine.step()
    engine.cancel(leader)
    results = {}
    while engine.has_work:
        results |= {delta.request_id: delta.result for delta in engine.step() if delta.result}
    assert results[leader].finish_reason == "cancelled"
    assert results[broken].finish_reason == "error"
    assert results[follower] == ask(fresh, max_tokens=4)
    assert results[follower].reused_tokens == 8


def test_stats_add_up(make_engine: TinyEngine) -> None:
    engine = make_engine(kv_tokens=40)
    assert ask(engine, max_tokens=4).reused_tokens == 0
    assert ask(engine, max_tokens=4).reused_tokens == len(PROMPT) - 1
    stats = engine.stats()
    assert (stats.tokens_looked_up, stats.tokens_reused) == (2 * len(PROMPT), len(PROMPT) - 1)
    assert stats.tokens_computed == len(PROMPT) + 1 + 2 * 3
    # 24 tokens in six blocks of four: the second request found all but its last token, and wrote the same.
    assert (stats.blocks_in_use, stats.blocks_cached, stats.blocks_free) == (0, 6, 4)
    assert stats.tokens_evicted == 0
    ask(engine, [1, *PROMPT], max_tokens=4)
    assert engine.stats().tokens_evicted > 0
    engine.add(Request(PROMPT))
    engine.step()
    assert engine.stats().blocks_in_use == 6
    engine.cancel(3)
    engine.step()


@pytest.mark.parametrize("value", [1, "yes", None])
def test_the_option_is_true_or_false(make_engine: TinyEngine, value: object) -> None:
    with pytest.raises(ZweaveError, match="prefix_cache must be True or False"):
        make_engine(prefix_cache=value)
