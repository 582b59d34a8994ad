"""The errors of kvp2p, one tree.

    KvError
    ├── LocalProtocolError       our own bug: a machine or codec was used against its contract
    ├── RemoteProtocolError      a peer sent what the protocol forbids; its link is closed, no state changed
    │   └── HandshakeRefused     one end of a new link does not want the other, and says why in a word
    ├── LinkClosed               the link to a peer has ended; whether the last messages arrived is not known
    ├── RequestError             a caller's request cannot be served as it stands
    ├── ConfigError              configuration or command line is wrong
    ├── StoreError               the data directory cannot be used
    │   ├── StoreLocked          another supervisor holds the directory
    │   ├── StoreFormatError     made by another format, or by another cluster
    │   │   └── StoreOutdated    of an older format, which its node brings to this one when it starts
    │   ├── StoreCorrupt         a row does not match its digest
    │   └── StoreFull            no room: nothing was applied
    └── NodeUnavailable          the node process or the leader cannot be reached

Every leaf answers three questions: `retryable` (may the same call succeed later?), `applied` (did it change anything?) and
`blame` (who can mend it). A missing key is not an error. HTTP statuses are assigned in `gateway/answers.py` alone.
"""

from __future__ import annotations

from typing import ClassVar, Literal

Applied = Literal["no", "yes", "unknown"]
Blame = Literal["caller", "peer", "us", "world"]


class KvError(Exception):
    """The root. `str(error)` says what was wrong, what the limit is and what to do."""

    retryable: ClassVar[bool] = False
    applied: ClassVar[Applied] = "no"
    blame: ClassVar[Blame] = "us"


class LocalProtocolError(KvError):
    """Our bug."""


class RemoteProtocolError(KvError):
    """The peer broke the protocol; nothing was changed."""

    blame = "peer"


class HandshakeRefused(RemoteProtocolError):
    """A new link is not opened. `reason` is a stable word of `net/handshake.py`; `by_peer` tells which end refused."""

    def __init__(self, reason: str, message: str, by_peer: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.by_peer = by_peer


class LinkClosed(KvError):
    """The link to a peer has ended."""

    retryable = True
    applied = "unknown"
    blame = "world"


class RequestError(KvError):
    """A request that is refused, with the machine-readable code of DESIGN §7 and the limit it broke, if one."""

    blame = "caller"

    def __init__(self, code: str, message: str, limit: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.limit = limit


class ConfigError(KvError):
    """A setting, flag or file is wrong."""

    blame = "caller"


class StoreError(KvError):
    """The data directory cannot be used as asked."""

    blame = "world"


class StoreLocked(StoreError):
    """Another process holds the directory."""

    retryable = True


class StoreFormatError(StoreError):
    """The directory is of another format version or another cluster."""


class StoreOutdated(StoreFormatError):
    """A reader met an older format. Its node, which may be at it right now, brings the store to the present one."""

    retryable = True


class StoreCorrupt(StoreError):
    """A stored row does not match its digest."""


class StoreFull(StoreError):
    """The disk has no room; the transaction was not applied."""

    retryable = True


class NodeUnavailable(KvError):
    """The node process, or a leader, cannot be reached; nothing was sent."""

    retryable = True
    blame = "world"
