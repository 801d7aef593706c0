"""Files, figures and progress, for whoever needs them."""
