"""`zweave serve`: an OpenAI-compatible server for the base model and any number of experts."""

import argparse
import socket
from importlib.util import find_spec

from ..errors import ZweaveError
from ..options.engine_options import stderr


def run(args: argparse.Namespace) -> int:
    if any(find_spec(package) is None for package in ("fastapi", "uvicorn", "prometheus_client")):
        raise ZweaveError("the server needs more packages: pip install 'zweave[serve]'")
    from ..options.server_options import open_serving_engine, server_settings
    from ..server.run import run_server

    settings = server_settings(args)
    _check_port(args.host, args.port)
    engine = open_serving_engine(args)
    where = f"http://{f'[{args.host}]' if ':' in args.host else args.host}:{args.port}"
    experts = ", ".join(engine.experts()) or "none yet"
    stderr.print(f"serving {settings.model_name} at {where}/v1, experts: {experts}", highlight=False)
    run_server(engine, settings, args.host, args.port)
    return 0


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
