"""`python -m vqtok` is the `vqtok` command."""

from vqtok.cli import main

main()
