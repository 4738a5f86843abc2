"""The two ways a run can fail that are the caller's to mend; everything else is a bug of ours."""


class VqtokError(ValueError):
    """Bad data: one sentence that says what was wrong, in which file, and what to do."""


class UsageError(VqtokError):
    """Wrong usage: an option, a key or a value that does not exist."""
