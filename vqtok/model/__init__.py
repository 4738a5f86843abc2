"""The networks: encoder, decoder, predictive coder, and their files."""
