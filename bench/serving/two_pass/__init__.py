"""What a first pass costs."""
