"""Use an installed vqtok: encode, decode and stats of a clip give what the checkout gives.

    python -I scripts/try_wheel.py CHECKOUT

Run it outside of the checkout, with the Python of the environment that vqtok is installed in, as
scripts/try_wheel.sh does.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from importlib.metadata import requires, version
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

SIZE = 90  # short side in pixels, for speed


def vqtok(*words: str | Path, checkout: Path | None = None) -> bytes:
    """Run a command of the installed package, or of a checkout, and return its output."""
    program = [Path(sys.executable).parent / "vqtok"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if checkout is not None:
        program = [sys.executable, "-m", "vqtok"]
        environment["PYTHONPATH"] = str(checkout)
    result = subprocess.run([*program, *words], env=environment, stdout=subprocess.PIPE)
    if result.returncode:
        sys.exit(f"vqtok {' '.join(map(str, words))} ended with {result.returncode}")
    return result.stdout


def check(name: str, found: object, expected: object) -> None:
    """End the program if they differ."""
    if found != expected:
        sys.exit(f"{name}: {found}, expected {expected}")


def check_package(checkout: Path) -> None:
    """Check that the package is the installed one, whole, of the version of the checkout."""
    package = Path(str(files("vqtok")))
    if checkout in package.parents or Path(sys.prefix) not in package.parents:
        sys.exit(f"vqtok is imported from {package}, not from the environment {sys.prefix}")
    names = ["py.typed", *(f"configs/{file.name}" for file in checkout.glob("configs/*"))]
    check("files that are missing", [n for n in names if not (package / n).is_file()], [])
    source = (checkout / "vqtok" / "__init__.py").read_text()
    expected = re.search('__version__ = "(.*)"', source)[1]
    check("vqtok.__version__", __import__("vqtok").__version__, expected)
    check("vqtok --version", vqtok("--version").decode().strip(), f"vqtok {expected}")
    module = subprocess.check_output([sys.executable, "-I", "-m", "vqtok", "--version"], text=True)
    check("python -m vqtok --version", module.strip(), f"vqtok {expected}")


def check_commands(clip: Path, checkout: Path) -> None:
    """Check encode, decode and stats against the clip, and against the commands of the checkout."""
    import av

    from vqtok import encode_video, read_tokens

    def frames(path: str | Path) -> tuple[int, int, int]:
        with av.open(str(path)) as container:
            sizes = [(frame.height, frame.width) for frame in container.decode(video=0)]
        return len(sizes), *sizes[0]

    encode = "encode", clip, "--size", str(SIZE), "--quiet", "-o"
    vqtok(*encode, "tokens.safetensors")
    vqtok(*encode, "checkout.safetensors", checkout=checkout)
    same = Path("tokens.safetensors").read_bytes() == Path("checkout.safetensors").read_bytes()
    check("tokens equal to those of the checkout", same, True)
    tokens = read_tokens("tokens.safetensors")
    count, height, width = frames(clip)
    expected = count, SIZE, SIZE * width // height
    check("frames", (tokens.frames, tokens.height, tokens.width), expected)
    again = encode_video(clip, size=SIZE)
    check("indices of encode_video", bool((again.indices == tokens.indices).all()), True)
    vqtok("decode", "tokens.safetensors", "-o", "decoded.mp4", "--quiet")
    check("decoded frames", frames("decoded.mp4"), expected)
    stats = json.loads(vqtok("stats", "tokens.safetensors", "--json"))
    found = {key: stats[key] for key in ("files", "frames", "model")}
    check("stats", found, {"files": 1, "frames": tokens.frames, "model": tokens.model})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path)
    checkout = parser.parse_args().checkout.resolve()
    check_package(checkout)
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        check_commands(checkout / "scripts" / "demo.mp4", checkout)
    direct = [re.match("[A-Za-z]+", r)[0] for r in requires("vqtok") if "extra ==" not in r]
    print("works with", ", ".join(f"{name} {version(name)}" for name in sorted(direct)))


if __name__ == "__main__":
    main()
