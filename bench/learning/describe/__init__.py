"""What descriptions say about experts."""
