"""Errors that the user can fix. Any other exception is a bug."""


class VqtokError(ValueError):
    """Bad data. The message is one sentence: what is wrong, in which file, and what to do."""


class UsageError(VqtokError):
    """Wrong usage, such as an option, a key or a value that does not exist."""


def os_reason(error: Exception) -> str:
    """Return why the operating system or FFmpeg refused something, in lower case."""
    return (getattr(error, "strerror", None) or str(error)).lower()
