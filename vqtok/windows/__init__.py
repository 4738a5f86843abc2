"""Windows of token files and corpora: what models are trained on, see `TokenWindows`."""
