"""The harness: who runs when, what counts as wrong, and what a row holds."""

import json
from io import StringIO

import pytest
import torch
from rich.console import Console

from zweave.bench.harness import harness
from zweave.bench.harness.harness import (
    Pace,
    Provider,
    WallClock,
    find,
    interleaved,
    measure,
    ratio,
    row_error,
)
from zweave.bench.harness.machine import cache_bytes, machine
from zweave.bench.harness.plot import save_plot
from zweave.bench.harness.report import Column, Report, make_table, parts, print_report, print_table
from zweave.bench.harness.roofs import ARITHMETIC, READ, Roofs
from zweave.bench.kernels.linear import case_rows
from zweave.bench.kernels.linear_case import Operands, rotated
from zweave.bench.kernels.shapes import MODELS, Shape
from zweave.errors import ZweaveError


def provider(name: str, error: float = 0.0, **fields: object) -> Provider:
    return Provider(name, [lambda: None], lambda: error, limit=0.1, **fields)


def test_rounds_interleave_in_changing_order() -> None:
    ran: list[str] = []

    def clock(name: str):
        return lambda: ran.append(name) or 1.0

    readings = interleaved([clock(name) for name in "abc"], Pace(rounds=11, warmup=1))
    rounds = ["".join(ran[first : first + 3]) for first in range(0, len(ran), 3)]
    assert len(rounds) == 12
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    before_b = {each[each.index("b") - 1] for each in rounds if each[0] != "b"}
    assert before_b == {"a", "c"}
    assert readings == [[1.0] * 11] * 3


def test_no_round_begins_after_the_time_is_up() -> None:
    pace = Pace(rounds=50, seconds=1e-9, at_least=3, warmup=0)
    assert len(interleaved([lambda: 1.0], pace)[0]) == 3
    assert interleaved([], pace) == []


def test_what_fails_while_it_is_timed_leaves_the_others_their_times() -> None:
    left = iter(range(3))
    mortal = Provider("mortal", [lambda: next(left)], lambda: 0.0, limit=0.1)
    outcomes = measure([mortal, provider("lasting")], Pace(rounds=5, warmup=0))
    assert [(outcome.status, outcome.rounds) for outcome in outcomes] == [("failed", 0), ("ok", 5)]
    assert outcomes[0].note.startswith("StopIteration") and outcomes[0].seconds is None


@pytest.mark.parametrize("fields", [{"rounds": 0}, {"seconds": 0}, {"at_least": 0}, {"warmup": -1}], ids=str)
def test_a_pace_that_cannot_be_kept(fields: dict) -> None:
    with pytest.raises(ValueError, match="pace"):
        Pace(**fields)


def test_a_clock_goes_on_where_it_stopped() -> None:
    ran: list[int] = []
    clock = WallClock([lambda i=i: ran.append(i) for i in range(3)], per_reading=2)
    for _ in range(3):
        clock()
    assert ran == [0, 1, 2, 0, 1, 2]


def test_a_single_long_call_is_not_run_to_fit_the_clock() -> None:
    ran: list[int] = []
    assert WallClock([lambda: ran.append(0)]).per_reading == 1
    assert ran == []


def test_medians_and_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([9.0, 1.0, 5.0, 2.0])
    outcomes = measure(
        [provider("a", share=0.5)], Pace(rounds=3, warmup=1), lambda calls: lambda: next(seconds)
    )
    assert outcomes[0].seconds == 2.0 / 0.5
    assert outcomes[0].rounds == 3


def test_wrong_providers_get_no_time() -> None:
    ran: list[str] = []

    def boom() -> float:
        raise RuntimeError("no such kernel\nand more")

    planted = [
        provider("right"),
        Provider("wrong", [lambda: ran.append("wrong")], lambda: 0.2, 0.1),
        Provider("nan", [lambda: ran.append("nan")], lambda: float("nan"), 0.1),
        Provider("failed", [lambda: ran.append("failed")], boom, 0.1),
    ]
    outcomes = measure(planted, Pace(rounds=1))
    assert [outcome.status for outcome in outcomes] == ["ok", "wrong", "wrong", "failed"]
    assert [outcome.seconds is None for outcome in outcomes] == [False, True, True, True]
    assert outcomes[3].note == "RuntimeError: no such kernel"
    assert ran == []
    assert ratio(outcomes[1], outcomes[0]) is None
    assert find(outcomes, "nan") is outcomes[2] and find(outcomes, "none") is None


def test_a_clock_that_cannot_be_made_fails_its_provider_alone() -> None:
    def make(calls):
        if calls is bad.calls:
            raise RuntimeError("capture failed")
        return lambda: 1.0

    bad = provider("bad")
    outcomes = measure([bad, provider("good")], Pace(rounds=1), make)
    assert [outcome.status for outcome in outcomes] == ["failed", "ok"]


def test_row_error_sees_one_component_and_one_row() -> None:
    truth = torch.randn(5, 300, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert row_error(truth.float(), truth) < 1e-6
    y = truth.clone()
    y[3] *= 1.01
    assert row_error(y, truth) == pytest.approx(0.01)
    y[0, 0] = float("nan")
    assert not row_error(y, truth) <= 1e9
    assert row_error(truth[:0], truth[:0]) == 0
    with pytest.raises(ValueError, match=r"\[5, 300\]"):
        row_error(truth, truth[:, :1])


def test_report_shows_wrong_in_red_and_ends_in_an_error(capsys: pytest.CaptureFixture) -> None:
    rows = [
        outcome.row() for outcome in measure([provider("right"), provider("bad", error=3)], Pace(rounds=1))
    ]
    report = Report("b", "title", (Column("provider", "way"), Column("seconds", "us", ".1f", 1e6)), rows)
    assert print_report(report) == 1
    lines = capsys.readouterr().out.splitlines()
    parsed = json.loads(lines[-1])
    assert parsed.keys() == {"bench", "commit", "machine", "rows"}
    assert [row["status"] for row in parsed["rows"]] == ["ok", "wrong"]
    assert parsed["rows"][1]["seconds"] is None
    assert any("bad wrong: error 3" in line for line in lines)
    assert "[bold red]wrong" in str(list(make_table(report).columns[0].cells)[1])
    good = Report("b", "title", report.columns, rows[:1])
    assert print_report(good, json_only=True) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize("width", [160, 100, 80, 50])
def test_a_table_folds_to_the_terminal_and_keeps_every_figure(width: int) -> None:
    words = (Column("provider", "provider"), Column("shape", "shape"))
    figures = [Column(f"f{i}", f"figure {i}", ",.2f") for i in range(9)]
    rows = [
        {"provider": "a name of several words", "shape": "[1024, 4096]"}
        | {f"f{i}": 1e5 + i for i in range(9)}
    ] * 2
    report = Report("b", "title", (*words, *figures), rows)
    terminal = Console(file=StringIO(), force_terminal=True, width=width, color_system=None)
    print_table(report, terminal)
    lines = terminal.file.getvalue().splitlines()
    assert all(len(line.rstrip()) <= width for line in lines) and not any("…" in line for line in lines)
    for i in range(9):
        assert sum(f"100,00{i}.00" in line for line in lines) == 2
    assert (len(parts(report, terminal)) == 1) is (width == 160)


def test_a_terminal_gets_no_json(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    report = Report("b", "title", (Column("provider", "way"),), [{"provider": "a"}])
    assert print_report(report) == 0 and '{"bench"' not in capsys.readouterr().out
    assert print_report(report, json_only=True) == 0 and json.loads(capsys.readouterr().out)["bench"] == "b"


def test_machine_is_told() -> None:
    assert machine().keys() == {"cpu", "threads", "cache_bytes", "gpu", "torch", "python"}
    assert cache_bytes() > 0
    assert len(rotated(object, 4 * cache_bytes() + 1)) == 1
    assert len(rotated(object, 2 * cache_bytes())) == 2


def outcome_of(name: str, seconds: float | None, **fields: object) -> harness.Outcome:
    status = "ok" if seconds else "wrong"
    return harness.Outcome(provider(name, **fields), status, 0.0, seconds)


def test_roofs_are_the_fastest_candidates() -> None:
    roofs = Roofs.of(
        [
            outcome_of(READ, 1.0, moved=10),
            outcome_of(READ, 1.0, moved=20),
            outcome_of(ARITHMETIC, 2.0, flops=100),
            outcome_of("dense", 0.1, moved=1000, flops=1000),
        ]
    )
    assert (roofs.read, roofs.arithmetic) == (20, 50)
    assert roofs.binding(40, 50) == "read" and roofs.binding(10, 50) == "arithmetic"
    assert roofs.seconds(40, 50) == 2


def test_linear_rows_hold_ratios_to_the_right_things() -> None:
    roofs = Roofs(read=100e9, arithmetic=400e9)
    moved = {"moved": 1e6, "flops": 1e6}
    outcomes = [
        outcome_of("F.linear", 4e-5, labels={"T": 1, "E": None, "bound": 1.0}, **moved),
        outcome_of("dense", 2e-5, labels={"T": 1, "E": None, "bound": 1.0}, **moved),
        outcome_of("factored", 4e-5, labels={"T": 1, "E": 1, "bound": 2.0}, **moved),
        outcome_of("factored", 6e-5, labels={"T": 1, "E": 16, "bound": 2.0}, **moved),
        outcome_of("LoRA bmm", None, labels={"T": 1, "E": 16}, **moved),
        outcome_of(READ, 1.0, labels={}),
    ]
    rows = case_rows(Shape("m", "q", 8, 8), outcomes, roofs)
    assert len(rows) == 5
    assert rows[1]["roof_pct"] == pytest.approx(50)
    assert rows[2]["vs_bound"] == pytest.approx(1)
    assert rows[3]["vs_e1"] == pytest.approx(1.5)
    assert rows[2]["vs_f_linear"] == pytest.approx(1)
    assert rows[4]["seconds"] is None and rows[4]["vs_dense"] is None and rows[4]["roof_pct"] is None


@pytest.mark.parametrize("plot", ["roofline", "bars"])
def test_plots_are_png(plot: str, tmp_path) -> None:
    rows = [{"provider": "a", "seconds": 1e-5, "gb_s": 10.0, "gflop_s": 20.0, "E": 1}]
    rows += [{"provider": "b", "status": "wrong", "seconds": None, "gb_s": None, "gflop_s": None}]
    report = Report("b", "title", (), rows, plot=plot, roofs=(3e10, 4e11))
    save_plot(report, tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ZweaveError, match="cannot write"):
        save_plot(report, tmp_path / "missing" / "out.png")


def test_shapes_are_those_of_the_models() -> None:
    assert {(s.M, s.N) for s in MODELS["smollm2"]} == {(576, 576), (192, 576), (1536, 576), (576, 1536)}
    assert {(s.M, s.N) for s in MODELS["llama3-70b"]} == {
        (8192, 8192), (1024, 8192), (28672, 8192), (8192, 28672)
    }  # fmt: skip
    assert {(s.M, s.N) for s in MODELS["qwen3-0.6b"]} == {
        (2048, 1024), (1024, 1024), (1024, 2048), (3072, 1024), (1024, 3072)
    }  # fmt: skip


def test_truths_of_the_operands() -> None:
    o = Operands(Shape("m", "q", 9, 7), tokens=6, experts=3, dtype=torch.float32)
    slot = torch.arange(6) % 2
    factored = torch.stack(
        [o.u.double() @ (o.scale[s].double() * (o.vt.double() @ x)) for s, x in zip(slot, o.x.double())]  # noqa: B905
    )
    torch.testing.assert_close(o.factored_truth(2), factored)
    k = o.kept
    delta = torch.stack(
        [
            o.w.double() @ x + o.u[:, :k].double() @ (o.delta[s + 1].double() * (o.vt[:k].double() @ x))
            for s, x in zip(slot, o.x.double())  # noqa: B905
        ]
    )
    torch.testing.assert_close(o.delta_truth(2), delta)
    lora = torch.stack(
        [
            o.w.double() @ x + o.lora_b[s].double() @ (o.lora_a[s].double() @ x)
            for s, x in zip(slot, o.x.double())  # noqa: B905
        ]
    )
    torch.testing.assert_close(o.lora_truth(2), lora)
