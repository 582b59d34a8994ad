"""Logs: structured events on stderr, for people or as JSON lines.

Decides: the form of a log line: time (UTC, milliseconds), level, logger, event, process, then the event's own fields.
Keeps true: one event is one line and one write, so lines of several processes on one stderr do not mix.
In and out: `configure` once per process; everywhere else `structlog.get_logger("kvp2p.gateway")` and stable event words.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor


class _Deferred(ModuleType):
    """Stands for a module until something of it is used."""

    def __getattr__(self, name: str) -> object:
        return getattr(importlib.import_module(self.__name__), name)


@contextmanager
def _without_what_no_log_needs() -> Iterator[None]:
    """Keep rich and asyncio from being imported meanwhile: they cost more than all of structlog, at each start of a node.

    structlog takes rich for coloured tracebacks when it is installed, as it is for the command line; ours are plain. asyncio
    is for its loggers that wait, which nobody calls here. Whoever imports either one later gets it.
    """
    kept_out: dict[str, ModuleType | None] = {"rich": None, "asyncio": _Deferred("asyncio")}
    kept_out = {name: module for name, module in kept_out.items() if name not in sys.modules}
    sys.modules.update(kept_out)  # type: ignore[arg-type]  # None: it cannot be imported (the import system, 5.3.1)
    try:
        yield
    finally:
        for name in kept_out:
            del sys.modules[name]


with _without_what_no_log_needs():
    import structlog

get_logger = structlog.get_logger
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure(level: str, form: str, process: str, stream: TextIO | None = None) -> None:
    """Set up this process's logs.

    `level` is one of debug, info, warning, error; `form` is `console` or `json`; `process` names the process in each line
    (`supervisor`, `node`, `api`, `gateway-1`). `stream` is stderr unless given. Libraries' own loggers go the same way from `warning` up.
    """
    target = sys.stderr if stream is None else stream

    def name_process(_logger: object, _method: str, event: EventDict) -> EventDict:
        event["process"] = process
        return event

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        name_process,
        _name_logger,
    ]
    last: list[Processor]
    if form == "json":
        last = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=_plain, sort_keys=False),
        ]
    else:
        # Plain tracebacks: rich ones print local variables, which may hold a secret or a megabyte.
        plain = structlog.dev.plain_traceback
        last = [structlog.dev.ConsoleRenderer(colors=target.isatty(), pad_event_to=24, exception_formatter=plain)]
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=lambda *names: _LineLogger(target, names[0] if names else "kvp2p"),
        # A logger made before the fork is configured anew by the child.
        cache_logger_on_first_use=False,
    )
    # hypercorn, trio-websocket and others log through the standard library.
    logging.root.handlers = [_Bridge()]
    logging.root.setLevel(max(logging.WARNING, _LEVELS[level]))


class _LineLogger:
    """Writes each event as one line in one write."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream = stream
        self.name = name

    def msg(self, message: str) -> None:
        try:
            self._stream.write(message + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            # A log that nobody can read any more (a closed pipe, a full disk) must not end a node.
            return

    debug = info = warning = error = critical = log = msg


class _Bridge(logging.Handler):
    """Hands a standard log record to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        logger = structlog.get_logger(record.name)
        words = {logging.DEBUG: "debug", logging.INFO: "info", logging.WARNING: "warning"}
        getattr(logger, words.get(record.levelno, "error"))(
            "library_message", message=record.getMessage(), exc_info=record.exc_info or None
        )


def _name_logger(logger: object, _method: str, event: EventDict) -> EventDict:
    event["logger"] = getattr(logger, "name", "kvp2p")
    return event


def _plain(value: object) -> object:
    return value.hex() if isinstance(value, bytes) else str(value)
