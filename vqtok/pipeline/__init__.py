"""A video to tokens and back: reading, model and writing at the same time."""
