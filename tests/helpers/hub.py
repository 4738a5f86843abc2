"""A stand-in for the Hugging Face Hub: the requests that huggingface_hub sends, on a local port."""

import base64
import hashlib
import json
import os
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import unquote

from helpers.command import in_subprocess

TOKEN = "hf_of_the_owner"


class StandIn(ThreadingHTTPServer):
    """Repositories in memory. requests: what came, such as "HEAD /org/name/resolve/main/file"."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories, self.objects, self.requests = {}, {}, []
        self.down = False

    def add(self, name, files, branch="main", private=False, gated=False):
        """Commit files to a repository, and return the hash of the commit."""
        new = SimpleNamespace(branches={}, commits={}, private=private, gated=gated)
        repository = self.repositories.setdefault(name, new)
        before = repository.commits.get(repository.branches.get(branch), {})
        commit = hashlib.sha1(f"{name} {len(repository.commits)}".encode()).hexdigest()
        repository.commits[commit] = before | files
        repository.branches[branch] = commit
        return commit


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _handle(self):
        path = self.path.partition("?")[0]
        self.server.requests.append(f"{self.command} {path}")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.is_owner = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if self.server.down:
            return self._answer(503)
        for pattern, method in _ROUTES.items():
            if match := re.fullmatch(pattern, f"{self.command} {path}"):
                return method(self, *map(unquote, match.groups()))
        return self._answer(404)

    do_HEAD = do_GET = do_POST = do_PUT = _handle

    def _answer(self, status, content=b"", **headers):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(data), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _refuse(self, status, code):
        self._answer(status, {"error": code}, X_Error_Code=code)

    def resolve(self, name, revision, file):
        repository = self.server.repositories.get(name)
        if repository is None or (repository.private and not self.is_owner):
            return self._refuse(404 if self.is_owner else 401, "RepoNotFound")
        if repository.gated:
            return self._refuse(403 if self.is_owner else 401, "GatedRepo")
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            return self._refuse(404, "RevisionNotFound")
        content = repository.commits[commit].get(file)
        if content is None:
            return self._refuse(404, "EntryNotFound")
        etag = hashlib.sha256(content).hexdigest()
        return self._answer(200, content, ETag=f'"{etag}"', X_Repo_Commit=commit)

    def create(self):
        if not self.is_owner:
            return self._refuse(401, "Unauthorized")
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        url = {"url": f"{self.server.url}/{name}"}
        if name in self.server.repositories:
            return self._answer(409, url)
        private = asked.get("private") or asked.get("visibility") == "private"
        self.server.add(name, {".gitattributes": b""}, private=private)
        return self._answer(200, url)

    def branch(self, name, branch):
        repository = self.server.repositories[name]
        if branch in repository.branches:
            return self._refuse(409, "Conflict")
        repository.branches[branch] = repository.branches["main"]
        return self._answer(201, {})

    def validate(self):
        if "license: unheard-of" in json.loads(self.body)["content"]:
            return self._answer(400, {"errors": [{"message": '"license" must be one of these'}]})
        return self._answer(200, {"errors": [], "warnings": []})

    def preupload(self, name, branch):
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(self.body)["files"]
        ]
        self._answer(200, {"files": files})

    def lfs(self, name):
        objects = [
            each | {"actions": {"upload": {"href": f"{self.server.url}/lfs/{each['oid']}"}}}
            for each in json.loads(self.body)["objects"]
        ]
        self._answer(200, {"transfer": "basic", "objects": objects})

    def put(self, oid):
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.server.objects[oid] = self.body
        self._answer(200)

    def commit(self, name, branch):
        if not self.is_owner:
            return self._refuse(403, "Forbidden")
        files = {}
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
        oid = self.server.add(name, files, branch)
        url = f"{self.server.url}/{name}/commit/{oid}"
        return self._answer(200, {"commitUrl": url, "commitOid": oid})

    def info(self, name):
        repository = self.server.repositories.get(name)
        if repository is None:
            return self._refuse(404, "RepoNotFound")
        return self._answer(
            200, {"id": name, "sha": repository.branches["main"], "private": repository.private}
        )


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES = {
    rf"(?:HEAD|GET) /{_NAME}/resolve/([^/]+)/(.+)": _Handler.resolve,
    r"POST /api/repos/create": _Handler.create,
    rf"POST /api/models/{_NAME}/branch/([^/]+)": _Handler.branch,
    r"POST /api/validate-yaml": _Handler.validate,
    rf"POST /api/models/{_NAME}/preupload/([^/]+)": _Handler.preupload,
    rf"POST /{_NAME}\.git/info/lfs/objects/batch": _Handler.lfs,
    r"PUT /lfs/(\w+)": _Handler.put,
    rf"POST /api/models/{_NAME}/commit/([^/]+)": _Handler.commit,
    rf"GET /api/models/{_NAME}": _Handler.info,
}


@contextmanager
def stand_in():
    """Run a stand-in in a thread."""
    with StandIn() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def environment(url, cache, **variables):
    """The environment of a process that asks the hub at `url`; huggingface_hub reads it once."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING_FACE"))}
    own = {"HF_ENDPOINT": url, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    return inherited | own | {"NO_PROXY": "127.0.0.1"} | variables


def asking(url, cache, **variables):
    """Return how `works` and `fails` run a command that asks the hub at `url`."""

    def run(*args, **options):
        return in_subprocess(*args, env=environment(url, cache, **variables), **options)

    return run
