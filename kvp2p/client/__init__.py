"""A small pipelining client of the data port, for load, demo, chaos and bench. See DESIGN.md beside this file."""

from .client import Client, ClientConfig, open_client
from .connection import Connection, ConnectionConfig, Request
from .failures import (
    ClientError,
    ConnectionLost,
    NotSent,
    ReadRefused,
    ReadUnavailable,
    ResponseInvalid,
    Unanswered,
)
from .load import LatencySummary, Operation, run_closed_loop, run_open_loop
from .outcomes import Acked, Found, KeyInfo, KeyPage, Namespace, Refused, Unknown, WriteOutcome
from .response import Response
from .streaming import StreamedValue

__all__ = [
    "Acked",
    "Client",
    "ClientConfig",
    "ClientError",
    "Connection",
    "ConnectionConfig",
    "ConnectionLost",
    "Found",
    "KeyInfo",
    "KeyPage",
    "LatencySummary",
    "Namespace",
    "NotSent",
    "Operation",
    "ReadRefused",
    "ReadUnavailable",
    "Refused",
    "Request",
    "Response",
    "ResponseInvalid",
    "StreamedValue",
    "Unanswered",
    "Unknown",
    "WriteOutcome",
    "open_client",
    "run_closed_loop",
    "run_open_loop",
]
