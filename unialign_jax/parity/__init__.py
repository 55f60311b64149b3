"""Proof of parity: every recorded number of the PyTorch reference against ours."""
