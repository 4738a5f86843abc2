"""The walls of the house: which module may know which."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vqtok"
BASE = {"errors", "files"}
MAY_IMPORT = {
    "__init__": set(),
    "errors": set(),
    "files": {"errors"},
    "distributed": set(),
    "precision": set(),
    "interrupt": set(),
    "device": {"errors"},
    "config": BASE,
    "options": BASE,
    "video": BASE,
    "tokens": BASE,
    "quantizers": BASE | {"config", "distributed", "precision"},
    "model": BASE | {"config", "device", "distributed", "precision", "quantizers"},
    "codebook_stats": BASE | {"tokens"},
    "pipeline": BASE | {"device", "model", "precision", "tokens", "video"},
    "quality": BASE | {"codebook_stats", "model", "precision", "video"},
    "report": BASE | {"codebook_stats", "config"},
    "training": BASE
    | {"codebook_stats", "config", "distributed", "interrupt", "model", "pipeline", "precision"}
    | {"quality", "video"},
    "commands": BASE
    | {"codebook_stats", "device", "distributed", "interrupt", "model", "pipeline", "quality"}
    | {"quantizers", "report"}
    | {"tokens", "training", "video"},
    "cli": BASE | {"commands", "options", "pipeline"},
    "__main__": {"cli"},
}


def imports(path):
    """The modules of ours that a file imports, without those only for type checking."""
    tree = ast.parse(path.read_text())
    skipped = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not any(a.name.startswith("vqtok.") for a in node.names)  # write: from vqtok
        if isinstance(node, ast.ImportFrom) and node not in skipped and node.module:
            if node.module == "vqtok":
                names = {a.name for a in node.names}
                yield from (n for n in names if n in MAY_IMPORT)
            elif node.module.startswith("vqtok."):
                yield node.module.split(".")[1]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_imports_point_one_way(path):
    module = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert set(imports(path)) - {module} <= MAY_IMPORT[module]


@pytest.mark.parametrize("module", MAY_IMPORT)
def test_no_import_is_allowed_that_nobody_uses(module):
    paths = (PACKAGE / module).rglob("*.py") if (PACKAGE / module).is_dir() else ()
    paths = [*paths, *PACKAGE.glob(f"{module}.py")]
    assert paths
    assert MAY_IMPORT[module] - BASE <= {name for path in paths for name in imports(path)}


@pytest.mark.parametrize("heavy", ["torch", "av", "rich.table", "pydantic"])
def test_the_command_line_starts_without_what_is_slow(heavy):
    code = f"import sys, vqtok.cli; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
