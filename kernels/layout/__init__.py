"""How weights and caches lie in memory."""
