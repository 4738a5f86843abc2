"""Tokens in the layouts of other projects. Needs no PyTorch."""
