"""What the site has beyond docs/: the reference, model cards, and the source files pages link to.

Links are those that work on GitHub: relative to the file, also out of docs/.
"""

import posixpath
import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]

from reference import api_page, commands_page, settings_page  # noqa: E402

LINK = re.compile(r"(\]\()(?!https?:|#)([^)#\s]+)")
FENCED = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)
LANGUAGES = {".py": "python", ".toml": "toml", ".sh": "sh"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/."""
    pages = {
        "reference/commands.md": commands_page(),
        "reference/settings.md": settings_page(),
        "reference/api.md": api_page(),
    }
    cards = sorted(ROOT.glob("vqtok/bundled/*.md"))
    pages |= {site_path(card.relative_to(ROOT).as_posix()): card.read_text() for card in cards}
    linked = [file.src_uri for file in files.documentation_pages()]
    for page in [*(f"docs/{path}" for path in linked), *(str(c.relative_to(ROOT)) for c in cards)]:
        for target in targets((ROOT / page).read_text(), page):
            path = site_path(target)
            if path.startswith("source/") and (ROOT / target).is_file():
                pages[path] = source_page(target)
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    for asset in ("style.css", "logo.svg"):
        files.append(File.generated(config, asset, abs_src_path=str(HERE / asset)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return the page with links as they are in the site."""
    here = repository_path(page.file.src_uri)
    folder = posixpath.dirname(page.file.src_uri)

    def to_site(link: re.Match[str]) -> str:
        path = site_path(resolve(link[2], here))
        return link[1] + posixpath.relpath(path, folder or ".")

    parts = FENCED.split(markdown)
    return "".join(part if i % 2 else LINK.sub(to_site, part) for i, part in enumerate(parts))


def targets(markdown: str, page: str) -> set[str]:
    """Return the files of the repository that a page at this path of it links to."""
    links = LINK.findall(FENCED.sub("", markdown))
    return {resolve(link, page) for _, link in links}


def resolve(link: str, page: str) -> str:
    """Return the path in the repository that a link of a page leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def site_path(path: str) -> str:
    """Return where the site has a file of the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path == "README.md":
        return "index.md"
    if path.startswith("vqtok/bundled/"):
        return path.replace("vqtok/bundled", "model-cards")
    return f"source/{path}.md"


def repository_path(path: str) -> str:
    """Return the file of the repository that a page of the site is made from."""
    if path.startswith("model-cards/"):
        return path.replace("model-cards", "vqtok/bundled")
    return f"docs/{path}"


def source_page(path: str) -> str:
    """Return a page that shows a text file of the repository."""
    language = LANGUAGES.get(Path(path).suffix, "text")
    return f"# {path}\n\n````{language}\n{(ROOT / path).read_text()}````\n"
