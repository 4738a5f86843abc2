"""What is in a packed corpus, read with Python's tarfile."""

import json
import tarfile


def members(folder):
    """Return the token file of each clip of a corpus by the clip's name; fail if one is twice."""
    files, tokens = {}, b""
    for path in sorted((folder / "shards").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                data = tar.extractfile(member).read()
                if member.name.endswith(".json"):
                    name = json.loads(data)["name"]
                    assert name not in files
                    files[name] = tokens
                tokens = data
    return files


def token_files(folder):
    """Return the token files below a folder by the names of their clips."""
    paths = folder.rglob("*.safetensors")
    return {str(p.relative_to(folder))[: -len(".safetensors")]: p.read_bytes() for p in paths}


def shards(folder):
    """Return the bytes of the tars of a corpus."""
    return {path.name: path.read_bytes() for path in (folder / "shards").glob("*.tar")}
