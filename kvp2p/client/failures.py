"""What can go wrong between this client and a data port.

Decides: the names of the failures, and what each one says about the request that it ended.
Keeps true: [I10] a failure never hides whether the request may have reached the server.
In and out: raised by `connection` and, for reads, by `client`; for writes they become outcomes (`outcomes`).

    KvError
    └── ClientError
        ├── ConnectionLost       the connection ended, or never stood, before an answer came
        │   ├── NotSent          no byte of the request was handed to the kernel: the server cannot have seen it
        │   ├── Unanswered       some bytes were: nobody here knows what the server did with them
        │   └── ResponseInvalid  likewise, and the server's bytes were no answer to it
        └── ReadRefused          a read was answered with an error that repeating does not mend
            └── ReadUnavailable  ... with one that passes: not caught up, starting, overloaded

A missing key is not an error.
"""

from __future__ import annotations

from typing import ClassVar

from kvp2p.errors import Blame, KvError


class ClientError(KvError):
    """The root of the client's failures. `outcome` is the word that a load run counts one under."""

    outcome: ClassVar[str] = "failed"


class ConnectionLost(ClientError):
    """The connection ended before this request was answered; `sent` says whether any of its bytes had left."""

    outcome = "lost"
    blame: ClassVar[Blame] = "world"
    sent: ClassVar[bool]

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason} ({'sent, not answered' if self.sent else 'not sent'})")
        self.reason = reason


class NotSent(ConnectionLost):
    """No byte of the request has left. Whether to ask again, and where, is for the caller to say."""

    sent = False
    retryable = True


class Unanswered(ConnectionLost):
    """The request, or a part of it, has left, and no answer came."""

    sent = True
    applied = "unknown"


class ResponseInvalid(ConnectionLost):
    """The server broke the protocol; the connection was closed, because its answers can no longer be told apart."""

    outcome = "invalid"
    sent = True
    applied = "unknown"
    blame = "peer"


class ReadRefused(ClientError):
    """A read was answered with an error status: `status`, the server's `code` and `message`."""

    outcome = "read_refused"
    blame: ClassVar[Blame] = "caller"

    def __init__(self, status: int, code: str, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s


class ReadUnavailable(ReadRefused):
    """The server cannot answer this read now (429, 5xx), or not yet at the version that was asked for."""

    outcome = "read_unavailable"
    retryable = True
    blame = "peer"
