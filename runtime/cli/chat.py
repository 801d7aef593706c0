"""`zweave chat`: a conversation in the terminal; the expert may change from turn to turn."""

import argparse
import io
import sys
import time

from rich.console import Console

from ..engine.engine import Engine
from ..errors import ZweaveError
from ..experts.bundled import bundled_experts
from ..experts.mixture import ExpertChoice
from ..options.engine_options import (
    check_named,
    load_named,
    open_engine,
    parse_expert,
)
from ..request import Request, Sampling

HELP = """\
/expert NAME      answer under an expert, or a mixture: /expert sst2=0.8,addition=0.2; /expert base;
                  /expert auto has the dispatcher choose for each answer
/experts          names of the experts
/reset            forget the conversation
/quit             leave (or Ctrl-D)"""


def run(args: argparse.Namespace) -> int:
    sampling = Sampling(temperature=args.temperature, top_p=args.top_p, seed=args.seed)
    Request("checks the options before the model loads", max_tokens=args.max_tokens, sampling=sampling)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    check_named(args, [parse_expert(args.expert)])
    engine = open_engine(args)
    console = Console(highlight=False)
    conversation = Conversation(engine, args.system, args.max_tokens, sampling, args.raw, args.escape_special)
    conversation.choose(args.expert)
    console.print(HELP, style="dim")
    while True:
        try:
            line = console.input(f"[bold]{conversation.expert_name}>[/bold] ").strip()
        except EOFError:
            console.print()
            return 0
        except KeyboardInterrupt:
            console.print()
            continue
        if line in ("/quit", "/exit"):
            return 0
        if line:
            _handle(line, conversation, console)


class Conversation:
    """The messages so far and the expert of the next answer."""

    def __init__(
        self,
        engine: Engine,
        system: str | None,
        max_tokens: int,
        sampling: Sampling,
        raw: bool = False,
        escape_special: bool = False,
    ) -> None:
        self.engine = engine
        self.expert: ExpertChoice = None
        self._max_tokens = max_tokens
        self._sampling = sampling
        self._raw = raw
        self._escape_special = escape_special
        self._system = [{"role": "system", "content": system}] if system else []
        self.messages: list[dict[str, str]] = list(self._system)

    @property
    def expert_name(self) -> str:
        return _name(self.expert)

    def choose(self, text: str | None) -> None:
        """Changes the expert; raises ZweaveError for an unknown one and keeps the old."""
        expert = parse_expert(text)
        load_named(self.engine, [expert])
        self.engine.check_expert(expert)
        self.expert = expert

    def reset(self) -> None:
        self.messages = list(self._system)

    def ask(self, text: str, console: Console) -> None:
        """Prints the answer as it is generated; Ctrl-C keeps the part so far."""
        turn = {"role": "user", "content": text}
        messages = [*self.messages, turn]
        request = Request(
            messages=[turn] if self._asks_alone() else messages,
            expert=self.expert,
            max_tokens=self._max_tokens,
            sampling=self._sampling,
            raw=self._raw,
            escape_special=self._escape_special,
        )
        start = time.perf_counter()
        answer, tokens, chosen = "", 0, ""
        try:
            for delta in self.engine.stream(request):
                console.print(delta.text, end="", markup=False, soft_wrap=True)
                answer += delta.text
                tokens += len(delta.token_ids)
                if delta.result is not None and delta.result.error:
                    raise ZweaveError(delta.result.error)
                if delta.result is not None and delta.result.asked is not None:
                    chosen = ", asked alone in the expert's words (--raw: in yours)"
                if delta.result is not None and delta.result.dispatch is not None:
                    dispatch = delta.result.dispatch
                    chosen = f", by {_name(dispatch.mixture)} ({dispatch.label}, {dispatch.confidence:.2f})"
        except KeyboardInterrupt:
            console.print(" [interrupted]", end="", style="dim", markup=False)
        seconds = time.perf_counter() - start
        console.print(
            f"\n{tokens} tokens, {tokens / seconds:.0f} tokens/s{chosen}", style="dim", markup=False
        )
        self.messages = [*messages, {"role": "assistant", "content": answer}]

    def _asks_alone(self) -> bool:
        """Whether the expert has words of its own: it was trained on one text at a time, without a conversation."""
        template = None if self._raw else self.engine.prompt_template(self.expert)
        return template is not None and template.chat


def _name(choice: ExpertChoice) -> str:
    if isinstance(choice, str):
        return choice
    return "+".join(choice) if choice else "base"


def _handle(line: str, conversation: Conversation, console: Console) -> None:
    command, _, argument = line.partition(" ")
    try:
        if command == "/expert":
            conversation.choose(argument.strip())
        elif command == "/experts":
            console.print(", ".join(sorted({*conversation.engine.experts(), *bundled_experts()})) or "none")
        elif command == "/reset":
            conversation.reset()
        elif command.startswith("/"):
            console.print(HELP, style="dim")
        else:
            conversation.ask(line, console)
    except ZweaveError as error:
        console.print(f"error: {error}", style="red", markup=False)
