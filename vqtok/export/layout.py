"""The layouts of other projects that tokens are exported to, and their files."""

from enum import StrEnum


class Layout(StrEnum):
    """What `vqtok export` writes."""

    ONE_X = "1x"
    NANOGPT = "nanogpt"
    PARQUET = "parquet"

    @property
    def files(self) -> tuple[str, ...]:
        """The files of an export; the first appears last, once the others are complete."""
        return _FILES[self]


_FILES = {
    Layout.ONE_X: ("metadata.json", "video.bin", "segment_ids.bin", "clips.jsonl"),
    Layout.NANOGPT: ("meta.json", "meta.pkl", "train.bin", "clips.jsonl"),
    Layout.PARQUET: ("train.parquet",),
}
