"""Check what scripts/release.sh built: size, content, description and version.

    python scripts/check_release.py DIST           # ends with 1 and a line for each fault
    python scripts/check_release.py DIST --next    # print what is left to do for a release

DIST holds one wheel and one source distribution. The wheel has the package and the configs, the
source distribution all files of the repository except hidden ones.
"""

import argparse
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).parents[1]
MAX_SIZE = 80_000_000  # bytes; PyPI takes 100 MiB
METADATA = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}


def repository_files() -> set[str]:
    """Return the names of the files of the repository that are not hidden."""
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True)
    return {name for name in listed.split("\0") if name and not name.startswith(".")}


def wheel_files() -> set[str]:
    """Return what the wheel should hold besides its metadata."""
    files = repository_files()
    configs = {f"vqtok/{name}" for name in files if name.startswith("configs/")}
    return configs | {name for name in files if name.startswith("vqtok/")}


def content_faults(kind: str, found: set[str], expected: set[str]) -> Iterator[str]:
    """Yield a line for each file that is missing or not expected."""
    for name in sorted(expected - found):
        yield f"{kind}: {name} is missing"
    for name in sorted(found - expected):
        yield f"{kind}: {name} should not be there"


def description_faults(metadata: Message) -> Iterator[str]:
    """Yield a line for each link of the description that leads nowhere on a package index."""
    text = re.sub(r"^```.*?^```", "", str(metadata.get_payload()), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\((?!https?:)([^)]*)\)", text):
        yield f"description: the link {link} leads nowhere on a package index"


def version_faults(version: str) -> Iterator[str]:
    """Yield a line for each file that is not of this version."""
    changelog = (ROOT / "docs" / "CHANGELOG.md").read_text()
    citation = (ROOT / "CITATION.cff").read_text()
    released = re.search(r"^## (\d\S*) - (\S+)$", changelog, re.MULTILINE)
    if released is None or released[1] != version:
        yield f"docs/CHANGELOG.md: the newest version is not {version}"
    elif f"\nversion: {version}\ndate-released: {released[2]}\n" not in citation:
        yield f"CITATION.cff: version and date are not {version} and {released[2]}"


def faults(wheel: Path, sdist: Path) -> Iterator[str]:
    """Yield a line for each fault of the two files."""
    for path in (wheel, sdist):
        if path.stat().st_size > MAX_SIZE:
            yield f"{path.name}: {path.stat().st_size:,} bytes, more than {MAX_SIZE:,}"
    with ZipFile(wheel) as archive:
        info = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = message_from_bytes(archive.read(info))
        folder = info.removesuffix("METADATA")
        expected = wheel_files() | {f"{folder}{name}" for name in METADATA}
        yield from content_faults("wheel", set(archive.namelist()), expected)
    with tarfile.open(sdist) as archive:
        found = {member.name.partition("/")[2] for member in archive if member.isfile()}
        # hatchling always adds the first two.
        yield from content_faults("sdist", found - {".gitignore", "PKG-INFO"}, repository_files())
    yield from description_faults(metadata)
    yield from version_faults(str(metadata["Version"]))


def next_step(wheel: Path, sdist: Path) -> str:
    """Return what is left to do: to upload the two files, or before that can be done."""
    if "\n## Unreleased\n" in (ROOT / "docs" / "CHANGELOG.md").read_text():
        return "docs/CHANGELOG.md has unreleased changes: give them a version before an upload"
    if subprocess.check_output(["git", "status", "--porcelain"], cwd=ROOT):
        return "there are changes that are not committed: commit them before an upload"
    return f"upload with: {sys.executable} -m twine upload {wheel} {sdist}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dist", type=Path)
    parser.add_argument("--next", action="store_true", help="print what is left to do")
    arguments = parser.parse_args()
    (wheel,), (sdist,) = arguments.dist.glob("*.whl"), arguments.dist.glob("*.tar.gz")
    if arguments.next:
        print(next_step(wheel, sdist))
        return
    found = list(faults(wheel, sdist))
    if found:
        sys.exit("\n".join(found))
    for path in (wheel, sdist):
        print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
