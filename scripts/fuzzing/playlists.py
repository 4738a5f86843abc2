"""Files that name other files. None may be read."""

from dataclasses import replace

from fuzzing import inputs
from fuzzing.case import Case, Mutation, Random
from fuzzing.values import hostile_text, pick

OTHER = "other.mp4"
LISTS = (
    "ffconcat version 1.0\nfile other.mp4\n",
    "ffconcat version 1.0\nfile 'other.mp4'\nduration 1\ninpoint 0\nfile other.mp4\n",
    "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.mp4\n#EXT-X-ENDLIST\n",
    '#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-MAP:URI="other.mp4"\n#EXTINF:1,\nother.mp4\n#EXT-X-ENDLIST\n',
    "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.mp4\n",  # endless
    "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nother.m3u8\n",
    "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 0 RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
    '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
    '<AdaptationSet mimeType="video/mp4"><Representation id="0" bandwidth="1"><BaseURL>other.mp4'
    "</BaseURL></Representation></AdaptationSet></Period></MPD>",
    '<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="64" height="48">'
    '<image href="other.mp4" width="64" height="48"/></svg>',
    '<CompositionPlaylist xmlns="http://www.smpte-ra.org/schemas/2067-3/2016"/>',
    "# VobSub index file, v7\nsize: 64x48\nid: en, index: 0\ntimestamp: 00:00:00:000, filepos: 0\n",
    "WEBVTT\n\n00:00.000 --> 00:01.000\nother.mp4\n",
    "[Script Info]\nScriptType: v4.00+\n[Events]\nDialogue: 0,0:00:00.00,0:00:01.00,,,,,,,x\n",
    "#!AMR\nother.mp4\n",
    "RTSPtext\r\nrtsp://127.0.0.1:9/x\r\n",
    "[Reference]\r\nRef1=http://127.0.0.1:9/other.mp4\r\n",
    "other.mp4\n",
)
NAMES = (
    *"a a.mp4 a.ffconcat a.m3u8 a.m3u a.sdp a.mpd a.txt a.png a.svg a.idx".split(),
    *"a.vtt a.nfo a.ans a.xml a.mkv a.webm a.concat a.asx -".split(),
)
OUT = "out.safetensors"


def start(random: Random) -> Case:
    """Return a command that reads a playlist, or a name that FFmpeg takes for several files."""
    clip = dict(inputs.videos())
    files = {"tokenizer.safetensors": inputs.tokenizer(), OTHER: clip["clip.mp4"]}
    files["img001.png"] = clip["clip.png"]
    name = pick(random, NAMES)
    if random.random() < 0.1:
        name = pick(random, ("img%03d.png", "img%d.png", "img*.png", "concat:other.mp4"))
    text = pick(random, LISTS)
    if random.random() < 0.2:
        text = "other.mp4".join((text[:20], text[20:]))
    stdin = name == "-"
    subject = "stdin" if stdin else name.replace(":", "")
    args = ("encode", name, "-o", OUT, "--tokenizer", "tokenizer.safetensors")
    if random.random() < 0.2:
        args = ("eval", name, "--json", "--frames", "2", "--tokenizer", "tokenizer.safetensors")
    if name == "img*.png":  # of vqtok: the user names img001.png by it
        args, name = ("encode", "img%03d.png", *args[2:]), "img%03d.png"
        subject = name
    files[subject] = text.encode()
    outputs = (OUT,) if args[0] == "encode" else ()
    return Case(args, files, subject, outputs, stdin=stdin, must_fail=True)


def edit(case: Case, lines: list[str]) -> Case:
    return replace(
        case, files={**case.files, case.subject: "\n".join(lines).encode(errors="replace")}
    )


def repeat_line(case: Case, random: Random) -> Case:
    lines = case.files[case.subject].decode().split("\n")
    at = int(random.integers(len(lines)))
    return edit(case, lines[:at] + lines[at : at + 1] * int(random.integers(2, 500)) + lines[at:])


def drop_line(case: Case, random: Random) -> Case:
    lines = case.files[case.subject].decode().split("\n")
    del lines[int(random.integers(len(lines)))]
    return edit(case, lines)


def replace_name(case: Case, random: Random) -> Case:
    names = (
        "/proc/self/environ",
        "http://127.0.0.1:9/x",
        "file:other.mp4",
        "../b/other.mp4",
        "a.mp4",
        "a.m3u8",
    )
    text = case.files[case.subject].decode()
    return edit(case, text.replace(OTHER, pick(random, names)).split("\n"))


def replace_number(case: Case, random: Random) -> Case:
    text = case.files[case.subject].decode()
    digits = [i for i, letter in enumerate(text) if letter in "0123456789"]
    if not digits:
        return case
    at = pick(random, digits)
    return edit(case, (text[:at] + hostile_text(random) + text[at + 1 :]).split("\n"))


def prepend(case: Case, random: Random) -> Case:
    """Put something before the list that players skip."""
    prefix = pick(random, (b"\xef\xbb\xbf", b"\n\n\n", b" ", b"#", b"\0" * 8))
    return replace(case, files={**case.files, case.subject: prefix + case.files[case.subject]})


MUTATIONS: tuple[Mutation, ...] = (repeat_line, drop_line, replace_name, replace_number, prepend)
