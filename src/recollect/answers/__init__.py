"""Answers: responses that were given once, given again to the same or to a similar request."""
