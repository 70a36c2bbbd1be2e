"""Schedules and constants that are learned or profiled for one model, and saved for it."""
