"""What the options of a server stand for, whoever starts it."""

import argparse
import os
from pathlib import Path

from ..engine.engine import Engine
from ..errors import ZweaveError
from ..experts.mixture import ExpertChoice
from ..names import BUNDLED_EXPERTS
from ..server.errors import ApiError
from ..server.experts.expert_choice import expert_choice
from ..server.settings import ServerSettings
from .engine_options import open_engine

# As many of the largest size are held at once.
_BODIES = 32


def server_settings(args: argparse.Namespace, replicated: bool = False) -> ServerSettings:
    """Checked before a model is loaded.

    replicated: as in ServerSettings.
    """
    return ServerSettings(
        model_name=args.served_model_name or Path(args.model).name,
        aliases=dict(_alias(text) for text in args.alias),
        experts=args.experts,
        api_keys=tuple(args.api_key or filter(None, [os.environ.get("ZWEAVE_API_KEY")])),
        admin_key=args.admin_key or os.environ.get("ZWEAVE_ADMIN_KEY") or None,
        max_waiting=args.max_waiting,
        request_timeout=args.request_timeout,
        drain_timeout=args.drain_timeout,
        max_body=args.max_body_mb << 20,
        max_bodies=_BODIES * args.max_body_mb << 20,
        replicated=replicated,
    )


def open_serving_engine(args: argparse.Namespace) -> Engine:
    """An engine with the experts of --load, and those that come with zweave for its model."""
    engine = open_engine(args)
    if getattr(args, "generator", None) is not None:
        engine.load_generator(args.generator)
    for name in BUNDLED_EXPERTS:
        if name not in engine.experts():
            try:
                engine.load_expert(name)
            except ZweaveError:  # it is for another model
                continue
    return engine


def _alias(text: str) -> tuple[str, ExpertChoice]:
    """Reads NAME=EXPERT or NAME=A:0.7+B:0.3."""
    name, _, choice = text.partition("=")
    if not name or not choice:
        raise ZweaveError(f"--alias is written NAME=EXPERT or NAME=A:0.7+B:0.3, not {text!r}")
    try:
        return name, expert_choice(choice, None, ("base",), {})
    except ApiError as error:
        raise ZweaveError(f"--alias {name}: {error}") from None
