"""The supervisor with real forked children: restarts, draining, and nobody outlives it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from kvp2p.supervisor.group import group_members, read_process

CHILDREN = Path(__file__).with_name("children.py")
WAIT_SECONDS = 15.0


def until(what: Callable[[], Any], seconds: float = WAIT_SECONDS) -> Any:
    """Wait for something true and return it."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.01)
    return found


class Play:
    """A supervisor that runs, and what it and its children have told so far."""

    def __init__(self, directory: Path, name: str, **environment: str) -> None:
        self.directory = directory
        self.log_file = directory / "log"
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(CHILDREN), str(directory), name],
                stdin=subprocess.DEVNULL,
                stderr=log,
                cwd=directory,
                start_new_session=True,
                env={**os.environ, **environment},
            )

    def story(self) -> list[str]:
        path = self.directory / "story"
        return path.read_text().splitlines() if path.exists() else []

    def log(self, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log_file.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event]

    def pids(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.directory / "pids.json").read_text())
        return found

    def wait_until_ready(self) -> dict[str, Any]:
        until(lambda: self.log("all_children_ready"))
        return self.pids()

    def ask_to_stop(self) -> float:
        """Send SIGTERM and return how many seconds the end took."""
        before = time.monotonic()
        self.process.terminate()
        self.process.wait(WAIT_SECONDS)
        return time.monotonic() - before


@contextmanager
def playing(directory: Path, name: str, **environment: str) -> Iterator[Play]:
    play = Play(directory, name, **environment)
    try:
        yield play
    finally:
        if play.process.poll() is None:
            play.process.kill()
            play.process.wait()
        assert until(lambda: not group_members(play.process.pid, directory), 5)


def test_all_children_start_and_their_ids_are_written_down(short_tmp_path: Path) -> None:
    with playing(short_tmp_path, "obedient") as play:
        pids = play.wait_until_ready()
        assert pids["supervisor"] == play.process.pid
        children = [pids["node"], pids["api"], *pids["gateways"]]
        assert sorted(int(line.split()[2]) for line in play.story()) == sorted(children)
        assert {process.process_id for process in group_members(play.process.pid, short_tmp_path)} == {
            play.process.pid,
            *children,
        }


def test_gateways_and_api_drain_before_the_node(short_tmp_path: Path) -> None:
    with playing(short_tmp_path, "obedient") as play:
        play.wait_until_ready()
        assert play.ask_to_stop() < 4
        assert play.process.returncode == 0
        story = [line for line in play.story() if " up " not in line]
        assert story[-2:] == ["node draining", "node done"]
        assert {"api done", "gateway-1 done", "gateway-2 done"} <= set(story[:-2])
        assert not (short_tmp_path / "pids.json").exists()


@pytest.mark.slow
def test_child_that_does_not_drain_is_killed_after_five_seconds(short_tmp_path: Path) -> None:
    with playing(short_tmp_path, "deaf") as play:
        play.wait_until_ready()
        assert 4 < play.ask_to_stop() < 7
        assert "node done" in play.story()
        assert play.log("drain_took_too_long")[0]["left"] == ["gateway-1"]


def test_second_signal_ends_everything_at_once(short_tmp_path: Path) -> None:
    with playing(short_tmp_path, "deaf") as play:
        play.wait_until_ready()
        play.process.terminate()
        time.sleep(0.7)
        assert play.ask_to_stop() < 1.5
        assert play.log("ending_at_once")


def test_signal_to_the_whole_group_still_drains(short_tmp_path: Path) -> None:
    with playing(short_tmp_path, "obedient") as play:
        play.wait_until_ready()
        play.process.terminate()
        os.killpg(play.process.pid, signal.SIGTERM)
        assert play.process.wait(WAIT_SECONDS) == 0
        assert {"node done", "gateway-1 done"} <= set(play.story())
        assert not play.log("ending_at_once")


def test_killed_child_is_started_again_and_the_log_names_the_signal(short_tmp_path: Path) -> None:
    with playing(short_tmp_path, "obedient") as play:
        pids = play.wait_until_ready()
        os.kill(pids["gateways"][0], signal.SIGKILL)
        until(lambda: sum(line.startswith("gateway-1 up") for line in play.story()) == 2)
        died = play.log("child_died")[0]
        assert (died["child"], died["signal"], died["pid"]) == ("gateway-1", "SIGKILL", pids["gateways"][0])
        now = play.pids()
        assert now["gateways"][0] not in {None, pids["gateways"][0]}
        assert {**now, "gateways": now["gateways"][1:]} == {**pids, "gateways": pids["gateways"][1:]}


def test_supervisor_itself_prepares_each_start_of_a_child(short_tmp_path: Path) -> None:
    with playing(short_tmp_path, "failing") as play:
        until(lambda: len([line for line in play.story() if line.startswith("failing")]) >= 2)
        told = [line for line in play.story() if line.startswith(("failing", "prepared"))]
        assert told[0::2] == [f"prepared {play.process.pid}"] * len(told[0::2])
        assert all(line.startswith("failing") for line in told[1::2])


def test_failing_child_is_started_again_ever_more_slowly(short_tmp_path: Path) -> None:
    with playing(short_tmp_path, "failing") as play:
        until(lambda: len(play.log("child_died")) >= 4)
        deaths = play.log("child_died")[:4]
        assert [death["restart_in_ms"] for death in deaths] == [100, 200, 400, 800]
        assert {death["exit_status"] for death in deaths} == {70}
        ups = [float(line.split()[2]) for line in play.story() if line.startswith("failing")]
        assert ups[2] - ups[1] >= 0.2
        assert "a planted failure" in play.log_file.read_text()
        assert play.ask_to_stop() < 4


def test_child_that_can_never_start_ends_the_node(short_tmp_path: Path) -> None:
    with playing(short_tmp_path, "fatal") as play:
        assert play.process.wait(WAIT_SECONDS) == 3
        assert [line for line in play.story() if line.startswith("fatal")] == ["fatal up"]
        assert play.log("child_cannot_start")[0]["reason"] == "the store has format 9; this program reads 1"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGHUP])
@pytest.mark.parametrize("play_name", ["obedient", "deaf"])
def test_children_end_within_a_second_of_the_supervisor(
    short_tmp_path: Path, play_name: str, number: signal.Signals
) -> None:
    with playing(short_tmp_path, play_name) as play:
        play.wait_until_ready()
        play.process.send_signal(number)
        assert play.process.wait(WAIT_SECONDS) == -number
        assert until(lambda: not group_members(play.process.pid, short_tmp_path), 1)


def test_child_restarted_later_ends_with_the_supervisor_too(short_tmp_path: Path) -> None:
    with playing(short_tmp_path, "obedient") as play:
        pids = play.wait_until_ready()
        os.kill(pids["node"], signal.SIGKILL)
        until(lambda: sum(line.startswith("node up") for line in play.story()) == 2)
        play.process.kill()
        play.process.wait()
        assert until(lambda: not group_members(play.process.pid, short_tmp_path), 1)


def test_service_manager_hears_of_readiness_and_of_stopping(short_tmp_path: Path) -> None:
    with ExitStack() as stack:
        manager = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        manager.bind(str(short_tmp_path / "notify"))
        manager.settimeout(WAIT_SECONDS)
        play = stack.enter_context(playing(short_tmp_path, "obedient", NOTIFY_SOCKET=str(short_tmp_path / "notify")))
        assert manager.recv(100) == b"READY=1"
        assert len([line for line in play.story() if " up " in line]) == 4
        play.ask_to_stop()
        assert manager.recv(100) == b"STOPPING=1"


def test_process_that_has_ended_and_was_not_reaped_counts_as_gone() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    until(lambda: read_process(ended.pid) is None)
    assert ended.wait() == 0
    mine = read_process(os.getpid())
    assert mine is not None
    assert mine.group == os.getpgrp()
