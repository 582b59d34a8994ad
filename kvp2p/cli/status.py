"""`kvp2p status`: what each member says of itself, side by side.

Decides: what is asked of whom: the roster of one node, then every member's own API port, all at the same time.
Keeps true: a member that does not answer is shown as that, and costs a few seconds once.
In and out: `/admin/v1/members` and each `/admin/v1/status` in; a table or JSON out.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import typer

from kvp2p.cli.failures import Failure
from kvp2p.cli.output import print_table, say
from kvp2p.cli.session import Json, Session, Token, Url, print_json, session_of

ASKED_AT_ONCE_MAX: Final = 32
COLUMNS: Final = ("NODE", "ROLE", "READY", "LAG", "SKEW", "KEYS", "VECTOR", "H", "DATA")


_DESIGNATED: Final = {"hearing": "hearing", "catching_up": "catching up", "taking_over": "taking over"}  # to lead soon


def status(context: typer.Context, url: Url = None, token: Token = None, as_json: Json = False) -> None:
    """Show all nodes: who leads, how far behind each is, and whether their data are equal.

    VECTOR is the number of logs and the newest position that the node has of them; H is its state hash.
    Two nodes with the same vector and different H disagree: that is a fault.
    Example:
      kvp2p status
    """
    session = session_of(context, url, token, as_json)
    members: list[dict[str, Any]] = session.api("GET", "/admin/v1/members")["members"]
    members.sort(key=lambda member: (member["name"], member["node_id"]))
    with ThreadPoolExecutor(max_workers=ASKED_AT_ONCE_MAX) as pool:
        told = list(pool.map(lambda member: _ask(session, member), members))
    if session.as_json:
        print_json({"cluster_id": session.health["cluster_id"], "members": told})
        return
    print_table(COLUMNS, [_row(one) for one in told])
    _remark(told)


def _ask(session: Session, member: dict[str, Any]) -> dict[str, Any]:
    """Return a member's row of the roster with its own `status`, or with `error`."""
    try:
        says = session.api("GET", "/admin/v1/status", api_url=member["api_url"] or None)
    except Failure as failure:
        return {**member, "status": None, "error": failure.message}
    return {**member, "status": says, "error": None}


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    says = one["status"]
    if says is None:
        return (one["name"], "?", "no answer", "-", "-", "-", "-", "-", one["data_url"])
    keys = sum(namespace["keys"] for namespace in says["namespaces"])
    return (
        one["name"],
        "leader" if says.get("leader") is True else _DESIGNATED.get(says.get("role"), "replica"),
        {True: "yes", False: "no"}.get(says.get("ready"), "-"),
        _milliseconds(says.get("lag_ms")),
        _milliseconds(says.get("skew_ms")),
        str(keys),
        _vector(says.get("vector") or {}),
        (says.get("state_hash") or "-")[:16],
        one["data_url"],
    )


def _milliseconds(value: object) -> str:
    return f"{value} ms" if isinstance(value, int | float) else "-"


def _vector(vector: dict[str, str]) -> str:
    if not vector:
        return "-"
    issuer, stamp = max(vector.items(), key=lambda item: item[1])
    return f"{len(vector)}: {issuer[:8]}@{stamp}"


def _remark(told: list[dict[str, Any]]) -> None:
    answered = [one["status"] for one in told if one["status"] is not None]
    names = {one["node_id"]: one["name"] for one in told}
    for one in told:
        for lack in (one["status"] or {}).get("lacks", ()):
            say(
                f"{one['name']} does not lead before it has the log of {lack['issuer']} up to {lack['wanted']}; it has it up to "
                f"{lack['held']}, and {names.get(lack['from'], lack['from'])} showed more."
            )
    if not any(says.get("leader") is True for says in answered):
        say("No node that answers leads: writes are refused, reads go on.")
    hashes: dict[str, set[str]] = {}
    for says in answered:
        if says.get("state_hash") is not None:
            hashes.setdefault(repr(sorted((says.get("vector") or {}).items())), set()).add(says["state_hash"])
    if any(len(different) > 1 for different in hashes.values()):
        say("Nodes with the same vector have different H: their data differ.")
    elif len(answered) == len(told) and len(hashes) == 1:
        say("All nodes are equal.")
