"""The HTTP front: a response cache before any OpenAI- or Anthropic-compatible engine."""
