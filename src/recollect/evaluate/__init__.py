"""Measure what a recipe costs and saves: tasks, metrics, runs, reports."""
