"""Evaluation: integer counts per image first, ratios over them later."""
