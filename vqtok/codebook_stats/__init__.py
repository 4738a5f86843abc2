"""Statistics of codebooks, from token files and from checkpoints, in NumPy alone."""
