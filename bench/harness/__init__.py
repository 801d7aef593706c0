"""How a bench measures, checks and reports."""
