"""What every test may use.

Async tests need no mark and no decorator: an `async def test_...` runs in `trio.run`, with a deadline of 20 s
(another one: `@pytest.mark.deadline_s(60)`). Fixtures: `free_ports`, `short_tmp_path`, `disk_shim`.
"""

import functools
import inspect
import itertools
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
from hypothesis import settings

from tests.store.disk_shim import compile_shim

DEADLINE_S = 20
PORT_MIN = 20_000
PORT_MAX = 32_000
PORTS_PER_PROCESS = 100
# sun_path is 108 bytes with its closing zero byte (unix(7)). A node's sockets have names below this directory.
SHORT_PATH_BYTES_MAX = 60

# Hypothesis without a stop-watch: a busy machine is no fault of the code.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

# A shell starts what it puts into the background with SIGINT ignored, and nohup with SIGHUP: all that the tests start would ignore them as well,
# but for signals that are handled here.
signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda _number, _frame: None)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is an `async def`; leave all others to pytest."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    mark = pyfuncitem.get_closest_marker("deadline_s")
    deadline_s = mark.args[0] if mark is not None else DEADLINE_S
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}

    async def run_within_deadline() -> None:
        with trio.fail_after(deadline_s):
            await pyfuncitem.obj(**arguments)

    trio.run(run_within_deadline)
    return True


@functools.cache
def _port_numbers() -> Iterator[int]:
    # Test runs on one machine at the same time start at different places, so that they seldom try the same port.
    first = PORT_MIN + os.getpid() * PORTS_PER_PROCESS % (PORT_MAX - PORT_MIN)
    return iter([*range(first, PORT_MAX), *range(PORT_MIN, first)])


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as candidate:
        # Bound without SO_REUSEPORT, which would share a port with another node in silence.
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@pytest.fixture
def free_ports() -> Callable[[int], list[int]]:
    """Give a function: so many loopback ports from 20000 to 31999 that nothing listens on, each handed out once."""

    def take(count: int) -> list[int]:
        ports = list(itertools.islice(filter(_is_free, _port_numbers()), count))
        assert len(ports) == count, "this test run has used up its ports"
        return ports

    return take


@pytest.fixture
def short_tmp_path() -> Iterator[Path]:
    """Give an empty directory with a path so short that the unix sockets of a node fit below it."""
    parent = tempfile.gettempdir()
    if len(os.fsencode(parent)) > SHORT_PATH_BYTES_MAX - len("/kvp2p-12345678"):
        parent = "/tmp"  # noqa: S108  mkdtemp makes the name unguessable
    path = Path(tempfile.mkdtemp(prefix="kvp2p-", dir=parent))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def disk_shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the library that traces what is done to a file, and lets calls fail; see tests/store/disk_shim.c."""
    return compile_shim(tmp_path_factory.mktemp("shim"))
