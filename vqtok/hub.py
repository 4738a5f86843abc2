"""Tokenizers on the Hugging Face Hub: names such as hf:org/name@revision, the cache, the upload.

All that knows huggingface_hub, which is an extra and slow to import.
"""

import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from vqtok import __version__
from vqtok.errors import UsageError, VqtokError, os_message
from vqtok.files import RUN_TOKENIZER, printable

FILE = RUN_TOKENIZER  # the one file that is read from a repository
PREFIX = "hf:"
MAX_BYTES = 2**33  # of a download; the largest tokenizers in use have 1 GB
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
_LIBRARY = {"library_name": "vqtok", "library_version": __version__}
_PART = r"[A-Za-z0-9_][\w.-]{0,95}"
_REPOSITORY = re.compile(rf"{_PART}/{_PART}", re.ASCII)
_REVISION = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)


class HubName(NamedTuple):
    """A repository, and its branch, tag or commit; None: the branch main."""

    repository: str
    revision: str | None

    def __str__(self) -> str:
        return f"{PREFIX}{self.repository}" + (f"@{self.revision}" if self.revision else "")


def is_hub_name(name: object) -> bool:
    """Return whether a name is one of the hub, if perhaps a malformed one."""
    return str(name).startswith(PREFIX)


def is_repository(name: object) -> bool:
    """Return whether a name has the form org/name."""
    text = str(name)
    if _REPOSITORY.fullmatch(text) is None or text.endswith(".git"):
        return False
    return not any(".." in part or "--" in part or part[-1] in "-." for part in text.split("/"))


def parse_name(name: str) -> HubName:
    """Return the parts of hf:org/name@revision. Raises UsageError if it is malformed."""
    repository, at, revision = name.removeprefix(PREFIX).partition("@")
    is_revision = _REVISION.fullmatch(revision) is not None and ".." not in revision
    if not (is_hub_name(name) and is_repository(repository) and (is_revision or not at)):
        raise UsageError(
            f"{printable(name)} is not the name of a repository: write hf:org/name or "
            "hf:org/name@revision"
        )
    return HubName(repository, revision or None)


def find_cached(name: str) -> Path | None:
    """Return the file of a tokenizer in the cache; None if it has to be downloaded first.

    Sends no request: a branch is what it was when it was downloaded.
    Raises UsageError for a malformed name, or if huggingface_hub is missing.
    """
    repository, revision = parse_name(name)
    hub = _library()
    with _reasons(f"cannot look {name} up in the cache"):
        path = hub.try_to_load_from_cache(repository, FILE, revision=revision)
    return Path(path) if isinstance(path, str) else None


def fetch(name: str, quiet: bool = False) -> Path:
    """Return the file of a tokenizer in the cache, where it is downloaded to if it is not there.

    quiet: show no progress. Without a terminal there is none either.
    Raises VqtokError, with the reason, if it cannot be downloaded; UsageError as `find_cached`.
    """
    cached = find_cached(name)
    if cached is not None:
        return cached
    hub, (repository, revision) = _library(), parse_name(name)
    with _reasons(f"cannot download {name}, which is not in the cache"), _progress(quiet):
        # Fails at once, where `hf_hub_download` tries again for half a minute.
        url = hub.hf_hub_url(repository, FILE, revision=revision)
        size = hub.get_hf_file_metadata(url).size
        if size is None or size > MAX_BYTES:
            raise ValueError(f"its {FILE} has {size or 'an unknown number of'} bytes")
        return Path(hub.hf_hub_download(repository, FILE, revision=revision, **_LIBRARY))


def pin(name: str, quiet: bool = False) -> str:
    """Return the name of a tokenizer with the commit that is in the cache, downloaded as `fetch`.

    With it, every process of a command loads the same file and sends no request. Other names and
    paths are returned as they are.
    """
    if not is_hub_name(name):
        return name
    commit = fetch(name, quiet).parent.name  # .../snapshots/COMMIT/tokenizer.safetensors
    return str(HubName(parse_name(name).repository, commit))


def check_login() -> None:
    """Raise VqtokError if there is no token to upload with."""
    if _library().get_token() is None:
        raise VqtokError(f"there is no token to upload with: {_LOGIN}")


def card_header(license_: str, tags: Sequence[str], datasets: Sequence[str]) -> str:
    """Return the YAML that a model card begins with.

    license_: identifier of a license. datasets: repositories of data sets.
    """
    data = _library().ModelCardData(
        library_name="vqtok", license=license_, tags=list(tags), datasets=list(datasets) or None
    )
    return f"---\n{data.to_yaml()}\n---\n"


def push(
    name: HubName, files: Mapping[str, bytes], message: str, private: bool, quiet: bool
) -> tuple[str, str]:
    """Commit files to a repository, all at once, and return the URL and the hash of the commit.

    The repository and the branch `name.revision` are created if they do not exist.

    files: content by name. private: whether a new repository becomes private; a public one is
        refused.
    Raises VqtokError, with the reason, if that fails.
    """
    hub = _library()
    api, operations = hub.HfApi(**_LIBRARY), []
    with _reasons(f"cannot push to {name}"), _progress(quiet):
        for path, content in files.items():
            operations.append(hub.CommitOperationAdd(path_in_repo=path, path_or_fileobj=content))
        api.create_repo(name.repository, private=private or None, exist_ok=True)
        if private and not api.model_info(name.repository).private:
            raise ValueError("it exists and is public: make it private, or leave out --private")
        if name.revision:
            api.create_branch(name.repository, branch=name.revision, exist_ok=True)
        commit = api.create_commit(
            name.repository, operations, commit_message=message, revision=name.revision
        )
    return commit.commit_url, commit.oid


def _library() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise UsageError(
            "tokenizers on the Hugging Face Hub need huggingface_hub: pip install 'vqtok[hub]'"
        ) from None
    return huggingface_hub


@contextmanager
def _progress(quiet: bool) -> Iterator[None]:
    """Let the library draw progress bars on a terminal, and print nothing else."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
        logging,
    )

    verbosity, disabled = logging.get_verbosity(), are_progress_bars_disabled()
    quiet = quiet or sys.stderr is None or not sys.stderr.isatty()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.set_verbosity_error()
        if quiet:
            disable_progress_bars()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if quiet and not disabled:
                enable_progress_bars()


@contextmanager
def _reasons(failed: str) -> Iterator[None]:
    """Raise VqtokError, with what failed and why, for whatever the library raises."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # also those of its HTTP library, which is not always the same
        raise VqtokError(f"{failed}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    from huggingface_hub import constants, errors

    match error:
        case errors.OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE is set"
        case errors.GatedRepoError():
            return f"the repository is gated: accept its terms on the hub and {_LOGIN}"
        case errors.RepositoryNotFoundError():
            return f"there is no such repository, or it is private: check the name, or {_LOGIN}"
        case errors.RevisionNotFoundError():
            return "the repository has no such revision: name a branch, a tag or a commit"
        case errors.LocalEntryNotFoundError():
            return f"{constants.ENDPOINT} does not answer: check the connection"
        case errors.EntryNotFoundError():
            return f"the repository has no {FILE}: it is not a vqtok tokenizer"
        case errors.HfHubHTTPError():
            status = error.response.status_code
            advice = error.server_message or "check the name"
            if status in (401, 403):
                advice = f"check the token, or {_LOGIN}"
            elif status == 429 or status >= 500:
                advice = "try again later"
            return printable(f"the hub answers {status} {error.response.reason_phrase}: {advice}")
        case errors.HTTPError():
            return f"{constants.ENDPOINT} does not answer: check the connection"
        case OSError(errno=int()):
            return os_message(error)
    return printable(" ".join(str(error).split()) or type(error).__name__)
