"""Experts inside transformers' own models: `pip install 'zweave[transformers]'`."""

from zweave.integrations.transformers.attach import attach
from zweave.integrations.transformers.attached import Attached

__all__ = ["Attached", "attach"]
