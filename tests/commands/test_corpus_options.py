"""Options of packed corpora: wrong usage, changed options, `--status`, and hostile files."""

import shutil

import pytest

from helpers.clips import pattern, write_clip
from helpers.command import fails, file_names, works
from helpers.corpus import edit_json, sample_clips, write_corpus
from helpers.tokenizers import save_tokenizer
from vqtok.bulk import plan
from vqtok.corpus_options import parse_seconds, parse_size
from vqtok.errors import UsageError

PACK = "--pack", "1M"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with clips, a folder of other files, an empty folder, and a file."""
    folder = tmp_path_factory.mktemp("place")
    for name in ("videos/a.mp4", "videos/b/a.mp4"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_clip(folder / name, pattern(5, 32, 48))
    for name in ("others", "empty"):
        (folder / name).mkdir()
    for name in ("others/notes.txt", "file", "nonsense.jsonl"):
        (folder / name).write_text("nonsense\n")
    return folder


SIZE, TIME, MANY = "is not a size such as", "is not a time such as", "several files need an output"
RAY, WORKERS = "are for a Ray cluster: add --on ray", "must be a number or a range such as 2:64"
ADD = "are for a packed corpus: add --pack"
TO = ("-o", "new")
WRONG = [
    *(
        (SIZE, ["videos", *TO, "--pack", value])
        for value in ("256MB", "0", "-1", "1.5G", "", "1e9")
    ),
    *((TIME, ["videos", *TO, *PACK, "--timeout", value]) for value in ("0", "1d", "-5", "nan", "")),
    *((TIME, ["videos", *TO, *PACK, "--split", value]) for value in ("0s", "h", "1e3")),
    *(
        ("--shard", ["videos", *TO, *PACK, "--shard", value])
        for value in ("2/2", "0/0", "1", "-1/2")
    ),
    ("give the shard as k/n", ["videos", *TO, *PACK, "--shard", "auto"]),
    *(
        (ADD, ["videos", *TO, *option.split()])
        for option in ("--timeout 5", "--split 5s", "--on ray")
    ),
    (ADD, ["videos", *TO, "--retry-failed"]),
    (RAY, ["videos", *TO, *PACK, "--workers", "2"]),
    (RAY, ["videos", *TO, *PACK, "--gpus", "0"]),
    ("--on dask: must be ray", ["videos", *TO, *PACK, "--on", "dask"]),
    *(
        (WORKERS, ["videos", *TO, *PACK, "--on", "ray", "--workers", value])
        for value in ("0", "3:2", "x", "2:", ":2", "1:2:3", "0:0", "-1")
    ),
    ("--force does not apply to a corpus", ["videos", *TO, *PACK, "--force"]),
    ("--keep-partial is for a single clip", ["videos", *TO, *PACK, "--keep-partial"]),
    ("--quiet and --verbose exclude", ["videos", *TO, *PACK, "--quiet", "--verbose"]),
    (MANY, ["videos", *PACK]),
    (MANY, ["videos", "-o", "-", *PACK]),
    ("the name of the output is empty", ["videos", "-o", "", *PACK]),
    ("choose another output folder", ["videos", "-o", "videos", *PACK]),
    ("file is a file: choose a folder", ["videos", "-o", "file", *PACK]),
    ("others has other files (notes.txt)", ["videos", "-o", "others", *PACK]),
    ("no files to process in empty", ["empty", *TO, *PACK]),
    ("none: no such file or folder", ["none", "-o", "new/", *PACK]),
    ("-: no such file or folder", ["-", "-o", "empty", *PACK]),
    ("would both be decoded to a.mp4", ["videos", "videos/b", *TO, *PACK]),
    ("--pack and --shard are for many clips", ["videos/a.mp4", "-o", "new.safetensors", *PACK]),
    ("--pack and --shard are for many clips", ["videos/a.mp4", *PACK]),
    ("nothing to encode", [*TO, *PACK]),
    ("--lambda, --tokens and --psnr exclude", ["videos", *TO, *PACK, "--lambda=1", "--psnr=30"]),
    ("met over a whole clip", ["videos", *TO, *PACK, "--split", "5s", "--psnr", "30"]),
    (
        "a rate needs one that was trained with quantizer.stages",
        ["videos", *TO, *PACK, "--lambda", "1"],
    ),
    ("dtype float16: must be", ["videos", *TO, *PACK, "--dtype", "float16"]),
    ("device tpu: must be", ["videos", *TO, *PACK, "--device", "tpu"]),
    ("fps fast: must be a number", ["videos", *TO, *PACK, "--fps", "fast"]),
    (
        "--pack and --shard are for many clips",
        ["videos/a.mp4", "-o", "new.safetensors", "--shard", "0/2"],
    ),
    ("--status is about a corpus", ["videos", "--status"]),
    ("empty is not a corpus", ["-o", "empty", "--status"]),
    ("none is not a corpus", ["-o", "none", "--status"]),
    ("file is not a corpus", ["-o", "file", "--status"]),
]


@pytest.mark.parametrize(("message", "args"), WRONG, ids=[" ".join(args) for _, args in WRONG])
def test_wrong_usage_is_refused_in_one_sentence(message, args, place, tiny, monkeypatch):
    monkeypatch.chdir(place)
    for name in ("RANK", "SLURM_NTASKS", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    before = sorted(place.rglob("*"))
    stderr = fails(2, message, "encode", *args, *tiny)
    assert stderr.startswith("vqtok: ") and stderr.count("\n") == 1
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("option", [["--gpus", "-1"], ["--gpus", "nan"], ["--jobs", "0"]])
def test_numbers_out_of_range_are_refused(option, place, tiny):
    words = "encode", place / "videos", "-o", place / "new", *PACK, "--on", "ray", *tiny
    fails(2, "Invalid value for", *words, *option)
    assert not (place / "new").exists()


def test_sizes_and_times():
    sizes = {"1": 1, "10K": 10240, "256M": 2**28, "1g": 2**30, "007": 7}
    assert {text: parse_size(text) for text in sizes} == sizes
    times = {"90": 90, "90s": 90, "1.5min": 90, "2h": 7200, "0.5": 0.5}
    assert {text: parse_seconds(text) for text in times} == times
    for text in ("1 M", "M", "٣M", "1KK", "9" * 13, "1M\n"):
        with pytest.raises(UsageError, match="is not a size"):
            parse_size(text)
    for text in ("1 s", "s", "1m", "1.", "٣", ".5", "1h30min", "9" * 10, "1s\n"):
        with pytest.raises(UsageError, match="is not a time"):
            parse_seconds(text)


@pytest.fixture(scope="module")
def begun(place, tiny, tmp_path_factory):
    """A corpus of which nothing is encoded yet, with all options."""
    folder = tmp_path_factory.mktemp("begun") / "tokens"
    settings = {"size": 16, "fps": 12, "start": 0.04, "duration": 1.0, "strict": True, "split": 5}
    plan(str(place / "videos"), folder, pack="1M", tokenizer=str(tiny[1]), **settings)
    return folder


SAME = {
    "--pack": "1M",
    "--size": "16",
    "--fps": "12",
    "--start": "0.04",
    "--duration": "1",
    "--strict": None,
    "--split": "5s",
}
CHANGED = [
    ("with --pack 1M, not with --pack 2M", {"--pack": "2M"}),
    ("with --size 16, not with --size 32", {"--size": "32"}),
    ("with --fps 12, not with --fps 24000/1001", {"--fps": "24000/1001"}),
    ("with --start 0.04, not with --start 0", {"--start": "0"}),
    ("with --duration 1, not with --duration 2", {"--duration": "2"}),
    ("with --split 5, not with --split 6", {"--split": "6"}),
    ("without --lambda, --tokens or --psnr, not with --lambda 0.5", {"--lambda": "0.5"}),
    ("with --strict, not without --strict", {"--strict": "left out"}),
    *(
        (f"with {name} {value}, not without {name}", {name: "left out"})
        for name, value in (("--size", 16), ("--fps", 12), ("--duration", 1), ("--split", 5))
    ),
]


def words_of(options):
    """Return options as words; the value None stands for a switch."""
    given = {name: value for name, value in options.items() if value != "left out"}
    return [word for pair in given.items() for word in pair if word is not None]


@pytest.mark.parametrize(("message", "changed"), CHANGED, ids=lambda value: str(value)[-40:])
def test_options_of_a_corpus_cannot_be_changed(message, changed, begun, place, tiny):
    before = {path: path.stat().st_mtime_ns for path in begun.rglob("*")}
    words = words_of(SAME | changed)
    stderr = fails(2, message, "encode", place / "videos", "-o", begun, *tiny, *words)
    assert stderr.startswith(f"vqtok: {begun} was begun with") and stderr.count("\n") == 1
    assert stderr.endswith(": use the same options, or another folder\n")
    assert {path: path.stat().st_mtime_ns for path in begun.rglob("*")} == before


def test_other_videos_or_weights_are_refused(begun, place, tiny, tmp_path):
    words = "-o", begun, *words_of(SAME)
    videos = place / "videos"
    message = f"{begun} was begun with the videos {videos}, not with the videos {videos / 'b'}: use"
    fails(2, message, "encode", place / "videos/b", *words, *tiny)
    other = save_tokenizer(tmp_path / "other.safetensors")
    message = "was begun with another tokenizer, weights "
    fails(2, message, "encode", place / "videos", *words, "--tokenizer", other)
    # The same list of files, and the same weights, under other names are the same.
    copy = shutil.copy(tiny[1], tmp_path / "copy.safetensors")
    rows = plan(
        f"{place}/./videos/",
        begun,
        pack=2**20,
        tokenizer=str(copy),
        size=16,
        fps="12",
        start=0.04,
        duration=1,
        strict=True,
        split=5.0,
    )
    assert [row["name"] for row in rows] == ["a.mp4", "b/a.mp4"]


def test_files_are_not_encoded_into_a_corpus(begun, place, tiny):
    before = sorted(begun.rglob("*"))
    for source in ("videos", "videos/a.mp4"):
        for force in ([], ["--force"]):
            stderr = fails(
                2,
                "is a packed corpus: add --pack, or",
                "encode",
                place / source,
                "-o",
                begun,
                *tiny,
                *force,
            )
            assert stderr.count("\n") == 1
    assert sorted(begun.rglob("*")) == before


def test_the_list_of_another_run_is_refused(place, tiny, tmp_path):
    """It was killed before it had written corpus.json."""
    folder = tmp_path / "tokens"
    plan(str(place / "videos/b"), folder, pack="1M", tokenizer=str(tiny[1]))
    (folder / "corpus.json").unlink()
    words = "encode", place / "videos", "-o", folder, *PACK, *tiny
    fails(2, f"{folder / 'clips.jsonl'} lists other clips than there are now", *words)
    assert file_names(folder) == ["clips.jsonl"]
    (folder / "clips.jsonl").unlink()
    assert len(plan(str(place / "videos"), folder, pack="1M", tokenizer=str(tiny[1]))) == 2
    (folder / "corpus.json").unlink()  # the list stays
    assert len(plan(str(place / "videos"), folder, pack="1M", tokenizer=str(tiny[1]))) == 2


def test_status_of_a_corpus_at_any_time(tmp_path, begun):
    assert works("encode", "-o", begun, "--status").stdout.startswith(
        b"0 of 2 clips done, 2 left\n"
    )
    half = write_corpus(tmp_path / "half", sample_clips(), published={0, 2})
    whole = write_corpus(tmp_path / "whole", sample_clips())
    lines = works("encode", "-o", half, "--status").stdout.decode().splitlines()
    assert lines[:2] == ["3 of 5 clips done, 2 left", "2 of 3 shards published"]
    lines = works("encode", "videos", "-o", whole, "--status").stdout.decode().splitlines()
    assert lines[:2] == ["5 of 5 clips done, 0 left", "3 of 3 shards published"]
    (whole / "shards/00001.json").write_text("{")
    fails(
        1, "00001.json is damaged or not the record of a shard", "encode", "-o", whole, "--status"
    )


def test_strange_settings_are_shown(begun, place, tiny, tmp_path):
    folder = shutil.copytree(begun, tmp_path / "tokens")
    words = "encode", place / "videos", "-o", folder, *tiny, *words_of(SAME)
    rates = {"price": 1, "tokens": 0.5}
    edit_json(folder / "corpus.json", lambda value: value["settings"].update(rate=rates))
    fails(2, "was begun with --lambda 1, --tokens 0.5, not without --lambda", *words)


def test_values_in_messages_are_cut_short(begun, place, tiny, tmp_path):
    folder = shutil.copytree(begun, tmp_path / "tokens")
    edit_json(folder / "corpus.json", lambda value: value["settings"].update(sources=["x" * 10**6]))
    words = "encode", place / "videos", "-o", folder, *tiny, *words_of(SAME)
    stderr = fails(2, "xxx...", *words)
    assert len(stderr) < 2000
