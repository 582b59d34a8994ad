"""What can go wrong between this client and a data port.

Decides: the names of the failures, and what each one says about the request it ended.
Keeps true: [I10] a failure never hides whether the request may have reached the server.
In and out: raised by `connection` and, for reads, by `client`; writes turn them into outcomes (`outcomes`).

    ClientError
    ├── ConnectionLost     the link ended (or never stood) before an answer came
    │   └── ResponseInvalid    ... because what came back was not HTTP, or not an answer to anything
    └── ReadRefused        the server answered a read with an error
"""

from __future__ import annotations

from typing import ClassVar, Literal

Applied = Literal["no", "unknown"]


class ClientError(Exception):
    """Base of the tree above. `outcome` is the word that a load run counts it under."""

    outcome: ClassVar[str] = "failed"
    retryable: bool
    applied: Applied
    blame: Literal["caller", "peer", "us", "world"]


class ConnectionLost(ClientError):
    """The connection ended before this request was answered.

    `sent` is true when at least one byte of the request was handed to the kernel: then nobody here knows what the
    server did with it. When it is false the server cannot have seen the request.
    """

    outcome: ClassVar[str] = "lost"
    blame = "world"

    def __init__(self, reason: str, *, sent: bool) -> None:
        super().__init__(f"{reason} ({'sent, not answered' if sent else 'not sent'})")
        self.reason = reason
        self.sent = sent
        self.retryable = not sent
        self.applied = "unknown" if sent else "no"


class ResponseInvalid(ConnectionLost):
    """The server broke the protocol; the connection was closed because its answers can no longer be told apart."""

    outcome: ClassVar[str] = "invalid"
    blame = "peer"


class ReadRefused(ClientError):
    """A read was answered with an error status. A missing key is not an error and never raises this."""

    outcome: ClassVar[str] = "read_refused"
    applied: Applied = "no"

    def __init__(self, status: int, code: str, message: str, *, retryable: bool, retry_after_s: int | None) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.retryable = retryable
        self.retry_after_s = retry_after_s
        self.blame = "peer" if status >= 500 else "caller"
