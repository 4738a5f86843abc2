"""The items of a HEIF file (.heic, .heif, .avif): ISO/IEC 23008-12 and 14496-12."""

import io
import struct
from collections.abc import Iterator
from typing import BinaryIO


class HeifItems:
    """The items of a HEIF file: coded pictures, pictures derived from others, metadata.

    Here and in the methods, raises LookupError, OverflowError or struct.error if the file does not
    have what is asked for.

    primary: the ID of the item that a viewer shows.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._meta = file, dict(_boxes(_read_meta(file)))
        version, _, fields = self._full_box(b"pitm")
        self.primary = fields.uint(4 if version else 2)

    def type(self, item: int) -> bytes:
        """Return the type of an item, such as hvc1 or grid."""
        version, _, fields = self._full_box(b"iinf")
        fields.read(4 if version else 2)
        for _, box in _boxes(fields.read()):
            version, _, entry = _parse_full_box(box)
            if entry.uint(4 if version > 2 else 2) == item:
                entry.read(2)
                return entry.read(4)
        raise LookupError(item)

    def inputs(self, item: int) -> list[int]:
        """Return the items that an item is derived from."""
        version, _, fields = self._full_box(b"iref")
        size = 4 if version else 2
        for kind, box in _boxes(fields.read()):
            reference = _Fields(box)
            if kind == b"dimg" and reference.uint(size) == item:
                return [reference.uint(size) for _ in range(reference.count(2))]
        raise LookupError(item)

    def properties(self, item: int) -> list[tuple[bytes, bytes]]:
        """Return type and content of the properties of an item, in the order of their effect."""
        iprp = list(_boxes(self._meta[b"iprp"]))
        properties = list(_boxes(dict(iprp)[b"ipco"]))
        for box in (content for kind, content in iprp if kind == b"ipma"):
            version, flags, fields = _parse_full_box(box)
            size = 2 if flags & 1 else 1
            for _ in range(fields.count(4)):
                found = fields.uint(4 if version else 2) == item
                # The highest bit marks a property as essential.
                indices = [fields.uint(size) % (1 << 8 * size - 1) for _ in range(fields.count(1))]
                if found:
                    return [properties[index - 1] for index in indices if index]
        return []

    def data(self, item: int, limit: int) -> bytes:
        """Return the first `limit` bytes of the content of an item."""
        version, _, fields = self._full_box(b"iloc")
        offset_size, length_size = divmod(fields.uint(1), 16)
        base_size, index_size = divmod(fields.uint(1), 16)
        id_size = 4 if version == 2 else 2
        for _ in range(fields.count(id_size)):
            found = fields.uint(id_size) == item
            method = fields.uint(2) % 16 if version else 0
            fields.read(2)
            base, content = fields.uint(base_size), b""
            file = io.BytesIO(self._meta.get(b"idat", b"")) if method else self._file
            index_size = index_size if version else 0
            for _ in range(fields.count(2, index_size + offset_size + length_size)):
                fields.read(index_size)
                offset, length = fields.uint(offset_size), fields.uint(length_size)
                if found:
                    end = file.seek(0, io.SEEK_END)
                    file.seek(base + offset)
                    rest = min(length, end - base - offset, limit - len(content))
                    content += file.read(max(0, rest))
            if found:
                return content
        raise LookupError(item)

    def _full_box(self, kind: bytes) -> tuple[int, int, "_Fields"]:
        return _parse_full_box(self._meta[kind])


class _Fields(io.BytesIO):
    """The fields of a box."""

    def uint(self, size: int) -> int:
        """Return the next unsigned integer of `size` bytes."""
        return int.from_bytes(self.read(size))

    def count(self, size: int, entry: int = 1) -> int:
        """Return the next integer, the number of entries that follow, as far as there can be.

        entry: bytes of an entry at least. Of entries without any, all are the same.
        """
        count = self.uint(size)
        return min(count, (len(self.getbuffer()) - self.tell()) // entry if entry else 1)


def _parse_full_box(content: bytes) -> tuple[int, int, _Fields]:
    """Return version, flags and the fields after them."""
    fields = _Fields(content)
    return fields.uint(1), fields.uint(3), fields


def _boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield type and content of the boxes in a box."""
    start = 0
    while start + 8 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, start)
        yield kind, content[start + 8 : start + size]
        start += max(size, 8)


def _read_meta(file: BinaryIO) -> bytes:
    """Return the boxes in the meta box of a file."""
    end = file.seek(0, io.SEEK_END)
    file.seek(0)
    while header := file.read(8):
        size, kind = struct.unpack(">I4s", header)
        if size == 1:
            size = int.from_bytes(file.read(8)) - 8
        rest = end - file.tell()
        content = min(size - 8, rest) if size else rest  # a size of 0 means up to the end
        if content < 0:
            break
        if kind == b"meta":
            return file.read(content)[4:]  # without version and flags
        file.seek(content, io.SEEK_CUR)
    raise LookupError("meta")
