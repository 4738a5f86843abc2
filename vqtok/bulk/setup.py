"""What the process that encodes is told by the one that supervises it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Setup:
    """The first line that a worker reads.

    folder: of the corpus.
    tokenizer: a file or a bundled name; must be the one that the corpus was begun with.
    device: auto, cpu, cuda or cuda:N.
    jobs: clips to encode at once; on a GPU, in one batch.
    """

    folder: str
    tokenizer: str
    device: str
    jobs: int
