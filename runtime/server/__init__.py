"""The HTTP server: an OpenAI-compatible API over one engine."""
