"""Experts inside transformers' own models: `pip install 'zweave[transformers]'`."""

from .attach import attach
from .attached import Attached

__all__ = ["Attached", "attach"]
