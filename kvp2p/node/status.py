"""What a node tells of itself: the `status` document, and the counters of all its machine's processes, summed.

Decides: the names in both documents.
Keeps true: a counter never goes back while the node runs: what an ended process had counted is kept in the sum.
In and out: the machine's facts and other processes' Reports in, JSON values out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import kvp2p
from kvp2p.core.hlc import stamp_wall_ms
from kvp2p.core.leadership import Role
from kvp2p.core.messages import Lane
from kvp2p.core.port import Identity
from kvp2p.core.purging import Purger
from kvp2p.core.vector import VersionVector
from kvp2p.ids import version_stamp
from kvp2p.limits import VECTOR_ISSUERS_MAX
from kvp2p.net.link import Traffic
from kvp2p.runtime.driver import ReplicaDriver

_LACKS_SHOWN_MAX = 16  # guess: as many as a person reads; a node that catches up lacks one or two


class Counters:
    """Sums of the counters of gateways, api and this node."""

    def __init__(self) -> None:
        self._live: dict[int, dict[str, int]] = {}
        self._ended: dict[str, int] = {}

    def report(self, connection: int, counters: tuple[tuple[str, int], ...]) -> None:
        """Take over a process's counters as they stand."""
        self._live[connection] = dict(counters)

    def end(self, connection: int) -> None:
        """Keep what an ended process had counted."""
        for name, value in self._live.pop(connection, {}).items():
            if not _is_gauge(name):
                self._ended[name] = self._ended.get(name, 0) + value

    def sums(self) -> dict[str, int]:
        """Return every counter, summed over processes."""
        sums = dict(self._ended)
        for counters in self._live.values():
            for name, value in counters.items():
                sums[name] = sums.get(name, 0) + value
        return sums


def _is_gauge(name: str) -> bool:
    base = name.partition("{")[0]
    return not base.endswith(("_total", "_bucket", "_count", "_sum"))


def show_vector(vector: VersionVector) -> dict[str, str]:
    """Return a vector as issuer (16 hex) to stamp (16 hex)."""
    return {issuer.hex(): f"{stamp:016x}" for issuer, stamp in vector.items()}


def readiness(driver: ReplicaDriver, lag_ms_max: int | None, refused_dial: str = "") -> tuple[bool, str]:
    """Tell whether this node's reads are complete, and if not, why; `refused_dial` is what the mesh says of its last dial."""
    facts = driver.machine.readiness
    if not facts.is_ready:
        # Not the disk's own message: it names directories, and everybody may ask for readiness.
        if driver.machine.board.full_reason:
            reason = "the node's disk is full: what its peers have cannot be stored. Make room; it goes on by itself"
        elif facts.has_fallen_behind:
            reason = "the node has not caught up with its peers since its disk was full"
        elif facts.lacks_chunks:
            reason = "the node has not received all parts of the large values that its peers had when it started"
        else:
            reason = "the node has not caught up with its peers since it started"
        return False, f"{reason}, and a link was refused: {refused_dial}" if refused_dial else reason
    if lag_ms_max is not None:
        lag_ms = facts.lag_ms()
        if lag_ms > lag_ms_max:
            return False, f"the node lags {lag_ms} ms behind, ready_lag_ms_max is {lag_ms_max}"
    return True, ""


def status_document(
    driver: ReplicaDriver, identity: Identity, lag_ms_max: int | None, refused_dial: str = ""
) -> dict[str, Any]:
    """Return what this node believes, as JSON values."""
    machine = driver.machine
    board = machine.board
    board.now = driver.now()
    is_ready, reason = readiness(driver, lag_ms_max, refused_dial)
    designation = board.designation
    peers = [
        {
            "node_id": node.hex(),
            # Not its vector: 30 peers with thousands of issuers each would not fit one local message. Ask the peer itself.
            "covered": peer.digest is not None and board.vector.covers_vector(peer.digest.vector),
            "state_hash": peer.digest.state_hash.hex() if peer.digest is not None else None,
            "diverged": peer.diverged,
        }
        for node, peer in board.peers.items()
    ]
    return {
        "name": identity.name,
        "node_id": identity.node.hex(),
        "cluster_id": identity.cluster.hex(),
        "account_id": identity.account.hex(),
        "version": kvp2p.__version__,
        "leader": machine.leadership.role is Role.LEADING,
        "role": str(machine.leadership.role),
        "waiting": machine.leadership.waiting.lstrip(", "),
        "lacks": [
            {
                "issuer": one.issuer.hex(),
                "held": f"{one.held:016x}",
                "wanted": f"{one.wanted:016x}",
                "from": one.peer.hex(),
            }
            for one in machine.leadership.lacks()[:_LACKS_SHOWN_MAX]
        ],
        "leader_node_id": designation.node.hex() if designation is not None else None,
        "term": designation.term if designation is not None else None,
        "ready": is_ready,
        "ready_reason": reason,
        "disk_full": board.full_reason,
        "pending_values": len(board.pending.versions),
        "complete": board.complete,
        "restored": board.restored,
        "lag_ms": machine.readiness.lag_ms(),
        "skew_ms": machine.readiness.skew_ms,
        "clock_offset_ms": driver.clock.offset_ms if driver.clock.is_adjustable else None,
        "state_hash": f"{board.state_hash:032x}",
        "vector": show_vector(board.vector),
        "issuers": len(board.vector),
        "issuers_max": VECTOR_ISSUERS_MAX,
        "diverged": machine.readiness.is_diverged,
        "candidates": [node.hex() for node in board.candidates],
        "purge": _purge_document(machine.purger),
        "peers": peers,
        "members": [
            {
                "node_id": member.node.hex(),
                "name": member.name,
                "incarnation": member.incarnation,
                "mesh_url": member.mesh_url,
                "data_url": member.data_url,
                "api_url": member.api_url,
                "linked": member.node in board.peers or member.node == identity.node,
            }
            for member in machine.members.all()
        ],
    }


def _purge_document(purger: Purger) -> dict[str, Any]:
    board, blocker = purger.board, purger.blocked_by
    fence = board.vector.fence
    return {
        "fence": fence.hex(),
        "fence_ms": stamp_wall_ms(version_stamp(fence)),
        "tombstones": board.garbage.tombstones,
        "log_positions": board.garbage.log_positions,
        "blocked_by": None if blocker is None else blocker.hex(),
        "blocked_why": "" if blocker is None else purger.hindrance(blocker),
    }


def own_counters(driver: ReplicaDriver) -> dict[str, int]:
    """Return the node process's own samples."""
    board, large_values = driver.machine.board, driver.machine.large_values
    return {
        "kvp2p_node_syncs_total": driver.writer.syncs,
        "kvp2p_node_frames_dropped_total": driver.frames_dropped,
        "kvp2p_node_links": len(board.peers),
        "kvp2p_node_batches_in_flight": board.batches_in_flight(),
        "kvp2p_node_ready": int(driver.machine.readiness.is_ready),
        "kvp2p_node_leads": int(driver.machine.leadership.role is Role.LEADING),
        "kvp2p_node_lag_ms": driver.machine.readiness.lag_ms(),
        "kvp2p_node_tombstones": board.garbage.tombstones,
        "kvp2p_node_log_positions": board.garbage.log_positions,
        "kvp2p_node_purges_total": driver.machine.purger.purges,
        "kvp2p_node_purge_blocked": int(driver.machine.purger.blocked_by is not None),
        "kvp2p_node_uploads": len(large_values.uploads),
        "kvp2p_node_pending_values": len(board.pending.versions),
        "kvp2p_node_chunks_pulled_total": large_values.pulls.pulled,
        "kvp2p_node_chunk_bytes_received_total": large_values.pulls.received_bytes,
        "kvp2p_node_chunks_refused_total": large_values.pulls.refused,
    }


def mesh_counters(traffic: Mapping[Lane, Traffic]) -> dict[str, int]:
    """Return what the node's links have carried, by lane; bytes are those of payloads, without the heads of websocket and TCP."""
    return {
        f'kvp2p_node_mesh_{name}_total{{lane="{lane.name.lower()}"}}': count
        for lane, carried in traffic.items()
        for name, count in asdict(carried).items()
    }
