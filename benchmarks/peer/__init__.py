"""A step of ours beside the same step in PyTorch: same weights, same draws, timed in turns."""
