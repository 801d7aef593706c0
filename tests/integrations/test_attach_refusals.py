"""What `attach` and its experts refuse: one clear line, and a model that stays as it was."""

import subprocess
import sys
import threading
from typing import Any

import pytest
import torch
from torch import nn

from zweave.decomposition import Decomposition
from zweave.errors import ZweaveError
from zweave.experts import Expert
from zweave.io.progress import silent

pytest.importorskip("transformers")

from transformers import AutoModelForCausalLM

from zweave.integrations.transformers import Attached, attach


class Block(nn.Module):
    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"up": linear})])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[0]["up"](x)


class Custom(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def quantised() -> nn.Module:
    linear = nn.Linear(8, 8)
    linear.weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), requires_grad=False)
    return linear


def with_packed_weight() -> nn.Module:
    module = nn.Module()
    module.qweight = nn.Parameter(torch.zeros(4, 8, dtype=torch.int32), requires_grad=False)
    return module


@pytest.mark.parametrize(
    ("linear", "options", "message"),
    [
        (quantised, {}, r"layers.0.up is quantised \(Linear\): load the model without"),
        (with_packed_weight, {}, r"layers.0.up is quantised \(Module\)"),
        (lambda: nn.Linear(8, 8).to(torch.float8_e4m3fn), {}, "quantised"),
        (lambda: nn.Linear(8, 8, device="meta"), {}, r"layers.0.up has no data \(meta device\)"),
        (lambda: nn.Linear(8, 8).half(), {}, "torch.float16: load the model in bfloat16 or float32"),
        (lambda: nn.Linear(8, 8).double(), {}, "torch.float64"),
        (lambda: Custom(8, 8), {}, "no linear in a numbered layer"),
        (lambda: Custom(8, 8), {"targets": ["up"]}, "layers.0.up is a Custom with a forward pass of its own"),
        (lambda: nn.LayerNorm(8), {"targets": ["up"]}, "layers.0.up is a LayerNorm, not a linear"),
        (lambda: nn.Linear(8, 8), {"targets": ["down", "gate"]}, "no linear whose name ends in down or gate"),
        (lambda: nn.Linear(8, 8), {"slots": 1}, "at least 2 slots"),
    ],
)
def test_models_that_cannot_be_attached(linear, options, message):
    model = Block(linear())
    before = dict(model.named_modules())
    with pytest.raises(ZweaveError, match=message) as raised:
        attach(model, progress=silent, **options)
    assert "\n" not in str(raised.value)
    assert dict(model.named_modules()) == before


def test_peft_and_attaching_twice(tiny_model):
    peft = pytest.importorskip("peft")
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    attached = attach(model, progress=silent)
    with pytest.raises(ZweaveError, match="has experts attached"):
        attach(model)
    attached.detach()
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ZweaveError, match=r"q_proj carries an adapter of PEFT: merge_and_unload"):
        attach(wrapped)


@pytest.fixture
def model(tiny_model) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model("llama"))


@pytest.fixture
def attached(model, random_expert) -> Attached:
    attached = attach(model, progress=silent)
    shapes = {name: m.shape for name, m in Decomposition.open(attached.base_digest).matrices.items()}
    attached.load("a", random_expert(shapes, seed=0))
    return attached


def test_experts_that_do_not_fit_leave_the_model_alone(tmp_path, model, tiny_model, random_expert):
    before = dict(model.named_modules())
    name = "model.layers.0.mlp.up_proj"
    experts = {
        "rank 32": Expert({name: torch.ones(31)}),
        "other weights": Expert({name: torch.ones(32)}, base_digest="0" * 64),
        "no matrix transformer.h.0.mlp.c_fc": Expert({"transformer.h.0.mlp.c_fc": torch.ones(32)}),
        "no such file": tmp_path / "none.safetensors",
    }
    for message, expert in experts.items():
        with pytest.raises(ZweaveError, match=message):
            attach(model, {"a": expert}, progress=silent)
        assert dict(model.named_modules()) == before


def test_wrong_choices(model, attached):
    tokens = torch.ones(4, 3, dtype=torch.int64)
    with (
        attached.use(["a", None, "a"]),
        pytest.raises(ZweaveError, match="3 experts are named and the batch has 4"),
    ):
        model(tokens)
    for choice, message in (
        ("b", "no expert 'b'"),
        ([], "the list of experts is empty"),
        (3, "an expert is a name"),
        ({"a": float("nan")}, "finite"),
        ([{"a": [1.0, 2.0, 3.0]}], "2 layers"),
    ):
        with pytest.raises(ZweaveError, match=message), attached.use(choice):
            pass
    # The model is the base again, and no slot is lost.
    with torch.no_grad():
        base = model(tokens).logits
        for _ in range(100):
            with pytest.raises(ZweaveError), attached.use(["a", "b"]):
                pass
        with attached.use("a"):
            assert not torch.equal(model(tokens).logits, base)


def test_more_experts_at_once_than_slots(model, random_expert):
    attached = attach(model, slots=3, progress=silent)
    shapes = {name: m.shape for name, m in Decomposition.open(attached.base_digest).matrices.items()}
    for seed in range(4):
        attached.load(str(seed), random_expert(shapes, seed=seed))
    with (
        attached.use(["0", "1"]),
        pytest.raises(ZweaveError, match="expert slots are in use"),
        attached.use("2"),
    ):
        pass
    with attached.use(["2", "3"]):
        model(torch.ones(2, 3, dtype=torch.int64))


def test_moving_and_detaching_in_use(model, attached):
    with pytest.raises(ZweaveError, match=r"cannot move to torch\.bfloat16"):
        model.to(torch.bfloat16)
    model.to("cpu")
    model.float()
    with attached.use("a"), pytest.raises(ZweaveError, match="in use"):
        attached.detach()
    attached.detach()
    model.to(torch.bfloat16)


def test_a_second_thread_cannot_enter(attached):
    failures = []

    def enter() -> None:
        try:
            with attached.use("a"):
                pass
        except ZweaveError as error:
            failures.append(str(error))

    with attached.use("a"):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert len(failures) == 1 and "another thread" in failures[0]
    enter()
    assert len(failures) == 1


def test_learning_refusals(attached, tmp_path):
    for name, message in (("a.b", "no dots"), ("base", "reserved"), ("a b", "cannot be an expert's name")):
        with pytest.raises(ZweaveError, match=message):
            attached.learn(name)
    with pytest.raises(ZweaveError, match="no layer 7"):
        attached.learn("late", first_layer=7)
    attached.learn("new")
    with pytest.raises(ZweaveError, match="learns already"):
        attached.learn("new")
    with pytest.raises(ZweaveError, match="freeze it before you mix"), attached.use({"new": 0.5, "a": 0.5}):
        pass
    with pytest.raises(ZweaveError, match="no such folder"):
        attached.save("new", tmp_path / "none" / "new.safetensors")
    with pytest.raises(ZweaveError, match="no expert 'none'"):
        attached.save("none", tmp_path / "none.safetensors")
    next(iter(attached._linears.values())).z["new"].data.fill_(float("nan"))
    with pytest.raises(ZweaveError, match="NaN"):
        attached.freeze("new")


def test_without_transformers_the_pip_line_is_given():
    program = (
        "import sys\n"
        "sys.modules['transformers'] = None\n"
        "import torch, zweave\n"
        "from zweave.integrations.transformers import attach\n"
        "try:\n"
        "    attach(torch.nn.Linear(2, 2))\n"
        "except zweave.ZweaveError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "attach needs transformers: pip install 'zweave[transformers]'", done.stderr


def test_the_core_imports_no_integration():
    program = (
        "import sys, zweave, zweave.kernels, zweave.engine, zweave.decomposition, zweave.experts\n"
        "print([name for name in sys.modules if name in ('transformers', 'vllm', 'zweave.integrations')])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_names_that_come_with_zweave_are_found(model):
    with pytest.raises(ZweaveError, match=r"sst2\.safetensors: .*other weights"):
        attach(model, {"a": "sst2"}, progress=silent)
    attached = attach(model, progress=silent)
    with pytest.raises(ZweaveError, match="there is no expert 'sst3'"):
        attached.load("a", "sst3")
