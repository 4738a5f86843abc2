"""What all clips of a source must have in common for a model to learn from them."""

from pathlib import Path
from typing import NamedTuple, Self

from vqtok.corpus.settings import Corpus
from vqtok.errors import VqtokError
from vqtok.model.checkpoint import load_outline
from vqtok.model.tokenizer import Tokenizer
from vqtok.targets import BUNDLED
from vqtok.tokens import Tokens


class Codes(NamedTuple):
    """What indices mean.

    model: SHA-256 of the tokenizer's weights. codebook_size, stages, stride: as in Tokens.
    keyframe_interval: in latent frames; None if the file does not tell.
    """

    model: str
    codebook_size: int
    stages: int
    stride: tuple[int, int, int]
    keyframe_interval: int | None

    @classmethod
    def of_tokens(cls, tokens: Tokens) -> Self:
        """Return those of a token file."""
        stages = (*tokens.indices.shape, 1)[3]
        interval = tokens.keyframe_interval
        return cls(tokens.model, tokens.codebook_size, stages, tokens.stride, interval)

    @classmethod
    def of_corpus(cls, corpus: Corpus) -> Self:
        """Return those of the clips of a corpus."""
        s = corpus.settings
        return cls(s.model, s.codebook_size, s.stages, s.stride, s.keyframe_interval)


class KeyframeIntervals:
    """The key-frame intervals of clips whose files do not tell: those of their tokenizers."""

    def __init__(self, tokenizer: str | Path | Tokenizer | None) -> None:
        """tokenizer: the one of all clips; None: a bundled one if the file does not tell.

        Raises VqtokError as `vqtok.load`.
        """
        self._tokenizer = (
            load_outline(tokenizer) if isinstance(tokenizer, str | Path) else tokenizer
        )
        self._bundled: dict[str, int] = {}

    def complete(self, codes: Codes, name: str) -> Codes:
        """Return the codes of the file `name` with an interval.

        Raises VqtokError if it is unknown, or if the clip is of another tokenizer.
        """
        given = self._tokenizer
        if given is not None and given.fingerprint != codes.model:
            raise VqtokError(
                f"{name}: its tokens were made by another tokenizer, weights {codes.model[:12]}, "
                f"than the one that was given, {given.fingerprint[:12]}: give that one"
            )
        if codes.keyframe_interval is not None:
            return codes
        if given is not None:
            return codes._replace(keyframe_interval=given.keyframe_interval)
        if not self._bundled:
            tokenizers = [load_outline(path) for path in BUNDLED.glob("*.safetensors")]
            self._bundled = {t.fingerprint: t.keyframe_interval for t in tokenizers}
        if codes.model not in self._bundled:
            raise VqtokError(
                f"{name} does not tell its key-frame interval, as a file of an older vqtok: give "
                f"its tokenizer with tokenizer=, the one with weights {codes.model[:12]}"
            )
        return codes._replace(keyframe_interval=self._bundled[codes.model])


def check_same(codes: Codes, first: Codes, name: str) -> None:
    """Raise VqtokError if the codes of the file `name` are others than those of the first file."""
    pairs = zip(Codes._fields, codes, first, strict=True)
    differences = [f"{key} {mine}, not {theirs}" for key, mine, theirs in pairs if mine != theirs]
    if differences:
        raise VqtokError(
            f"{name}: its tokens do not go with those before it: {', '.join(differences)}; choose "
            "files of one tokenizer and one key-frame interval"
        )
