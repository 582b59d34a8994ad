"""Real nodes on disks that fill up or fail: clusters of `scripts/cluster`, asked over HTTP."""

import json
import os
import resource
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from kvp2p.store.check import Damage
from kvp2p.store.scrub import check_store

ROOT = Path(__file__).resolve().parents[2]
WAIT_SECONDS = 40.0
RESERVE_BYTES = 32 * 1024 * 1024  # what a store keeps free for deleting


class Answer(NamedTuple):
    """Status and body; `document` for the answers that are JSON."""

    status: int
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The word for an error, "" when it is none."""
        return str(self.document["error"]["code"]) if self.status >= 400 else ""


def request(method: str, url: str, token: str, body: bytes | None = None, **headers: str) -> Answer:
    """Ask a node once; underscores in the names of headers are hyphens."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    asked = urllib.request.Request(url, body, {"Authorization": f"Bearer {token}", **named}, method=method)  # noqa: S310  loopback
    try:
        with urllib.request.urlopen(asked, timeout=20) as answer:  # noqa: S310  loopback
            return Answer(answer.status, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.read())


def until(what: Callable[[], object], seconds: float = WAIT_SECONDS) -> None:
    """Wait for something; fail when it does not come."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.05)


class Nodes:
    """A cluster; nodes are numbered from 1, and the first one leads."""

    def __init__(self, directory: Path, document: dict[str, Any], environment: Mapping[str, str]) -> None:
        self.directory = directory
        self.token: str = document["admin_token"]
        self.urls: list[str] = [node["data_url"] for node in document["nodes"]]
        self._api_urls = [node["api_url"] for node in document["nodes"]]
        self._environment = environment

    def run(self, *arguments: str) -> str:
        return _run(self.directory, *arguments, environment=self._environment)

    def data_file(self, node: int = 1) -> Path:
        return self.directory / f"n{node}" / "store" / "data.mdb"

    def damage(self, node: int = 1) -> list[Damage]:
        """Check the store of a node, running or not."""
        return check_store(self.data_file(node).parent)

    def log(self, node: int = 1) -> str:
        return (self.directory / f"n{node}" / "log").read_text()

    def pids(self, node: int = 1) -> dict[str, Any]:
        pids: dict[str, Any] = json.loads((self.directory / f"n{node}" / "pids.json").read_text())
        return pids

    def ask(self, method: str, path: str, body: bytes | None = None, node: int = 1, **headers: str) -> Answer:
        return request(method, self.urls[node - 1] + path, self.token, body, **headers)

    def put(self, key: str, value: bytes, node: int = 1, **headers: str) -> Answer:
        return self.ask("PUT", f"/v1/things/{key}", value, node, **headers)

    def get(self, key: str, node: int = 1) -> Answer:
        return self.ask("GET", f"/v1/things/{key}", None, node)

    def status(self, node: int = 1) -> dict[str, Any]:
        document: dict[str, Any] = request("GET", self._api_urls[node - 1] + "/admin/v1/status", self.token).document
        return document

    def leave_room(self, node: int, more_bytes: int) -> None:
        """Let the data file of a node grow by so much, and no further."""
        self._limit(node, self.data_file(node).stat().st_size + more_bytes)

    def lift_limit(self, node: int) -> None:
        self._limit(node, resource.RLIM_INFINITY)

    def _limit(self, node: int, soft: int) -> None:
        pids = self.pids(node)
        for pid in (pids["supervisor"], pids["node"]):  # the former for a node process that it would start again
            _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard if soft == resource.RLIM_INFINITY else soft, hard))


@contextmanager
def running_nodes(directory: Path, count: int, environment: Mapping[str, str] = os.environ) -> Iterator[Nodes]:
    """Run a cluster with a namespace `things`."""
    place = directory / "c"
    try:
        told = _run(place, "start", "--nodes", str(count), "--gateways", "1", "--json", environment=environment)
        nodes = Nodes(place, json.loads(told), environment)
        assert nodes.ask("PUT", "/v1/things").status == 201
        yield nodes
    finally:
        if place.exists():
            _run(place, "stop", environment=os.environ)


def _run(directory: Path, *arguments: str, environment: Mapping[str, str]) -> str:
    command = [sys.executable, str(ROOT / "scripts" / "cluster.py"), *arguments, "--dir", str(directory)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=120, check=True)
    return done.stdout
