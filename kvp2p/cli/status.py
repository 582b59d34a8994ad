"""`kvp2p status`: what each member says of itself, side by side.

Decides: what is asked of whom: the roster of one node, then every member's own API port, all at the same time.
Keeps true: a member that does not answer is shown as that, and costs 2 s once, however many there are. What another node says is
    never shown as a member's: an address may have gone to somebody else.
In and out: `/admin/v1/members` and each `/admin/v1/status` in; a table or JSON out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import typer

from kvp2p.cli.failures import Failure
from kvp2p.cli.output import columns_shown, print_table, say
from kvp2p.cli.session import Json, Session, Token, Url, print_json, session_of

ANSWER_TIMEOUT_S: Final = 2.0  # guess: a healthy node takes milliseconds, a person waits this long gladly
WIDE_COLUMNS: Final = 120  # from here on there is room for addresses
COLUMNS: Final = ("NODE", "ID", "ROLE", "READY", "LAG", "SKEW", "KEYS", "VECTOR", "H")

_DESIGNATED: Final = {"hearing": "hearing", "catching_up": "catching up", "taking_over": "taking over"}  # to lead soon
_ANOTHER: Final = "another node answers there"


def status(context: typer.Context, url: Url = None, token: Token = None, as_json: Json = False) -> None:
    """Show all nodes: who leads, how far behind each is, and whether their data are equal.

    ID is the beginning of the node's id. VECTOR is the number of logs that the node has,
    and the last 8 digits of the newest position; H is the beginning of its state hash.
    Two nodes with the same vector and different H disagree: that is a fault.
    Wide terminals are shown the data addresses, too; --json shows everything in full.
    Example:
      kvp2p status
    """
    session = session_of(context, url, token, as_json)
    health = _first(session, f"{session.url}/healthz")
    members: list[dict[str, Any]] = _first(session, f"{health['api_url']}/admin/v1/members")["members"]
    members.sort(key=lambda member: (member["name"], member["node_id"]))
    told = _ask(session, members)
    if session.as_json:
        print_json({"cluster_id": health["cluster_id"], "members": told})
        return
    width = columns_shown()
    is_wide = width is None or width >= WIDE_COLUMNS
    rows = [(*_row(one), one["data_url"]) if is_wide else _row(one) for one in told]
    print_table((*COLUMNS, "DATA") if is_wide else COLUMNS, rows, folds="NODE")
    _remark(told)


def _first(session: Session, url: str) -> dict[str, Any]:
    """Read from the node that was named; it has no longer than the others."""
    (told,) = session.read_each([url], ANSWER_TIMEOUT_S)
    if isinstance(told, Failure):
        raise told
    return told


def _ask(session: Session, members: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return each member's row of the roster with its own `status`, or with `error`."""
    answers = session.read_each([f"{member['api_url']}/admin/v1/status" for member in members], ANSWER_TIMEOUT_S)
    told = []
    for member, says in zip(members, answers, strict=True):
        if isinstance(says, Failure):
            told.append({**member, "status": None, "error": says.message})
        elif says.get("node_id") != member["node_id"]:
            told.append({**member, "status": None, "error": _ANOTHER})
        else:
            told.append({**member, "status": says, "error": None})
    return told


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    says = one["status"]
    short_id = one["node_id"][:8]
    if says is None:
        return (one["name"], short_id, "?", "other node" if one["error"] == _ANOTHER else "no answer", *("-" * 5))
    keys = sum(namespace["keys"] for namespace in says["namespaces"])
    return (
        one["name"],
        short_id,
        "leader" if says.get("leader") is True else _DESIGNATED.get(says.get("role"), "replica"),
        {True: "yes", False: "no"}.get(says.get("ready"), "-"),
        _milliseconds(says.get("lag_ms")),
        _milliseconds(says.get("skew_ms")),
        str(keys),
        _vector(says.get("vector") or {}),
        (says.get("state_hash") or "-")[:8],
    )


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"


def _milliseconds(value: object) -> str:
    return f"{value} ms" if isinstance(value, int | float) else "-"


def _vector(vector: dict[str, str]) -> str:
    if not vector:
        return "-"
    return f"{len(vector)}@{max(vector.values())[-8:]}"  # the first digits are years and days


def _remark(told: list[dict[str, Any]]) -> None:
    answered = [(one["name"], one["status"]) for one in told if one["status"] is not None]
    silent = len(told) - len(answered)
    for one in told:
        if one["error"] == _ANOTHER:
            say(f"{one['name']} ({one['node_id'][:8]}): {_ANOTHER}, at {one['api_url']}")
    if silent:
        say(f"{silent} of {_nodes(len(told))} {'does' if silent == 1 else 'do'} not answer.")
    else:
        say("The only node answers." if len(told) == 1 else f"All {_nodes(len(told))} answer.")
    names = {one["node_id"]: one["name"] for one in told}
    for name, says in answered:
        for line in _remarks_of(name, says, names):
            say(line)
    if not any(says.get("leader") is True for _, says in answered):
        say("No node that answers leads: writes are refused, reads go on.")
    _compare([says for _, says in answered], are_all=not silent)


def _remarks_of(name: str, says: dict[str, Any], names: dict[str, str]) -> Iterator[str]:
    """Yield what stands out at a node."""
    for lack in says.get("lacks", ()):
        yield (
            f"{name} does not lead before it has the log of {lack['issuer']} up to {lack['wanted']}; it has it up to "
            f"{lack['held']}, and {names.get(lack['from'], lack['from'])} showed more."
        )
    if says.get("waiting"):
        yield f"{name} is to lead, but is {says['waiting']}."
    for member in says.get("members", ()):
        if member["node_id"] == says.get("leader_node_id") and not member["linked"]:
            yield f"{name} has no link to {member['name']}, which leads."
    purge = says.get("purge") or {}
    if purge.get("blocked_by"):
        blocker = names.get(purge["blocked_by"], purge["blocked_by"])
        other = "" if blocker == name else f"it counts on {blocker}, which may lead, and "
        yield f"{name} cannot purge {purge['tombstones']} tombstones: {other}{purge['blocked_why']}."
    if says.get("disk_full"):
        yield f"{name} cannot store any more: {says['disk_full']}"
    if says.get("pending_values"):
        yield f"{name} has not got all chunks of large values yet, and shows their old state: {says['pending_values']} to come."


def _compare(says: list[dict[str, Any]], *, are_all: bool) -> None:
    """Say whether the nodes have the same data."""
    hashes: dict[str, set[str]] = {}
    for one in says:
        hashes.setdefault(repr(sorted(one["vector"].items())), set()).add(one["state_hash"])
    if any(len(different) > 1 for different in hashes.values()):
        say("Nodes with the same vector have different H: their data differ.")
    elif len(hashes) > 1:
        say("The nodes are not equal at this moment; LAG tells who is behind.")
    elif are_all and len(says) > 1 and not any(one.get("pending_values") for one in says):
        say("All nodes are equal.")
