"""Drawn scenes whose truth is known exactly: a world small enough to be learnt on a laptop."""
