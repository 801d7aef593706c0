"""`zweave serve`: an OpenAI-compatible server for the base model and any number of experts."""

import argparse
import os
import socket
from importlib.util import find_spec
from pathlib import Path

from ..errors import ZweaveError
from ..experts.mixture import ExpertChoice
from ..names import BUNDLED_EXPERTS
from ..options.engine_options import check_named, open_engine, stderr


def run(args: argparse.Namespace) -> int:
    if any(find_spec(package) is None for package in ("fastapi", "uvicorn", "prometheus_client")):
        raise ZweaveError("the server needs more packages: pip install 'zweave[serve]'")
    from ..server.run import run_server
    from ..server.settings import ServerSettings

    settings = ServerSettings(
        model_name=args.served_model_name or Path(args.model).name,
        aliases=dict(_alias(text) for text in args.alias),
        experts=args.experts,
        api_keys=tuple(args.api_key or filter(None, [os.environ.get("ZWEAVE_API_KEY")])),
        admin_key=args.admin_key or os.environ.get("ZWEAVE_ADMIN_KEY") or None,
        max_waiting=args.max_waiting,
        request_timeout=args.request_timeout,
        drain_timeout=args.drain_timeout,
        max_body=args.max_body_mb << 20,
    )
    check_named(args, [])
    _check_port(args.host, args.port)
    engine = open_engine(args)
    for name in BUNDLED_EXPERTS:
        if name not in engine.experts():
            try:
                engine.load_expert(name)
            except ZweaveError:  # it is for another model
                continue
    where = f"http://{f'[{args.host}]' if ':' in args.host else args.host}:{args.port}"
    experts = ", ".join(engine.experts()) or "none yet"
    stderr.print(f"serving {settings.model_name} at {where}/v1, experts: {experts}", highlight=False)
    run_server(engine, settings, args.host, args.port)
    return 0


def _alias(text: str) -> tuple[str, ExpertChoice]:
    """Reads NAME=EXPERT or NAME=A:0.7+B:0.3."""
    from ..server.errors import ApiError
    from ..server.experts.expert_choice import expert_choice

    name, _, choice = text.partition("=")
    if not name or not choice:
        raise ZweaveError(f"--alias is written NAME=EXPERT or NAME=A:0.7+B:0.3, not {text!r}")
    try:
        return name, expert_choice(choice, None, ("base",), {})
    except ApiError as error:
        raise ZweaveError(f"--alias {name}: {error}") from None


def _check_port(host: str, port: int) -> None:
    """Raises ZweaveError, before a model is loaded, if nothing can listen there."""
    if not 0 < port < 65536:
        raise ZweaveError(f"--port must be from 1 to 65535, not {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ZweaveError(f"cannot listen at {host}, port {port}: {error.strerror or error}") from None
