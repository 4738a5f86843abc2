"""Dependencies point one way, and the command line starts fast."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vqtok"
# Modules and packages from the bottom up, and what each may import besides errors and files.
MAY_IMPORT = {
    "errors": set(),
    "path_lists": {"errors"},
    "files": {"errors", "path_lists"},
    "atomic": set(),
    "untrusted": set(),
    "safetensors_io": {"atomic", "untrusted"},
    "metric_rows": {"untrusted"},
    "__init__": set(),
    "hub": set(),
    "targets": {"hub"},
    "distributed": set(),
    "scheduler": set(),
    "precision": set(),
    "interrupt": set(),
    "device": set(),
    "settings": set(),
    "encoding": set(),
    "config": {"settings", "untrusted"},
    "video": {"atomic", "interrupt"},
    "tokens": {"atomic", "safetensors_io", "untrusted"},
    "corpus": {"atomic", "encoding", "safetensors_io", "tokens", "untrusted"},
    "quantizers": {"settings", "distributed", "precision"},
    "codebook_stats": {"tokens"},
    "export": {"atomic", "tokens"},
    "model": {
        *("config", "settings", "device", "distributed", "encoding", "precision", "quantizers"),
        *("hub", "safetensors_io", "targets", "untrusted"),
    },
    "quality": {"codebook_stats", "device", "encoding", "model", "precision", "video"},
    "pipeline": {"encoding", "model", "precision", "targets", "tokens", "video"},
    "windows": {"corpus", "model", "safetensors_io", "targets", "tokens"},
    "report": {"atomic", "codebook_stats", "config", "metric_rows", "settings", "tokens"},
    "training": {
        *("atomic", "codebook_stats", "config", "distributed", "encoding", "interrupt", "model"),
        *("metric_rows", "pipeline", "precision", "quality", "safetensors_io", "scheduler"),
        *("settings", "untrusted", "video"),
    },
    "corpus_options": {"scheduler"},
    "bulk": {
        *("atomic", "corpus", "corpus_options", "device", "encoding", "model", "pipeline"),
        *("hub", "targets", "tokens", "video"),
    },
    "train_options": set(),
    "push_options": {"hub", "targets"},
    "options": {"encoding", "export", "targets"},
    "streams": set(),
    "command_group": {"interrupt", "streams"},
    "commands": {
        *("atomic", "bulk", "codebook_stats", "corpus", "corpus_options", "device", "distributed"),
        *("encoding", "export", "hub", "interrupt", "metric_rows", "model", "pipeline"),
        *("quality", "settings"),
        *("quantizers", "report", "targets", "tokens", "training", "untrusted", "video"),
    },
    "cli": {
        *("command_group", "commands", "corpus_options", "encoding", "hub", "options", "pipeline"),
        *("push_options", "targets", "train_options"),
    },
    "__main__": {"cli", "interrupt", "streams"},
}
EVERYWHERE = {"errors", "files"}


def imports(path):
    """Yield the vqtok modules that a file imports, except for type checking only."""
    tree = ast.parse(path.read_text())
    type_checking = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not any(a.name.startswith("vqtok.") for a in node.names), "use from ... import"
        if isinstance(node, ast.ImportFrom) and node not in type_checking and node.module:
            if node.module == "vqtok":
                names = {a.name for a in node.names}
                yield from (n for n in names if n in MAY_IMPORT)
            elif node.module.startswith("vqtok."):
                yield node.module.split(".")[1]


def test_imports_are_only_allowed_downwards():
    order = list(MAY_IMPORT)
    for module, allowed in MAY_IMPORT.items():
        assert all(order.index(name) < order.index(module) for name in allowed), module


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_modules_import_only_what_they_may(path):
    module = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert set(imports(path)) - {module} <= MAY_IMPORT[module] | EVERYWHERE


@pytest.mark.parametrize("module", MAY_IMPORT)
def test_every_allowed_import_is_used(module):
    paths = (PACKAGE / module).rglob("*.py") if (PACKAGE / module).is_dir() else ()
    paths = [*paths, *PACKAGE.glob(f"{module}.py")]
    assert paths
    assert MAY_IMPORT[module] <= {name for path in paths for name in imports(path)}


@pytest.mark.parametrize("heavy", ["torch", "av", "numpy", "rich", "pydantic", "huggingface_hub"])
def test_the_command_line_starts_without_slow_imports(heavy):
    code = f"import sys, vqtok, vqtok.cli; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_package_alone_imports_nothing_else():
    code = "import sys, vqtok; print(*(name for name in sys.modules if 'vqtok' in name))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert result.stdout.decode().split() == ["vqtok"]


def test_loading_a_tokenizer_does_not_import_the_compiler_of_torch():
    code = """
import sys, torch
before = set(sys.modules)
import vqtok
vqtok.load()
print(sorted({"sympy", "torch._dynamo", "torch._inductor"} & sys.modules.keys() - before))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert result.stdout == b"[]\n"
