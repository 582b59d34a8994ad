"""The supervisor: keeps children running, restarts the dead, drains on SIGTERM.

Decides: when a child is started again, and in which order the children of a node end.
Keeps true
* A child that dies is started again after 0.1 s, doubling up to 5 s, from 0.1 s again once it has lived 10 s. Its
  death is logged with the signal's name or the exit status.
* A child that ends with EXIT_FATAL cannot be helped by a restart: the node ends, exit status 3, which is *refused* here as
  it is for all commands.
* Draining: gateways and api first, so that nothing more is asked of the node, then the node; 5 s in all, then SIGKILL. A second
  SIGTERM ends them at once. It counts only 0.5 s after the first, since service managers signal the whole group.
* One thread, no event loop but `poll`, no store: so forking is safe at any time.
In and out: child specs in; processes, `pids.json` and log events out.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kvp2p.runtime import logs
from kvp2p.runtime.child import EXIT_FATAL
from kvp2p.supervisor.notify import notify_systemd
from kvp2p.supervisor.spawn import ChildSpec, fork_child

BACKOFF_SECONDS_MIN = 0.1
BACKOFF_SECONDS_MAX = 5.0
STEADY_SECONDS = 10.0  # a child that lived so long is well again
DRAIN_SECONDS = 5.0
NODE_DRAIN_SECONDS = 1.0  # of these, kept for the node however long the others take
SECOND_SIGNAL_SECONDS = 0.5
REAP_SECONDS = 2.0  # after SIGKILL; only a process stuck in the kernel takes longer
EXIT_REFUSED = 3


@dataclass(slots=True)
class _Child:
    spec: ChildSpec
    process_id: int | None = None
    ready_fd: int | None = None
    is_ready: bool = False
    started: float = 0.0
    restart_at: float | None = 0.0
    failures: int = 0


class Supervisor:
    """Runs children until told to stop. `run` may be called once."""

    def __init__(self, specs: Sequence[ChildSpec], pids_file: Path) -> None:
        self._children = [_Child(spec) for spec in specs]
        self._pids_file = pids_file
        self._log = logs.get_logger("kvp2p.supervisor")
        self._life_reader, self._life_writer = os.pipe()
        self._wake_reader, self._wake_writer = os.pipe()
        for descriptor in (self._wake_reader, self._wake_writer):
            os.set_blocking(descriptor, False)
        self._poll = select.poll()
        self._poll.register(self._wake_reader, select.POLLIN)
        self._was_ready = False
        self._stop_at: float | None = None  # when the first request to stop came
        self._is_node_told = False
        self._is_killed = False
        self._exit_status = 0

    def run(self) -> int:
        """Start the children and keep them; return the exit status when all have ended."""
        handled = {number: signal.signal(number, _do_nothing) for number in (signal.SIGCHLD, *STOP_SIGNALS)}
        signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)
        try:
            while not self._is_over():
                self._start_due()
                self._advance_drain()
                self._wait()
                self._reap()
        finally:
            self._signal(self._children, signal.SIGKILL)
            signal.set_wakeup_fd(-1)
            for number, handler in handled.items():
                signal.signal(number, handler)
            for descriptor in (self._life_reader, self._life_writer, self._wake_reader, self._wake_writer):
                os.close(descriptor)
            self._pids_file.unlink(missing_ok=True)
        return self._exit_status

    def _is_over(self) -> bool:
        if self._stop_at is None:
            return False
        if not any(child.process_id for child in self._children):
            return True
        stuck = self._is_killed and time.monotonic() > self._stop_at + DRAIN_SECONDS + REAP_SECONDS
        if stuck:
            self._log.error("children_stuck", pids=[one.process_id for one in self._children if one.process_id])
        return stuck

    # --- starting

    def _start_due(self) -> None:
        if self._stop_at is not None:
            return
        now = time.monotonic()
        due = [one for one in self._children if one.restart_at is not None and one.restart_at <= now]
        for child in due:
            self._start(child)
        if due:
            self._write_pids()

    def _start(self, child: _Child) -> None:
        child.spec.prepare()
        ready_fds = [one.ready_fd for one in self._children if one.ready_fd is not None]
        child.process_id, child.ready_fd = fork_child(
            child.spec, self._life_reader, (self._life_writer, self._wake_reader, self._wake_writer, *ready_fds)
        )
        self._poll.register(child.ready_fd, select.POLLIN)
        child.started = time.monotonic()
        child.restart_at = None
        self._log.info("child_started", child=child.spec.name, pid=child.process_id)

    # --- waiting

    def _wait(self) -> None:
        wake_at = [one.restart_at for one in self._children if one.restart_at is not None]
        if self._stop_at is not None:
            wake_at = [self._stop_at + DRAIN_SECONDS - NODE_DRAIN_SECONDS, self._stop_at + DRAIN_SECONDS]
            wake_at.append(self._stop_at + DRAIN_SECONDS + REAP_SECONDS)
        now = time.monotonic()
        timeout_ms = min((max(0, at - now) for at in wake_at if self._stop_at is None or at > now), default=None)
        for descriptor, _ in self._poll.poll(None if timeout_ms is None else timeout_ms * 1_000 + 1):
            if descriptor == self._wake_reader:
                self._take_signals()
            else:
                self._take_ready(descriptor)

    def _take_signals(self) -> None:
        with suppress(BlockingIOError):
            for number in os.read(self._wake_reader, 4_096):
                if number in STOP_SIGNALS:
                    self._asked_to_stop(signal.Signals(number).name)

    def _asked_to_stop(self, why: str) -> None:
        now = time.monotonic()
        if self._stop_at is None:
            self._log.info("draining", why=why)
            self._begin_stop(now)
        elif now - self._stop_at >= SECOND_SIGNAL_SECONDS and not self._is_killed:
            self._log.warning("ending_at_once", why=why)
            self._kill_all()

    def _begin_stop(self, now: float) -> None:
        self._stop_at = now
        notify_systemd("STOPPING=1")
        for child in self._children:
            child.restart_at = None
        self._signal(self._others(), signal.SIGTERM)

    def _take_ready(self, descriptor: int) -> None:
        child = next(one for one in self._children if one.ready_fd == descriptor)
        is_ready = os.read(descriptor, 1) == b"\x01"
        self._close_ready(child)
        if not is_ready:
            return  # it is ending; its death is reaped in a moment
        child.is_ready = True
        self._log.debug("child_ready", child=child.spec.name, pid=child.process_id)
        if not self._was_ready and all(one.is_ready for one in self._children):
            self._was_ready = True
            self._log.info("all_children_ready")
            notify_systemd("READY=1")

    def _close_ready(self, child: _Child) -> None:
        if child.ready_fd is not None:
            self._poll.unregister(child.ready_fd)
            os.close(child.ready_fd)
            child.ready_fd = None

    # --- deaths

    def _reap(self) -> None:
        has_changed = False
        for child in self._children:
            if child.process_id is None:
                continue
            process_id, wait_status = os.waitpid(child.process_id, os.WNOHANG)
            if process_id:
                has_changed = True
                self._died(child, os.waitstatus_to_exitcode(wait_status))
        if has_changed:
            self._write_pids()

    def _died(self, child: _Child, code: int) -> None:
        now = time.monotonic()
        how = {"signal": signal.Signals(-code).name} if code < 0 else {"exit_status": code}
        lived_ms = round(1_000 * (now - child.started))
        process_id, child.process_id, child.is_ready = child.process_id, None, False
        self._close_ready(child)
        about = {"child": child.spec.name, "pid": process_id, "lived_ms": lived_ms, **how}
        if self._stop_at is not None:
            self._log.info("child_ended", **about)
        elif code == EXIT_FATAL:
            self._log.error("child_cannot_run", **about)
            self._exit_status = EXIT_REFUSED
            self._begin_stop(now)
        else:
            if lived_ms >= 1_000 * STEADY_SECONDS:
                child.failures = 0
            delay = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN * 2**child.failures)
            child.failures = min(child.failures + 1, 16)  # past the longest pause; a float has no room for 2**1025
            child.restart_at = now + delay
            self._log.warning("child_died", **about, restart_in_ms=round(1_000 * delay))

    # --- ending

    def _advance_drain(self) -> None:
        if self._stop_at is None or self._is_killed:
            return
        elapsed = time.monotonic() - self._stop_at
        if elapsed >= DRAIN_SECONDS:
            self._log.warning("drain_took_too_long", left=[one.spec.name for one in self._children if one.process_id])
            self._kill_all()
            return
        others = [one for one in self._others() if one.process_id]
        if not self._is_node_told and (not others or elapsed >= DRAIN_SECONDS - NODE_DRAIN_SECONDS):
            self._is_node_told = True
            self._signal((one for one in self._children if one.spec.role == "node"), signal.SIGTERM)

    def _others(self) -> list[_Child]:
        return [one for one in self._children if one.spec.role != "node"]

    def _kill_all(self) -> None:
        self._is_killed = True
        self._signal(self._children, signal.SIGKILL)

    @staticmethod
    def _signal(children: Iterable[_Child], number: signal.Signals) -> None:
        for child in children:
            if child.process_id is not None:
                os.kill(child.process_id, number)  # not reaped yet, so the number is still this child's

    def _write_pids(self) -> None:
        def of(role: str) -> list[int | None]:
            return [one.process_id for one in self._children if one.spec.role == role]

        node, api = (of("node") or [None])[0], (of("api") or [None])[0]
        document = {"supervisor": os.getpid(), "node": node, "api": api, "gateways": of("gateway")}
        new = self._pids_file.with_suffix(".new")
        try:
            new.write_text(json.dumps(document) + "\n", encoding="ascii")
            new.replace(self._pids_file)
        except OSError as error:
            # For information only: a full disk must not end a node that still serves reads.
            self._log.warning("pids_not_written", reason=str(error))


STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def _do_nothing(_number: int, _frame: object) -> None:
    """Let the wake-up descriptor tell; a handler must be there for it to be written."""
