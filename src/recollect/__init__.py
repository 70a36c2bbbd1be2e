"""Caching as a first-class, composable thing across generative-AI inference."""
