"""What can be told of a codebook from its tokens and from its table, as plain numbers."""
