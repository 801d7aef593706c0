"""Training of many experts at once on hidden tasks, over keys and values of the base model."""
