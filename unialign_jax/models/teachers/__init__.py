"""Frozen encoders of images and texts whose features the model is aligned with."""
