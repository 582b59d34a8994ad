"""The TCP proxy between the nodes of a cluster with faults: one process, told over a unix socket which link has which fault.

Decides: whose connection it is. Each node is told to others under a port of this program and dials from an address of its own, so the
port says who is dialled and the address who dials.
Keeps true: a connection is made on to its node only when neither way is cut; of the connections of one node to one other at most
CONNECTIONS_MAX are kept, the oldest is reset.
In and out: one JSON object in a line each way, then the connection to the control socket ends:

    {"do": "show"}                                                                      what every answer tells
    {"do": "set", "links": [["n1", "n2", {"cut": true, "delay_ms": 5}], ...]}           change these faults, all at once
    {"do": "reset", "links": [["n1", "n2"], ...]}
    {"do": "add", "nodes": [{"name": "n4", "address": "127.0.1.5", "port": 20015, "mesh_port": 20014}, ...]}

    {"faults": [{"from": "n1", "to": "n2", "cut": true, "stall": false, "delay_ms": 5, "rate_kbps": 0}, ...]}
    {"error": "..."}                                                                    and nothing was done

Run by `scripts/cluster start --faults` in the cluster's directory. It keeps nothing: when it ends, the faults end too.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import trio

from kvp2p.supervisor.claims import raise_open_files_limit
from scripts.local_cluster.fault_links import NO_FAULTS, Connection, FaultLink, close, is_established, tune
from scripts.local_cluster.state import HOST

REQUEST_BYTES_MAX = 1024 * 1024  # 32 nodes have 992 links, of about 100 bytes each
# A node dials again when an attempt has been swallowed for 5 s. What is eight attempts old has been given up at both ends; guess.
CONNECTIONS_MAX = 8
BACKLOG = 128


class Route(NamedTuple):
    """A node: the address it dials from, the port that others are told, and the one it listens on itself."""

    name: str
    address: str
    port: int
    mesh_port: int


class FaultProxy:
    """The links of a cluster and the connections through them. `run` first."""

    def __init__(self) -> None:
        self.links: dict[tuple[str, str], FaultLink] = {}
        self._routes: dict[str, Route] = {}  # by address
        self._kept: dict[tuple[str, str], list[_Kept]] = {}  # by who dialled whom, oldest first
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Relay until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    def add(self, route: Route) -> Route:
        """Take a node in and listen for it, if it is not known; port 0 is replaced by the one that was given.

        Raises ValueError when another node has its name or address, OSError when the port is taken.
        """
        assert self._nursery is not None, "run comes first"
        for known in self._routes.values():
            if route == known:
                return known
            if route.name == known.name or route.address == known.address:
                raise ValueError(f"{known.name} with the address {known.address} is here already, not {route}")
        listener = tune(socket.socket())
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((HOST, route.port))
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
        route = route._replace(port=listener.getsockname()[1])
        for known in self._routes.values():
            for pair in ((route.name, known.name), (known.name, route.name)):
                self.links[pair] = FaultLink(*pair)
        self._routes[route.address] = route
        self._nursery.start_soon(self._listen, listener, route)
        return route

    def faults(self) -> list[dict[str, Any]]:
        """Return the links that have any."""
        return [
            {"from": link.source, "to": link.target, **link.faults._asdict()}
            for link in self.links.values()
            if link.faults != NO_FAULTS
        ]

    # --- connections

    async def _listen(self, listener: socket.socket, route: Route) -> None:
        async def answer(stream: trio.SocketStream) -> None:
            await self._answer(tune(socket.socket(fileno=stream.socket.detach())), route)

        await trio.serve_listeners(answer, [trio.SocketListener(trio.socket.from_stdlib_socket(listener))])

    async def _answer(self, near: socket.socket, route: Route) -> None:
        """Serve a connection of one node to another."""
        try:
            dialler = self._routes.get(near.getpeername()[0])
            there = self.links.get((dialler.name, route.name)) if dialler is not None else None
            if dialler is None or there is None:
                _say(f"{near.getpeername()} is no node that could dial {route.name}")
                return
            back = self.links[route.name, dialler.name]
            with self._keeping(dialler.name, route.name) as kept, kept.scope:
                while there.faults.cut or back.faults.cut:
                    await (there if there.faults.cut else back).until_whole()
                if not is_established(near):
                    return  # the dialler has given up
                far = await _connect(dialler.address, route.mesh_port)
                kept.connection = Connection(there, back, near, far)
                await kept.connection.run()
        except OSError as error:
            _say(f"a connection to {route.name} came to nothing: {error}")
        finally:
            close(near, by_reset=True)

    @contextmanager
    def _keeping(self, dialler: str, dialled: str) -> Iterator[_Kept]:
        kept = self._kept.setdefault((dialler, dialled), [])
        if len(kept) >= CONNECTIONS_MAX:
            kept.pop(0).end()
        mine = _Kept()
        kept.append(mine)
        try:
            yield mine
        finally:
            with suppress(ValueError):  # it was the oldest of too many
                kept.remove(mine)

    # --- control

    async def serve_control(self, path: str, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer on a unix socket (relative, for its length), which nobody but its owner may connect to."""
        listener = _listen_at(path)
        task_status.started()
        await trio.serve_listeners(self._serve_request, [trio.SocketListener(trio.socket.from_stdlib_socket(listener))])

    async def _serve_request(self, stream: trio.SocketStream) -> None:
        request = b""
        try:
            async with stream:
                while not request.endswith(b"\n"):
                    data = await stream.receive_some(65_536)
                    request += data
                    if not data or len(request) > REQUEST_BYTES_MAX:
                        return
                await stream.send_all(json.dumps(self._answer_to(request)).encode() + b"\n")
        except trio.BrokenResourceError:
            pass  # whoever asked has gone

    def _answer_to(self, request: bytes) -> dict[str, Any]:
        try:
            self._do(json.loads(request))
        except (ValueError, LookupError, TypeError, OSError) as error:
            return {"error": f"{type(error).__name__}: {error}"}
        return {"faults": self.faults()}

    def _do(self, request: dict[str, Any]) -> None:
        match request["do"]:
            case "show":
                pass
            case "set":
                changes = [(self.links[source, target], faults) for source, target, faults in request["links"]]
                changed = [(link, link.faults._replace(**faults)) for link, faults in changes]  # all or none
                for link, faults in changed:
                    link.set(faults)
            case "reset":
                for link in [self.links[source, target] for source, target in request["links"]]:
                    link.reset()
            case "add":
                for node in request["nodes"]:
                    self.add(Route(**node))
            case unknown:
                raise ValueError(f"{unknown!r} is nothing to do")


class _Kept:
    """A connection, or one that waits to be made on."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.connection: Connection | None = None

    def end(self) -> None:
        """Reset it."""
        if self.connection is None:
            self.scope.cancel()
        else:
            self.connection.reset()


async def _connect(address: str, port: int) -> socket.socket:
    """Connect from the dialler's own address, so that the dialled node sees it."""
    with ExitStack() as stack:
        end = tune(stack.enter_context(socket.socket()))
        end.bind((address, 0))
        with suppress(BlockingIOError):
            end.connect((HOST, port))
        await trio.lowlevel.wait_writable(end)
        error = end.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))
        stack.pop_all()
        return end


def _listen_at(path: str) -> socket.socket:
    Path(path).unlink(missing_ok=True)  # left by the proxy before; the state file says that it does not run
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    Path(path).chmod(0o600)
    listener.listen(BACKLOG)
    return listener


def _say(text: str) -> None:
    print(text, flush=True)


async def _serve(path: str) -> None:
    proxy = FaultProxy()
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.run)
        await nursery.start(proxy.serve_control, path)


if __name__ == "__main__":
    raise_open_files_limit()
    trio.run(_serve, sys.argv[1])
