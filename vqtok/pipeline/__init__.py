"""Videos to tokens and back, with reading, the model and writing overlapped."""
