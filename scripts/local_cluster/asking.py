"""What nodes say of themselves, and the document that `start`, `status` and `add` print.

Keeps true: a node that hangs costs its own time only; what it cannot say is null, but `ready` and `leader`, which are
false for a node that does not answer: the document has true or false there.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from scripts.local_cluster.state import HOST, Node, State

HTTP_SECONDS = 5.0  # without a byte; the api process of a node that has just started answers when it is imported
STATUS_FIELDS = ("lag_ms", "state_hash", "vector", "pending_values")


def get(port: int, path: str, token: str = "") -> tuple[int, bytes] | None:
    """Ask a node; None when it does not answer.

    As much of HTTP as our own nodes need: importing the standard library's client takes longer than asking.
    """
    authorization = f"Authorization: Bearer {token}\r\n" if token else ""
    request = f"GET {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\n{authorization}Connection: close\r\n\r\n"
    try:
        with socket.create_connection((HOST, port), timeout=HTTP_SECONDS) as connection:
            connection.sendall(request.encode("ascii"))
            answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    except OSError:
        return None
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    return (int(words[1]), body) if len(words) == 3 and words[1].isdigit() else None


def is_ready(node: Node) -> bool:
    answer = get(node.data_port, "/readyz")
    return answer is not None and answer[0] == 200


def ask_status(state: State, node: Node) -> dict[str, Any] | None:
    """Return what a node says of itself, None when it cannot say it now."""
    answer = get(node.api_port, "/admin/v1/status", state.admin_token)
    if answer is None or answer[0] != 200:
        return None
    try:
        document = json.loads(answer[1])
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def read_pids(node: Node) -> dict[str, Any] | None:
    try:
        pids = json.loads((Path(node.data_dir) / "pids.json").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return pids if isinstance(pids, dict) and pids.get("supervisor") == node.pid else None


def describe(state: State, node: Node, *, fully: bool) -> dict[str, Any]:
    """Return a node's part of the document; `fully` as `status` prints it."""
    is_alive = node.is_alive()
    answers = is_alive and not node.is_stopped()
    says = (ask_status(state, node) if answers else None) or {}
    document: dict[str, Any] = {
        "name": node.name,
        "pid": node.pid if is_alive else None,
        "data_url": f"http://{HOST}:{node.data_port}",
        "api_url": f"http://{HOST}:{node.api_port}",
        "mesh_url": node.mesh_url,
        "data_dir": node.data_dir,
        "leader": says.get("leader") is True,
    }
    if fully:
        document |= {"alive": is_alive, "ready": answers and is_ready(node)}
        document |= {name: says.get(name) for name in STATUS_FIELDS}
        document["pids"] = read_pids(node) if answers else None
        if node.clock_offset_ms is not None:
            document["clock_offset_ms"] = node.clock_offset_ms
    return document


def describe_all(directory: Path, state: State, *, fully: bool) -> dict[str, Any]:
    """Return the document; nodes are asked at the same time."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max_workers=16) as pool:
        nodes = list(pool.map(lambda node: describe(state, node, fully=fully), state.nodes))
    document: dict[str, Any] = {
        "cluster_id": state.cluster_id,
        "account_id": state.account_id,
        "admin_token": state.admin_token,
        "nodes": nodes,
    }
    if state.has_faults:
        document |= describe_faults(directory, state)
    return document


def describe_faults(directory: Path, state: State) -> dict[str, Any]:
    """Return the faults in force; null when the proxy that makes them does not run."""
    from scripts.local_cluster.faults import ask

    if not state.has_proxy():
        return {"proxy_pid": None, "faults": None}
    return {"proxy_pid": state.proxy_pid, "faults": ask(directory, {"do": "show"})}


def print_document(document: dict[str, Any], *, as_json: bool) -> None:
    """Print the document of a cluster."""
    if as_json:
        print(json.dumps(document, indent=1))
        return
    print(f"cluster {document['cluster_id']}  account {document['account_id']}")
    print(f"admin token {document['admin_token']}")
    for node in document["nodes"]:
        print_node(node, as_json=False)
    if "faults" in document:
        from scripts.local_cluster.faults import show_fault

        proxy = f"fault proxy {document['proxy_pid'] or 'does not run'}"
        for line in map(show_fault, document["faults"] or []):
            proxy += f"\n      {line}"
        print(proxy)


def print_node(node: dict[str, Any], *, as_json: bool) -> None:
    """Print one node's part of it."""
    if as_json:
        print(json.dumps(node, indent=1))
        return
    role = "leads" if node["leader"] else ""
    line = f"{node['name']:<5}{node['pid'] or '-':>8}  {node['data_url']}  api {node['api_url']}  {role:<5}"
    if "alive" in node:
        condition = "ready" if node["ready"] else "not ready" if node["alive"] else "not running"
        lag = "-" if node["lag_ms"] is None else f"{node['lag_ms']} ms"
        line += f"  {condition:<11}  lag {lag:<8}  H {(node['state_hash'] or '-')[:12]}"
        if node["pending_values"]:
            line += f"  {node['pending_values']} large on their way"
        if node.get("clock_offset_ms"):
            line += f"  clock {node['clock_offset_ms']:+} ms"
    print(line.rstrip())
