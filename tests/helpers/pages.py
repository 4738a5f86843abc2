"""The pages of the documentation, and what is in them."""

import re

from helpers import ROOT

README = ROOT / "README.md"
PAGES = [README, *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("vqtok/bundled/*.md"))]


def blocks(page, *languages):
    """The contents of the fenced code blocks in these languages."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    return [code for language, code in fenced if language in languages]


def prose(page):
    """The page without its fenced code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def inline_code(page):
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(page))]


def command_lines(page):
    """The lines of shell blocks, continuation lines joined."""
    text = "".join(blocks(page, "sh")).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip()]
