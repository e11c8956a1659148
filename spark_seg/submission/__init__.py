"""The challenge's zip: written, checked as a stranger would, scored against masks."""
