"""From requests to responses: how many at once, whole or streamed."""
