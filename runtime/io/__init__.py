"""Files, figures and progress."""
