"""A stand-in for the hub on the loopback: one data set whose files lie in memory.

It answers what huggingface_hub's file system asks, by the hub's public API.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from werkzeug.exceptions import NotFound
from werkzeug.routing import Map, Rule
from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response

REPO = "datasets/ann/pets"
COMMIT = "0" * 40

ROUTES = Map(
    [
        Rule(f"/api/{REPO}", endpoint="about"),
        Rule(f"/api/{REPO}/revision/main", endpoint="about"),
        Rule(f"/api/{REPO}/paths-info/main", endpoint="found"),
        Rule(f"/api/{REPO}/preupload/main", endpoint="asked"),
        Rule(f"/api/{REPO}/commit/main", endpoint="commit"),
        Rule(f"/api/{REPO}/tree/main", endpoint="tree"),
        Rule(f"/api/{REPO}/tree/main/<path:path>", endpoint="tree"),
        Rule(f"/{REPO}/resolve/main/<path:path>", endpoint="resolve"),
    ]
)


class Hub:
    """The data set, as a WSGI application."""

    def __init__(self) -> None:
        self.files = dict[str, bytes]()

    def __call__(self, environ: Any, start_response: Any) -> Any:
        request = Request(environ)
        try:
            name, values = ROUTES.bind_to_environ(environ).match()
            answer = getattr(self, name)(request, **values)
        except NotFound:
            answer = Response("{}", 404, {"X-Error-Code": "EntryNotFound"})
        if not isinstance(answer, Response):
            answer = Response(json.dumps(answer), content_type="application/json")
        return answer(environ, start_response)

    def about(self, _: Request) -> object:
        return {"id": "ann/pets", "sha": COMMIT, "private": False, "tags": [], "downloads": 0}

    def asked(self, request: Request) -> object:
        files = request.get_json()["files"]
        return {
            "files": [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in files
            ]
        }

    def commit(self, request: Request) -> object:
        for line in request.get_data().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                content = base64.b64decode(entry["value"]["content"])
                self.files[entry["value"]["path"]] = content
            elif entry["key"] == "deletedFile":
                del self.files[entry["value"]["path"]]
        return {"commitOid": COMMIT, "commitUrl": f"{request.host_url}{REPO}/commit/{COMMIT}"}

    def found(self, request: Request) -> object:
        names = request.get_json()["paths"] if request.is_json else request.form.getlist("paths")
        return [self._entry(name) for name in names if self._entry(name)]

    def tree(self, request: Request, path: str = "") -> object:
        start = f"{path}/" if path else ""
        parts = [name[len(start) :].split("/") for name in self.files if name.startswith(start)]
        if not parts:
            raise NotFound
        deep = request.args.get("recursive", "").lower() == "true"
        below = {
            start + "/".join(names[: depth + 1])
            for names in parts
            for depth in range(len(names) if deep else 1)
        }
        return [self._entry(name) for name in sorted(below)]

    def resolve(self, request: Request, path: str) -> Response:
        if path not in self.files:
            raise NotFound
        content, code, headers = self.files[path], 200, {"X-Repo-Commit": COMMIT}
        if request.range:
            first, end = request.range.range_for_length(len(content)) or (0, len(content))
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(content)}"
            content, code = content[first:end], 206
        return Response(content, code, headers)

    def _entry(self, name: str) -> dict[str, object]:
        """File or folder, in the hub's words; empty where there is neither."""
        if name in self.files:
            content = self.files[name]
            oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            return {"type": "file", "path": name, "size": len(content), "oid": oid}
        if any(other.startswith(f"{name}/") for other in self.files):
            return {"type": "directory", "path": name, "size": 0, "oid": COMMIT}
        return {}


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    """URL of an empty data set of a hub that ends with the module's tests."""
    from huggingface_hub import HfFileSystem, constants

    from dcmpl import storage

    server = make_server("127.0.0.1", 0, Hub(), threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        endpoint = f"http://127.0.0.1:{server.port}"  # HF_ENDPOINT is read when all is imported
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "ENDPOINT", endpoint)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setenv("HF_TOKEN", "hf_not-a-secret")
        HfFileSystem.clear_instance_cache()
        storage._filesystem.cache_clear()
        yield f"hf://{REPO}"
    HfFileSystem.clear_instance_cache()
    storage._filesystem.cache_clear()
    server.shutdown()
    thread.join()
    server.server_close()
