"""The JSON of responses, as OpenAI has it, and what zweave adds to it."""
