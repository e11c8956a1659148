"""Hooks: checkpoints, the run's record, progress."""
