"""SPARK data: what lies where, reading it, the dataset, its transforms (import the modules)."""
