"""Run the `vqtok` command with `python -m vqtok`."""

from vqtok.cli import main

main()
