"""What an expert and a mixture are, and the resident table of those in use."""

from .bank import Bank
from .bundled import bundled_expert, bundled_experts
from .expert import Expert
from .mixture import Mixture
from .support import Support

__all__ = [
    "Bank",
    "Expert",
    "Mixture",
    "Support",
    "bundled_expert",
    "bundled_experts",
]
