"""Transforms of the pipelines, registered with mmseg when their modules are imported."""
