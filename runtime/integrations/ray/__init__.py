"""Replicas of the server under Ray Serve: `pip install 'zweave[ray]'`, see docs/deployment.md."""

from .builder import app

__all__ = ["app"]
