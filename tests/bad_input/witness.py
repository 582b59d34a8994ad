"""Honest clients beside the bad ones, and the memory of the nodes' processes: a process of its own, so that nobody's load is charged to it but the nodes'.

    python -m tests.bad_input.witness JSON

A few clients read and write at both nodes, each at a fixed pace, and check every answer. A latency is counted from the moment that the pace gives, so a stall is
charged to all that it delays. Writes one JSON array a line: [kind, when it was due by CLOCK_MONOTONIC, latency in ms, what was wrong or "", number of the client],
and ["memory", CLOCK_MONOTONIC, {process: RssAnon in KiB}]. Ends with its standard input.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CLIENTS = 4
INTERVAL_S = 0.05  # of each client
MEMORY_S = 0.1
TIMEOUT_S = 10.0
KEYS = 32


def rss_anon_kib(process_id: int) -> int:
    """Return the anonymous memory of a process, 0 when it is gone."""
    try:
        status = Path(f"/proc/{process_id}/status").read_text(encoding="ascii")
    except OSError:
        return 0
    found = re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found.group(1)) if found else 0


class Connection:
    """One kept connection to a data port."""

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._token = token
        self._socket: socket.socket | None = None

    def ask(self, method: str, target: str, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
        """Ask, and return status, headers and body. Raises OSError or ValueError; the next call connects again."""
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self._port), TIMEOUT_S)
        head = f"{method} {target} HTTP/1.1\r\nHost: kv\r\nAuthorization: Bearer {self._token}\r\nContent-Length: {len(body)}\r\n\r\n"
        try:
            self._socket.sendall(head.encode("ascii") + body)
            return self._answer()
        except (OSError, ValueError):
            self._socket.close()
            self._socket = None
            raise

    def _answer(self) -> tuple[int, dict[str, str], bytes]:
        received = b""
        while b"\r\n\r\n" not in received:
            received += self._more()
        head, _, body = received.partition(b"\r\n\r\n")
        start, *lines = head.decode("ascii").split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        while len(body) < int(headers["content-length"]):
            body += self._more()
        return int(start.split(" ")[1]), headers, body

    def _more(self) -> bytes:
        assert self._socket is not None
        data = self._socket.recv(65_536)
        if not data:
            raise ConnectionResetError("the node closed the connection")
        return data


class Client:
    """One honest client: its operations, one after the other, with keys of its own."""

    def __init__(self, number: int, ports: list[int], token: str, namespace: str) -> None:
        self._prefix = f"c{number}-"
        self._base = f"/v1/{namespace}"
        self._near, self._far = (Connection(port, token) for port in ports)  # at the leader, at another node
        self._last: tuple[str, bytes] | None = None
        self._writes = 0
        self.operations: list[tuple[str, Callable[[], str]]] = [
            ("put", lambda: self._put(self._far)),
            ("get", lambda: self._get(self._far)),
            ("list", lambda: self._list(self._near)),
            ("put", lambda: self._put(self._near)),
            ("get", lambda: self._get(self._near)),
        ]

    def _put(self, connection: Connection) -> str:
        self._writes += 1
        key, value = f"{self._prefix}{self._writes % KEYS}", b"%d" % self._writes * 10
        status, headers, body = connection.ask("PUT", f"{self._base}/{key}", value)
        # What this node may be asked for next: an answer that is pending says that it does not show it yet.
        self._last = (key, value) if status == 200 and "kv-visible" not in headers else None
        return "" if status == 200 else f"{status} {body.decode()}"

    def _get(self, connection: Connection) -> str:
        if self._last is None:
            return ""
        key, value = self._last
        status, _, body = connection.ask("GET", f"{self._base}/{key}")
        return "" if (status, body) == (200, value) else f"{status} {body[:100]!r} instead of {value!r}"

    def _list(self, connection: Connection) -> str:
        status, _, body = connection.ask("GET", f"{self._base}?prefix={self._prefix}")
        return "" if status == 200 and len(json.loads(body)["keys"]) <= KEYS else f"{status} {body[:100]!r}"


class Record:
    """The file that it all goes to, one line at a time."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._lock = threading.Lock()

    def write(self, *row: object) -> None:
        with self._lock:
            self._file.write(json.dumps(row) + "\n")


def run(number: int, client: Client, record: Record) -> None:
    """Do one operation after the other, each at its time."""
    begin = time.monotonic() + number * INTERVAL_S / CLIENTS
    for count in itertools.count():
        due = begin + count * INTERVAL_S
        time.sleep(max(0.0, due - time.monotonic()))
        kind, operate = client.operations[count % len(client.operations)]
        try:
            wrong = operate()
        except (OSError, ValueError) as error:
            wrong = repr(error)
        record.write(kind, due, round((time.monotonic() - due) * 1_000, 3), wrong, number)


def main() -> None:
    place: dict[str, Any] = json.loads(sys.argv[1])
    record = Record(Path(place["record"]))
    for number in range(CLIENTS):
        client = Client(number, place["ports"], place["token"], place["namespace"])
        threading.Thread(target=run, args=(number, client, record), daemon=True).start()
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    while True:
        memory = {name: rss_anon_kib(process_id) for name, process_id in place["processes"].items()}
        record.write("memory", time.monotonic(), memory)
        time.sleep(MEMORY_S)


if __name__ == "__main__":
    main()
