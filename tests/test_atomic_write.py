"""Files appear whole or not at all, and what killed processes leave is swept."""

import os
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from helpers.command import file_names
from vqtok import atomic
from vqtok.atomic import TEMPORARY, atomic_write, sweep, temporary_folder

WRITE_FOREVER = """
import sys, time
from vqtok.atomic import atomic_write
with atomic_write(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print("writing", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def writer(tmp_path):
    """A process that is writing a file to tmp_path and does not end."""
    command = [sys.executable, "-c", WRITE_FOREVER, str(tmp_path / "half.mp4")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"writing\n"
        yield process
        process.kill()


def test_files_of_dead_processes_are_swept_by_the_next_write(writer, tmp_path):
    (left,) = file_names(tmp_path)
    assert left.startswith(TEMPORARY) and left.endswith(".mp4")
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert file_names(tmp_path) == [left]
    sweep.cache_clear()
    with atomic_write(tmp_path / "next.json") as temporary:
        assert file_names(tmp_path) == [temporary.name]
    assert file_names(tmp_path) == ["next.json"]


def test_files_that_are_being_written_are_not_swept(writer, tmp_path):
    (left,) = file_names(tmp_path)
    with atomic_write(tmp_path / "mine.json") as temporary:
        sweep.cache_clear()
        sweep(tmp_path)
        assert file_names(tmp_path) == sorted([left, temporary.name])


def test_temporary_folders_are_swept_unless_they_are_used(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    hour_ago = time.time() - 3600
    with temporary_folder() as used, temporary_folder() as new:
        left = tmp_path / f"{new.name}left"  # nobody locks it
        left.mkdir()
        (left / "a.frames").touch()
        sweep.cache_clear()
        sweep(tmp_path)
        assert left.exists()  # a process may be about to lock it
        for folder in (used, left):
            os.utime(folder, (hour_ago, hour_ago))
        sweep.cache_clear()
        sweep(tmp_path)
        assert file_names(tmp_path) == sorted([used.name, new.name])
    assert file_names(tmp_path) == []


def test_only_temporary_files_are_swept(tmp_path):
    (tmp_path / f"{TEMPORARY}folder").mkdir()
    (tmp_path / f"{TEMPORARY}link").symlink_to(tmp_path / "target")
    (tmp_path / "target").touch()
    (tmp_path / ".vqtokrc").touch()
    before = file_names(tmp_path)
    sweep(tmp_path)
    assert file_names(tmp_path) == before


def test_errors_name_the_target_and_not_the_temporary_file(tmp_path):
    target = tmp_path / ("x" * 300 + ".mp4")
    with pytest.raises(OSError, match="too long") as error, atomic_write(target):
        pass
    assert error.value.filename == str(target)


def test_hosts_with_equal_process_numbers_write_one_file_at_once(tmp_path, monkeypatch):
    """On storage that they share, where neither sees the locks of the other."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    monkeypatch.setattr("fcntl.flock", lambda descriptor, operation: None)
    target = tmp_path / "clip.safetensors"
    names = []
    with monkeypatch.context() as first, monkeypatch.context() as second:
        first.setattr(atomic, "_OWN", f"{TEMPORARY}aaaa-")
        with atomic_write(target) as one:
            second.setattr(atomic, "_OWN", f"{TEMPORARY}bbbb-")
            sweep.cache_clear()
            with atomic_write(target) as two:
                names = file_names(tmp_path)
                two.write_text("two")
            assert target.read_text() == "two"
            one.write_text("one")
    assert names == sorted([one.name, two.name])
    assert target.read_text() == "one" and file_names(tmp_path) == [target.name]


def test_processes_of_one_number_and_host_have_other_names(tmp_path):
    """As in containers, which often have the same host name and number their processes alike."""
    code = "import os; os.getpid = lambda: 1; from vqtok import atomic\n"
    code += f"with atomic.atomic_write({str(tmp_path / 'a')!r}) as path: print(path.name)"
    command = [sys.executable, "-c", code]
    names = [subprocess.run(command, capture_output=True, check=True).stdout for _ in range(2)]
    assert len(set(names)) == 2


def test_a_file_that_must_stay_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """A host that loses power would else leave a file of that name that is empty for good."""
    target, synced = tmp_path / "a.part", []

    def fsync(descriptor):
        assert not target.exists()
        synced.append(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_write(target, replace=False) as path:
        path.write_text("a")
    assert synced == [target.stat().st_ino]
