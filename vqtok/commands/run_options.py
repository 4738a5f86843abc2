"""Options of every command that runs a tokenizer."""

from dataclasses import dataclass

from vqtok.commands.progress import say
from vqtok.device import check_dtype, describe_device
from vqtok.model.checkpoint import load_for_inference
from vqtok.model.tokenizer import Tokenizer


@dataclass(frozen=True)
class RunOptions:
    """Which tokenizer runs, where, and what the command prints.

    device, dtype: as in `load_for_inference`. Raises UsageError for another dtype.
    force: overwrite files that exist.
    jobs: clips of a batch to process at once.
    """

    tokenizer: str
    device: str
    dtype: str | None
    force: bool
    quiet: bool
    verbose: bool = False
    jobs: int = 1

    def __post_init__(self) -> None:
        check_dtype(self.dtype)

    def load_tokenizer(self) -> Tokenizer:
        """Load the tokenizer, and print which one it is if --verbose is given."""
        tokenizer = load_for_inference(self.tokenizer, self.device, self.dtype)
        dtype = str(tokenizer.dtype).removeprefix("torch.")
        self.say_verbose(
            f"{self.tokenizer}: {tokenizer.kind}, weights {tokenizer.fingerprint[:12]}, {dtype} "
            f"on {describe_device(tokenizer.device)}"
        )
        return tokenizer

    def say(self, *lines: str) -> None:
        """Print lines on stderr, unless --quiet is given."""
        say(self.quiet, *lines)

    def say_verbose(self, *lines: str) -> None:
        """Print lines on stderr if --verbose is given."""
        say(not self.verbose, *lines)
