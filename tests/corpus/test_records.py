"""The record of a shard: equal bytes, totals, and records that are hostile or damaged."""

import json
import tracemalloc

import pytest

from helpers.corpus import edit_json, sample_clips, write_corpus
from vqtok.corpus.records import (
    MAX_RECORD,
    Failure,
    PackedClip,
    Record,
    Seconds,
    read_record,
    write_record,
)
from vqtok.corpus.timing import Timing
from vqtok.errors import VqtokError

TIMING = Timing(30000, 1001, 1, 30000, -5, -(2**63), 1001, 0)
CLIP = PackedClip(
    *(0, "a/b.mp4", 512, 700, 1000, "U16", (1, 4, 5), 1, 20, TIMING, 2, Seconds(0.1, 2, 0.3))
)
NEXT = CLIP._replace(
    **{"key": 2, "name": "c\udce9\n.mp4", "offset": 2048, "indices": 2500, "notes": ["12 frames"]},
    timing=TIMING._replace(start=0, step=0, timestamps=2740),  # the last 8 bytes of the file
)
FAILED = Failure(1, "/videos/x.mp4", "VqtokError", "x.mp4 has no frames", 3)
RECORD = Record(3, "ab" * 32, 10240, [CLIP._replace(notes=[]), NEXT], [FAILED])


@pytest.fixture
def record(tmp_path):
    """The path of the record of a shard with two clips."""
    return write_corpus(tmp_path / "tokens", sample_clips()) / "shards" / "00001.json"


def test_a_record_is_read_as_it_was_written(tmp_path):
    for name in ("one.json", "two.json"):
        write_record(tmp_path / name, RECORD)
    assert read_record(tmp_path / "one.json") == RECORD
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_totals_are_those_of_the_clips(tmp_path):
    write_record(tmp_path / "record.json", RECORD)
    value = json.loads((tmp_path / "record.json").read_text())
    assert (value["frames"], value["tokens"], value["attempts"]) == (2, 40, 7)
    assert value["seconds"] == {"reading": 0.2, "model": 4.0, "writing": 0.6}


def test_a_record_that_could_not_be_read_is_not_written(tmp_path):
    for clips in ([CLIP, CLIP], [NEXT, CLIP], [CLIP._replace(name="../x.mp4")]):
        with pytest.raises(VqtokError, match=r"record.json cannot be written: "):
            write_record(tmp_path / "record.json", Record(3, "ab" * 32, 10240, clips))
    assert not (tmp_path / "record.json").exists()


HOSTILE = [
    ("format", "vqtok-tokens", "its format is not vqtok-shard"),
    ("version", 2, "its version is 2, not 1"),
    ("shard", -1, "shard -1"),
    ("sha256", "xyz", "sha256 'xyz'"),
    ("bytes", 1024, "a clip ends beyond the end of the tar"),
    ("bytes", True, "bytes True"),
    ("bytes", 10**400, "bytes 1000"),
    ("clips", {"a": 1}, "its clips are not a list of objects"),
    ("clips", [1], "its clips are not a list of objects"),
    ("clips.0.key", 3, "the keys do not increase"),
    ("clips.0.key", 2**63, "key 9223372036854775808"),
    ("clips.0.name", "/etc/passwd", "name '/etc/passwd'"),
    ("clips.0.name", "a/../../b", "name 'a/../../b'"),
    ("clips.0.name", "a\0b", "name 'a\\x00b'"),
    ("clips.0.name", "", "name ''"),
    ("clips.0.name", "\ud800", "surrogates not allowed"),
    ("clips.1.offset", 512, "clip 3 overlaps the clip before it, or is not aligned"),
    ("clips.1.offset", 0, "clip 3 overlaps"),
    ("clips.0.offset", 513, "clip 2 overlaps the clip before it, or is not aligned"),
    ("clips.0.offset", 0, "clip 2 overlaps"),
    ("clips.1.offset", 2**62, "the indices of clip 3 do not lie in its token file"),
    ("clips.1.bytes", 2**40, "a clip ends beyond the end of the tar"),
    ("clips.0.indices", 0, "the indices of clip 2 do not lie"),
    ("clips.0.shape", [2**31 - 1] * 4, "the indices of clip 2 do not lie"),
    ("clips.0.shape", [1, 2], "shape [1, 2] is not (t h w) or (t h w stages)"),
    ("clips.0.shape", [0, 4, 5], "shape 0"),
    ("clips.0.dtype", "F32", "dtype 'F32' is not one of indices"),
    ("clips.0.frames", 0, "frames 0"),
    ("clips.0.tokens", 10**6, "tokens 1000000"),
    ("clips.0.timing", None, "timing None is not an object of fps_num"),
    ("clips.0.timing", {"step": 1}, "timing {'step': 1} is not an object of fps_num"),
    ("clips.0.timing.more", 0, "is not an object of fps_num"),
    ("clips.0.timing.fps_num", 0, "fps_num 0"),
    ("clips.0.timing.fps_den", 2**31, "fps_den 2147483648"),
    ("clips.0.timing.time_base_num", -1, "time_base_num -1"),
    ("clips.0.timing.time_base_den", 25.0, "time_base_den 25.0"),
    ("clips.0.timing.origin", -(2**63) - 1, "origin -9223372036854775809"),
    ("clips.0.timing.start", 2**63, "start 9223372036854775808"),
    ("clips.0.timing.step", -1, "step -1"),
    ("clips.0.timing.step", 0, "a clip has no timestamps"),
    ("clips.0.timing.timestamps", 1000, "both a step and timestamps"),
    ("clips.0.attempts", 0, "attempts 0"),
    ("clips.0.seconds", {"reading": 1}, "seconds {'reading': 1} is not an object of reading"),
    ("clips.0.seconds.model", float("nan"), "seconds nan are not a time"),
    ("clips.0.seconds.model", float("inf"), "seconds inf are not a time"),
    ("clips.0.seconds.model", 10**400, "are not a time"),
    ("clips.0.notes", [1], "notes [1] are not a list of text"),
    ("failures", None, "its failures are not a list of objects"),
    ("failures", [FAILED._asdict() | {"key": 2}], "clip 2 was encoded, and has failed"),
    ("failures", [{"key": 9}], "it has no source"),
]


@pytest.mark.parametrize(("path", "value", "reason"), HOSTILE)
def test_hostile_records_are_refused_in_one_sentence(path, value, reason, record):
    *parents, key = (int(part) if part.isdecimal() else part for part in path.split("."))

    def change(target):
        for parent in parents:
            target = target[parent]
        target[key] = value

    edit_json(record, change)
    with pytest.raises(VqtokError) as error:
        read_record(record)
    message = str(error.value)
    assert message.startswith(f"{record} is damaged or not the record of a shard: ")
    assert reason in message and "\n" not in message and len(message) < 400 + len(str(record))


def test_timestamps_lie_in_their_token_file(tmp_path):
    for timestamps in (2048, 2741, 2**63 - 1):
        timing = NEXT.timing._replace(timestamps=timestamps)
        record = Record(3, "ab" * 32, 10240, [CLIP, NEXT._replace(timing=timing)])
        with pytest.raises(VqtokError, match="the timestamps of clip 2 do not lie in its token"):
            write_record(tmp_path / "record.json", record)


def test_damaged_records_are_refused(record):
    whole = record.read_text()
    cases = [whole[: len(whole) // 2], "", "[]", "null", "[" * 10**5, '{"a":1,"a":2}', "\udcff"]
    for text in cases:
        record.write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(VqtokError, match=r"00001\.json "):
            read_record(record)


def test_the_size_of_a_record_bounds_the_memory_to_read_it(record):
    with record.open("r+b") as file:
        file.truncate(MAX_RECORD + 1)
    tracemalloc.start()
    with pytest.raises(VqtokError, match="too many for this kind of file"):
        read_record(record)
    assert tracemalloc.get_traced_memory()[1] < 3 * MAX_RECORD
    tracemalloc.stop()
