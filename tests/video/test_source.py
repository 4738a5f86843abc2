"""Only the named file is read, whatever it contains and whatever it is called."""

import io
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import av
import numpy as np
import pytest

from helpers.clips import pattern, read_clip, write_clip
from helpers.ffmpeg import run_ffmpeg
from vqtok.errors import VqtokError
from vqtok.files import MEDIA_SUFFIXES
from vqtok.video import open_video
from vqtok.video.container import open_container

DASH = (
    '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" profiles="urn:mpeg:dash:profile:isoff-live:2011">'
    '<Period><AdaptationSet><Representation id="0"><BaseURL>{}</BaseURL></Representation>'
    "</AdaptationSet></Period></MPD>"
)
# What refers to another file, or opens ports; {} is the path of a clip.
REFERENCES = {
    "concat": "ffconcat version 1.0\nfile {}\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n",
    "endless hls": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n",
    "dash": DASH,
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "rtsp": "[Reference]\nRef1=rtsp://127.0.0.1/{}\n",
    "vobsub": "# VobSub index file, v7 (do not modify this line!)\nsize: 64x48\n# {}\n",
    "svg": '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><image href="{}"/></svg>',
    "metadata": ";FFMETADATA1\ntitle={}\n",
    "text": "{}\n" * 99,
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A clip that playlists name."""
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", pattern(3))


def assert_refused(source):
    with pytest.raises(VqtokError, match="is not a video but text; playlists are not read"):
        read_clip(source)


@pytest.mark.parametrize("suffix", [".mp4", ".m3u8", ".ffconcat", ".sdp", ".mpd", ".txt"])
@pytest.mark.parametrize("kind", REFERENCES)
def test_what_names_another_file_is_refused(tmp_path, clip, kind, suffix):
    path, data = tmp_path / f"list{suffix}", REFERENCES[kind].replace("{}", str(clip)).encode()
    path.write_bytes(data)
    assert_refused(path)
    assert_refused(io.BytesIO(data))
    with path.open("rb") as file:
        assert_refused(file)
    with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as cat:
        assert_refused(cat.stdout)


def test_planes_in_files_of_their_own_are_refused(tmp_path):
    for suffix in "Y", "U", "V":
        (tmp_path / f"a.{suffix}").write_bytes(bytes(352 * 288))
    with pytest.raises(VqtokError, match=r"a.Y refers to other files, which are not read"):
        read_clip(tmp_path / "a.Y")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tga", ".tiff", ".mp4", ".y4m"])
def test_a_name_is_no_pattern(tmp_path, suffix):
    red, lime = tmp_path / f"img001{suffix}", tmp_path / f"lime{suffix}"
    for path in red, lime:
        color = {red: "red", lime: "lime"}[path]
        run_ffmpeg("-f", "lavfi", "-i", f"color={color}:s=16x16", "-frames:v", "1", path)
    for name in ("50% off", "100%d", "img%03d", "a*?[1-2]", "{a,b}", "http:a"):
        path = tmp_path / f"{name}{suffix}"
        path.write_bytes(lime.read_bytes())
        with path.open("rb") as file:
            for source in path, file:
                assert np.abs(read_clip(source)[0].mean((0, 1, 2)) - [0, 255, 0]).max() < 12
        path.write_bytes(b"no picture")
        with pytest.raises(VqtokError, match=r"has no frame|is not a video"):
            read_clip(path)


def test_every_format_that_ffmpeg_writes_is_read(tmp_path):
    source = ["-f", "lavfi", "-i", "testsrc2=size=176x144:rate=25:duration=0.08"]
    read = []
    for suffix in sorted(MEDIA_SUFFIXES):
        path = tmp_path / f"a{suffix}"
        with suppress(subprocess.CalledProcessError):  # it only reads this one
            run_ffmpeg(*source, path)
            with av.open(f"file:{path}") as expected, open_container(path) as container:
                assert container.format.name == expected.format.name, suffix
                assert container.streams.video[0].codec_context.name, suffix
            read.append(suffix)
    assert len(read) > 40


def test_a_copy_of_a_pipe_does_not_outlive_a_killed_process(tmp_path, clip):
    program = """if True:
        import os, signal, sys
        from vqtok.video import open_video
        with open_video(sys.stdin.buffer) as clip:
            os.kill(os.getpid(), signal.SIGKILL)
    """
    process = subprocess.run(
        [sys.executable, "-c", program],
        input=clip.read_bytes(),
        env=os.environ | {"TMPDIR": str(tmp_path)},
        check=False,
    )
    assert process.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["a\0b.mp4", Path("/dev/zero"), Path("/dev/null")], ids=repr)
def test_odd_paths_are_refused_in_one_sentence(path):
    with pytest.raises(VqtokError, match=str(path)), open_video(path):
        pass
