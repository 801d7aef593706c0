"""What changes the logits before a token is sampled."""
