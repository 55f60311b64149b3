"""Scores of what a model makes, against a truth that is known."""
