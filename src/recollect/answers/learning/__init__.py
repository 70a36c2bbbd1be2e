"""Learning from observations: thresholds, projections, and both without sharing anyone's texts."""
