"""Text that anyone may have written: short reasons, and no work beyond a limit."""

import pytest

from vqtok.errors import VqtokError
from vqtok.untrusted import MAX_TEXT, parse_json, parse_toml, quote, read_text, shorten

DEEP = 100_000


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("fsq", "'fsq'"),
        ("\x1b[31m", "'\\x1b[31m'"),
        (16**100_000, "a number of thousands of digits"),
        (None, "None"),
    ],
    ids=["word", "escape", "digits", "none"],
)
def test_a_quoted_value_is_printable(value, expected):
    assert quote(value) == expected


def test_messages_are_cut_short():
    deep = []
    for _ in range(DEEP):
        deep = [deep]
    for value in ("x" * 10**6, ["x" * 10**6] * 10**4, deep, {"a": deep}):
        assert len(quote(value)) < 500
    assert shorten("a\x1bb") == "a\\x1bb"
    assert len(shorten("\x1b" * 10**6)) < 500


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * DEEP, "nested too deeply"),
        ('{"a":' * DEEP, "nested too deeply"),
        ('{"a": 1, "a": 2}', "a key is there twice"),
        ("9" * 5000, "digits"),
        ("", "Expecting value"),
        (b"\xff", "not UTF-8 text"),
    ],
    ids=["list", "object", "twice", "digits", "empty", "bytes"],
)
def test_text_that_is_not_json_is_a_value_error(text, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        parse_json(text)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "text",
    ["a = " + "[" * DEEP, ".".join("a" * DEEP) + " = 1", "a = " + "9" * 5000, "[a"],
    ids=["deep", "parts", "digits", "open"],
)
def test_text_that_is_not_toml_is_a_value_error(text):
    with pytest.raises(ValueError) as caught:
        parse_toml(text)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", ["/dev/zero", "none", "nul\0", ".", "n" * 5000])
def test_what_is_no_text_file_is_refused_by_name(name, tmp_path):
    with pytest.raises(VqtokError) as caught:
        read_text(tmp_path / name)
    assert name in str(caught.value) or str(tmp_path) in str(caught.value)


def test_text_has_a_limit_and_is_utf_8(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"a" * MAX_TEXT)
    assert len(read_text(path)) == MAX_TEXT
    path.write_bytes(b"a" * (MAX_TEXT + 1))
    with pytest.raises(VqtokError, match="has more than 1,048,576 bytes"):
        read_text(path)
    path.write_bytes(b"\xff")
    with pytest.raises(VqtokError, match="is not UTF-8 text"):
        read_text(path)
