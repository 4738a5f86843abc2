"""Many files at once: mirrored folders, resuming, failures, and interrupts."""

import json
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from helpers.clips import pattern, write_clip
from helpers.command import fails, in_process, start, wait_until, works
from vqtok.commands.batch import FailureLog, Job, plan_jobs
from vqtok.commands.decode import video_name
from vqtok.errors import UsageError
from vqtok.files import OUTPUT_SUFFIXES, list_files
from vqtok.tokens import read_settings
from vqtok.video.formats import CONTAINERS


def contents(folder):
    """Return the bytes of all files in a folder and below, by relative path; no hidden ones."""
    paths = (path for path in folder.rglob("[!.]*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture
def tree(tmp_path):
    """Five clips in three folders; one of them is broken."""
    folder = tmp_path / "in"
    (folder / "sub" / "deep").mkdir(parents=True)
    for i, name in enumerate(("a.mp4", "sub/b.mkv", "sub/deep/a.mp4", "sub/c.mp4")):
        write_clip(folder / name, pattern(5 + 3 * i, 32 + 8 * i, 48))
    (folder / "sub" / "bad.mp4").write_text("not a video")
    (folder / "notes.txt").write_text("not a clip")
    return folder


def test_the_tree_is_mirrored_and_failures_are_listed(tree, tmp_path, tiny):
    out = tmp_path / "out"
    message = f"1 of 5 files failed, see {out}/failures.jsonl"
    fails(1, message, "encode", tree, "-o", out, *tiny)
    names = {"a.mp4", "sub/b.mkv", "sub/deep/a.mp4", "sub/c.mp4"}
    assert contents(out).keys() == {f"{name}.safetensors" for name in names} | {"failures.jsonl"}
    (failure,) = map(json.loads, (out / "failures.jsonl").read_text().splitlines())
    assert failure["source"] == str(tree / "sub" / "bad.mp4")
    assert failure["kind"] == "VqtokError" and "is not a video" in failure["reason"]

    decoded = tmp_path / "decoded"
    works("decode", out, "-o", decoded, *tiny)
    assert contents(decoded).keys() == names


def test_tokens_do_not_depend_on_jobs_or_on_other_clips(tree, tmp_path, tiny):
    for jobs in (1, 3):
        in_process("encode", tree, "-o", tmp_path / f"{jobs}", "--jobs", jobs, *tiny)
    assert contents(tmp_path / "1") == contents(tmp_path / "3")
    alone = works("encode", tree / "sub" / "c.mp4", *tiny).stdout
    assert alone == contents(tmp_path / "1")["sub/c.mp4.safetensors"]


def test_existing_files_are_skipped_unless_forced(tree, tmp_path, tiny):
    out, done = tmp_path / "out", tmp_path / "out" / "a.mp4.safetensors"
    out.mkdir()
    # --duration leaves no trace in a file, so the shorter one counts as done.
    works("encode", tree / "a.mp4", "-o", out, "--duration", 0.1, *tiny)
    old = done.read_bytes()
    in_process("encode", tree, "-o", out, *tiny)
    assert done.read_bytes() == old and len(contents(out)) == 5
    in_process("encode", tree, "-o", out, "--force", *tiny)
    assert done.read_bytes() != old


@pytest.mark.parametrize("command", ["encode", "decode"])
def test_no_tokenizer_is_loaded_when_there_is_nothing_to_do(
    tree, tmp_path, command, monkeypatch, tiny
):
    (tree / "sub" / "bad.mp4").unlink()
    tokens, videos = tmp_path / "tokens", tmp_path / "videos"
    works("encode", tree, "-o", tokens, *tiny)
    works("decode", tokens, "-o", videos, *tiny)
    monkeypatch.setattr("vqtok.commands.run_options.load_for_inference", None)
    source, target = {"encode": (tree, tokens), "decode": (tokens, videos)}[command]
    assert b"nothing to do" in works(command, source, "-o", target, *tiny).stderr
    assert not (target / "failures.jsonl").exists()


def test_a_folder_never_mixes_tokenizers_sizes_or_frame_rates(tree, tmp_path, tiny):
    out = tmp_path / "out"
    out.mkdir()
    works("encode", tree / "a.mp4", "-o", out, "--size", 24, "--fps", 5, *tiny)
    old, message = contents(out), f"{out}/a.mp4.safetensors exists and was made with another"
    for options in (["--size", 24], [*tiny, "--size", 32], [*tiny, "--fps", "10"]):
        assert "--force" in fails(2, message, "encode", tree, "-o", out, *options)
        assert contents(out) == old
    in_process("encode", tree, "-o", out, "--size", 24, "--fps", "5", *tiny)
    assert contents(out).items() > old.items()
    (out / "a.mp4.safetensors").write_text("not tokens")
    fails(1, f"delete {out}/a.mp4.safetensors first", "encode", tree, "-o", out, *tiny)
    in_process("encode", tree, "-o", out, "--force", *tiny)
    models = {read_settings(path).model for path in out.rglob("*.safetensors")}
    assert len(models) == 1


def test_a_killed_batch_resumes(tree, tmp_path):
    write_clip(tree / "z.mp4", pattern(200, 96, 96))
    out = tmp_path / "out"
    process = start("encode", tree, "-o", out)
    wait_until((out / "sub" / "deep" / "a.mp4.safetensors").exists, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (line,) = (out / "failures.jsonl").read_text().splitlines()  # there before the end
    failed = json.loads(line)
    assert (failed["source"], failed["kind"]) == (str(tree / "sub" / "bad.mp4"), "VqtokError")
    done = {name: data for name, data in contents(out).items() if name.endswith(".safetensors")}
    assert "z.mp4.safetensors" not in done
    fails(1, "1 of 2 files failed", "encode", tree, "-o", out)  # the broken one
    assert contents(out).items() >= done.items()
    assert (out / "z.mp4.safetensors").exists()


def test_the_reasons_of_the_first_failures_are_printed(tmp_path, tiny):
    (tmp_path / "in").mkdir()
    for i in range(7):
        (tmp_path / "in" / f"{i}.mp4").write_text("not a video")
    args = "encode", tmp_path / "in", "-o", tmp_path / "out", *tiny
    stderr = fails(1, "7 of 7 files failed, see", *args)
    assert stderr.count("is not a video") == 5 and stderr.endswith("; and 2 more\n")
    assert len((tmp_path / "out" / "failures.jsonl").read_text().splitlines()) == 7


def jobs(folder, count):
    return [Job(folder / f"{i}.mp4", folder / f"{i}") for i in range(count)]


def listed(path):
    """Return the name and the kind of each line."""
    failures = map(json.loads, path.read_text().splitlines())
    return [(Path(failure["source"]).stem, failure["kind"]) for failure in failures]


def test_the_log_lists_failures_at_once(tmp_path):
    path = tmp_path / "failures.jsonl"
    path.write_text("of an earlier run\n")
    log, (a, b, c) = FailureLog(path), jobs(tmp_path, 3)
    with log.watch(a):
        assert not path.exists()
        with log.watch(b):
            raise RuntimeError("why")
        assert listed(path) == [("1", "RuntimeError")]
    with pytest.raises(KeyboardInterrupt), log.watch(c):
        raise KeyboardInterrupt
    assert listed(path) == [("1", "RuntimeError")]
    assert (log.count, log.reasons) == (1, [f"{b.source}: RuntimeError: why"])


def test_what_could_not_be_written_comes_with_the_next_line(tmp_path):
    path = tmp_path / "failures.jsonl"
    log, (a, b) = FailureLog(path), jobs(tmp_path, 2)
    path.mkdir()  # cannot be written
    with log.watch(a):
        raise RuntimeError
    path.rmdir()
    with log.watch(b):
        raise RuntimeError
    assert listed(path) == [("0", "RuntimeError"), ("1", "RuntimeError")]


def test_many_threads_write_one_log(tmp_path):
    path = tmp_path / "failures.jsonl"
    log = FailureLog(path)

    def fail(job):
        with log.watch(job):
            raise RuntimeError

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(fail, jobs(tmp_path, 200)))
    assert sorted(listed(path)) == sorted((f"{i}", "RuntimeError") for i in range(200))
    assert log.count == 200 and len(log.reasons) == 5


def test_ctrl_c_ends_all_jobs_and_leaves_complete_files_only(tree, tmp_path):
    for i in range(3):
        write_clip(tree / f"z{i}.mp4", pattern(400, 96, 96))
    out = tmp_path / "out"
    process = start("encode", tree, "-o", out, "--jobs", "2")
    wait_until((out / "sub" / "deep" / "a.mp4.safetensors").exists, process)
    process.send_signal(signal.SIGINT)
    assert b"interrupted" in process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert not list(out.rglob(".vqtok-*"))
    assert not (out / "z2.mp4.safetensors").exists()


def test_targets_mirror_files_folders_and_patterns(tree, tmp_path):
    def targets(*sources):
        jobs = plan_jobs(list_files(sources, {".mp4", ".mkv"}), tmp_path, str.upper, "none")
        return [str(job.target.relative_to(tmp_path)) for job in jobs]

    assert targets(tree / "**" / "*.mp4") == ["A.MP4", "sub/BAD.MP4", "sub/C.MP4", "sub/deep/A.MP4"]
    assert targets(tree / "sub" / "b*") == ["B.MKV", "BAD.MP4"]
    assert targets(tree / "a.mp4", tree / "sub" / "b.mkv") == ["A.MP4", "B.MKV"]
    with pytest.raises(UsageError, match="would both be written to"):
        targets(tree / "a.mp4", tree / "sub" / "deep" / "a.mp4")
    with pytest.raises(UsageError, match="no files to process in"):
        targets(tree / "*.gif")
    with pytest.raises(UsageError, match="no such file"):
        targets(tree / "absent.mp4")


@pytest.mark.parametrize(
    "tokens, video",
    [("a.mp4.safetensors", "a.mp4"), ("a.avi.safetensors", "a.avi.mp4"), ("a", "a.mp4")],
)
def test_decoded_files_are_named_after_their_sources(tokens, video):
    assert video_name(tokens) == video
    assert set(CONTAINERS) == OUTPUT_SUFFIXES


@pytest.mark.parametrize("output", [(), ("-o", "-"), ("-o", "a_file")])
def test_a_batch_needs_an_output_folder(tree, tmp_path, output, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").touch()
    fails(2, "folder", "encode", tree, *output)


def test_a_name_with_a_slash_at_its_end_is_a_folder(tree, tmp_path, tiny):
    works("encode", tree / "a.mp4", "-o", f"{tmp_path}/new/", *tiny)
    assert list(contents(tmp_path / "new")) == ["a.mp4.safetensors"]
    args = "encode", tree / "a.mp4", "-o", f"{tree / 'a.mp4'}/", "--force", *tiny
    fails(2, "a.mp4 is a file: choose a folder", *args)


@pytest.mark.parametrize(
    "args", [("encode", ""), ("encode", "", "-o", "out"), ("encode", "a.mp4", "-o", "")]
)
def test_an_empty_name_is_not_the_working_directory(args, tree, monkeypatch):
    monkeypatch.chdir(tree)
    before = contents(tree)
    fails(2, "empty", *args)
    assert contents(tree) == before


@pytest.mark.parametrize("command", ["encode", "eval", "train --data"])
def test_an_invalid_pattern_is_refused(command, tmp_path):
    pattern = f"{tmp_path}/a**b.mp4"
    output = ("-o", tmp_path / "tokens") if command == "encode" else ()
    fails(2, "invalid pattern", *command.split(), pattern, *output)


def test_a_wrong_dtype_is_refused_before_any_work(tree, tmp_path):
    fails(2, "must be float32 or bfloat16", "encode", tree, "-o", tmp_path, "--dtype", "float16")
