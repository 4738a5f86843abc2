"""Sources of a command, where a corpus stands for the folder of files that it was packed from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vqtok.corpus.clips import Clip, read_clips
from vqtok.corpus.index import INDEX
from vqtok.corpus.reader import PackedTokens, iter_tokens, unpublished_notes
from vqtok.corpus.settings import Corpus, is_corpus, open_corpus
from vqtok.errors import VqtokError
from vqtok.files import MEDIA_SUFFIXES, TOKEN_SUFFIXES, FileList, exists, list_files
from vqtok.tokens import Tokens, read_tokens


@dataclass(frozen=True)
class TokenFiles:
    """Token files in folders and corpora.

    found: all of them. One in a corpus has the path that it would have in a folder.
    packed: those in corpora, by that path.
    """

    found: FileList
    packed: dict[Path, PackedTokens]

    def read(self, path: Path) -> Tokens:
        """Read one of the token files; raises VqtokError as `read_tokens`."""
        packed = self.packed.get(path)
        return read_tokens(path) if packed is None else packed.read()


def list_token_files(sources: Sequence[str | Path]) -> TokenFiles:
    """Find token files in files, folders, glob patterns and corpora.

    A token file of a corpus may also be named by the path that it would have in a folder.
    Raises UsageError as `list_files`, and VqtokError if a corpus is damaged.
    """
    packed: dict[Path, PackedTokens] = {}
    files: list[tuple[Path, Path]] = []
    notes: list[str] = []
    for source in sources:
        resolved = resolve_source(source)
        if isinstance(resolved, FileList):
            files += resolved.files
            notes += resolved.notes
            continue
        inside: Iterable[PackedTokens]
        if isinstance(resolved, Corpus):
            root, inside = resolved.folder, iter_tokens(resolved)
            notes += unpublished_notes(resolved)
        else:
            root, inside = resolved.path.parent, [resolved]
        for file in inside:
            path = file.path
            if packed.setdefault(path, file) != file:
                raise VqtokError(f"{root} has two clips named {file.name}: encode it again")
            files.append((root, path))
    return TokenFiles(FileList(sources, files, notes), packed)


def resolve_source(source: str | Path) -> Corpus | PackedTokens | FileList:
    """Return what a source of token files is: a corpus, one token file of a corpus, or files.

    Raises UsageError as `list_files`, and VqtokError if a corpus is damaged.
    """
    if is_corpus(source):
        return open_corpus(source)
    return find_packed(source) or _list_files(source)


def _list_files(source: str | Path) -> FileList:
    """Find token files in a file, folder or glob pattern, as `list_files`.

    The index of a corpus has their suffix, and is none.
    """
    found = list_files([source], TOKEN_SUFFIXES)
    corpora = {path.parent for _, path in found.files if _is_index(path)}
    files = [(root, path) for root, path in found.files if not _is_index(path)]
    notes = [f"{corpus} is a corpus: name it to read its clips" for corpus in sorted(corpora)]
    return FileList([source], files, found.notes + notes)


def _is_index(path: Path) -> bool:
    return path.name == INDEX and is_corpus(path.parent)


def find_packed(path: str | Path) -> PackedTokens | None:
    """Return the token file of a corpus that a path names as if the corpus were a folder.

    Returns None for a path that exists, and for one that is in no corpus.
    """
    path = Path(path)
    if exists(path):
        return None
    folder = next((folder for folder in path.parents if is_corpus(folder)), None)
    if folder is None:
        return None
    return next((file for file in iter_tokens(open_corpus(folder)) if file.path == path), None)


def list_clips(sources: Sequence[str | Path]) -> FileList:
    """Find videos and images in files, folders and glob patterns, as `list_files`.

    A corpus stands for the clips that it was made from, which need not exist any more.
    """
    corpora = [source for source in sources if is_corpus(source)]
    found = list_files([source for source in sources if source not in corpora], MEDIA_SUFFIXES)
    files = [(_root(clip), Path(clip.path)) for c in corpora for clip in read_clips(Path(c))]
    return FileList(sources, files + found.files, found.notes)


def _root(clip: Clip) -> Path:
    """Return the folder that the name of a clip is relative to."""
    folder = clip.path.removesuffix(f"/{clip.name}")
    return Path(clip.path).parent if folder == clip.path else Path(folder or "/")
