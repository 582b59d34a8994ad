"""What `clock` does: the wall clock of a node is made wrong, and stays so when the node is started again.

Keeps true: what is written down is what the node has; it is told first.
"""

from __future__ import annotations

import os
from pathlib import Path

from kvp2p.config import SOCKET_FILE
from kvp2p.core.operations import Ending, Outcome
from kvp2p.errors import RemoteProtocolError
from kvp2p.wire.local import LocalDecoder, encode_local
from kvp2p.wire.local_messages import Hello, LocalMessage, LocalOutcome, SetClock
from scripts.local_cluster.faults import connect_below
from scripts.local_cluster.state import CannotError, Node, UsageError, changing, read_state, write_state

_REQUEST = 1


def shift_clock(directory: Path, name: str, offset_ms: int) -> None:
    """Let a node's clock differ from the system's by so much from now on, whether it runs or not."""
    with changing(directory):
        state = read_state(directory)
        node = state.node(name)
        if node.clock_offset_ms is None:
            raise UsageError(
                f"the clock of {name} cannot be shifted: nodes allow it only in a cluster that was made with `start --faults`"
            )
        if node.is_alive():
            try:
                outcome = tell_node(node, SetClock(_REQUEST, offset_ms))
            except CannotError as error:
                raise CannotError(f"{error}; its clock is as it was") from error
            if outcome.ending is not Ending.ACKED:
                raise CannotError(f"{name} refuses: {outcome.message} ({outcome.code})")
        state.put(node._replace(clock_offset_ms=offset_ms))
        write_state(directory, state)


def tell_node(node: Node, message: LocalMessage) -> Outcome:
    """Tell a node's process something over its socket, and return how that ended. Raises CannotError."""
    try:
        with connect_below(node.directory, SOCKET_FILE) as connection:
            connection.sendall(encode_local([Hello("cluster", os.getpid()), message]))
            decoder = LocalDecoder()
            while data := connection.recv(65_536):
                for answer in decoder.feed(data):
                    if isinstance(answer, LocalOutcome):
                        return answer.outcome
    except (OSError, RemoteProtocolError) as error:
        raise CannotError(f"the node process of {node.name} does not answer ({error})") from error
    raise CannotError(f"the node process of {node.name} closed its socket")
