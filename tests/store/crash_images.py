"""What a disk may hold after the power failed: images of a store, rebuilt from its traced system calls.

A process writes a store under the shim (`disk_shim.c`) and marks each batch that has been acknowledged. Of the trace a *crash point* is
chosen. What was synced before it is in the image; of what was not, each page of 4 KiB is kept, dropped, or torn (some of its
sectors of 512 bytes are new), and the file is as long as what was kept, or as it was meant to be. Then each image is opened by a process of its own, for
reading and for writing. It must be sound, and hold exactly what the store held after the last acknowledged batch, or after
the one that was on its way to the disk.

A sector is written whole or not at all: LMDB counts on that for its meta pages, and disks promise it.

The tests judge some hundred images. For thousands, with other seeds:

    PYTHONPATH=. .venv/bin/python tests/store/crash_images.py --images 5000 --seed 7
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from kvp2p.errors import StoreError
from kvp2p.store.lmdb_store import LmdbStore
from kvp2p.store.scrub import check_store
from kvp2p.store.tables import TABLE_NAMES
from tests.store.batches import IDENTITY, apply, batches_of_next_leader, draw_batches
from tests.store.disk_shim import SYNC, TRUNCATE, WRITE, Call, add_mark, compile_shim, read_trace, shim_environment

ROOT = Path(__file__).resolve().parents[2]
ACKNOWLEDGED = 100  # the mark behind a batch; 0 stands for the store's creation
MAP_BYTES = 1 << 26
PAGE, SECTOR = 4096, 512
MODES = ("kept", "dropped", "mixed", "torn")
OPEN_SECONDS = 10


class Recording(NamedTuple):
    """A life of a store: what was done to its file, and what it held after its creation and after each batch."""

    calls: list[Call]
    states: list[str]


class Image(NamedTuple):
    """A file as a crash may have left it. `acked` is the last batch that was acknowledged; -1: not even the creation was."""

    crash_at: int
    mode: str
    acked: int
    data: bytes


# --- recording


def record(directory: Path, shim: Path, seed: int, batches: int) -> Recording:
    """Let a process write a store under the shim."""
    trace = directory / "trace"
    environment = shim_environment(shim, "/recorded/data.mdb", trace=trace)
    command = [*_command("record"), str(directory / "recorded"), str(trace), str(seed), str(batches)]
    done = subprocess.run(command, env=_with_path(environment), stdout=subprocess.PIPE, check=True, timeout=120)
    return Recording(list(read_trace(trace)), json.loads(done.stdout))


def _record(directory: Path, trace: Path, seed: int, batches: int) -> None:
    states = []
    with LmdbStore.create(directory, IDENTITY, complete=True, map_bytes=MAP_BYTES) as store:
        states.append(_state(store))
        add_mark(trace, ACKNOWLEDGED, 0)
        for number, batch in enumerate(islice(draw_batches(seed), batches), 1):
            apply(store, batch)
            add_mark(trace, ACKNOWLEDGED, number)
            states.append(_state(store))
    json.dump(states, sys.stdout)


def _state(store: LmdbStore) -> str:
    """Return a digest of everything that a store holds."""
    digest = hashlib.blake2b(digest_size=16)
    with store.read() as reader:
        for table in TABLE_NAMES:
            for key, value in reader.tables.scan(table):
                digest.update(f"{table} {len(key)} {len(value)} ".encode())
                digest.update(key)
                digest.update(value)
    return digest.hexdigest()


# --- images


def draw_images(recording: Recording, seed: int, count: int, *, honours_sync: bool = True) -> Iterator[Image]:
    """Draw images. Without `honours_sync` the disk forgets what it was told to keep: to see that this is noticed."""
    random = Random(seed)
    calls = recording.calls
    points = sorted(random.randrange(len(calls) + 1) for _ in range(count))
    disk = _Disk()
    acked = -1
    at = 0
    for number, point in enumerate(points):
        for call in calls[at:point]:
            if call.number == ACKNOWLEDGED:
                acked = call.offset
            else:
                disk.take(call, honours_sync=honours_sync)
        at = point
        mode = MODES[number % len(MODES)]
        on_its_way = calls[point] if point < len(calls) and calls[point].number == WRITE else None
        yield Image(point, mode, acked, disk.crash(random, mode, on_its_way))


class _Disk:
    """A file on a disk: what is on it for sure, and the writes since."""

    def __init__(self) -> None:
        self.durable = bytearray()
        self.pending: list[Call] = []

    def take(self, call: Call, *, honours_sync: bool) -> None:
        if call.number == WRITE and not (call.is_synced and honours_sync):
            self.pending.append(call)
        elif call.number == WRITE:
            # Of this write alone it is certain that it is there, but what it lies over may reach the disk no more.
            self.pending = [one for one in self.pending if not _covers(call, one)]
            _put(self.durable, call.offset, call.data)
        elif call.number == SYNC and honours_sync:
            for one in self.pending:
                _put(self.durable, one.offset, one.data)
            self.pending.clear()
        assert call.number != TRUNCATE, "LMDB shortens no file"

    def crash(self, random: Random, mode: str, on_its_way: Call | None) -> bytes:
        """Return what is left. Of each page some of the writes are there, in their order, and of the next one some sectors."""
        image = bytearray(self.durable)
        writes = [*self.pending, *([on_its_way] if on_its_way else [])]
        pages: dict[int, list[tuple[int, bytes]]] = {}
        for one in writes:
            for page, offset, data in _pages_of(one):
                pages.setdefault(page, []).append((offset, data))
        for parts in pages.values():
            count = {"kept": len(parts), "dropped": 0}.get(mode)
            if count is None:
                count = random.randint(0, len(parts))
            for offset, data in parts[:count]:
                _put(image, offset, data)
            if mode == "torn" and count < len(parts):
                _put_some_sectors(image, *parts[count], random)
        longest = max([len(image), *(one.offset + len(one.data) for one in writes)])
        if random.random() < 0.3 and mode != "dropped":
            image.extend(bytes(longest - len(image)))  # the length was written, the pages were not
        return bytes(image)


def _covers(call: Call, other: Call) -> bool:
    return call.offset <= other.offset and other.offset + len(other.data) <= call.offset + len(call.data)


def _pages_of(call: Call) -> Iterator[tuple[int, int, bytes]]:
    offset, end = call.offset, call.offset + len(call.data)
    while offset < end:
        upto = min(end, (offset // PAGE + 1) * PAGE)
        yield offset // PAGE, offset, call.data[offset - call.offset : upto - call.offset]
        offset = upto


def _put(image: bytearray, offset: int, data: bytes) -> None:
    if len(image) < offset:
        image.extend(bytes(offset - len(image)))
    image[offset : offset + len(data)] = data


def _put_some_sectors(image: bytearray, offset: int, data: bytes, random: Random) -> None:
    end = offset + len(data)
    at = offset
    while at < end:
        upto = min(end, (at // SECTOR + 1) * SECTOR)
        if random.random() < 0.5:
            _put(image, at, data[at - offset : upto - offset])
        at = upto


# --- opening and judging


@contextmanager
def opener(directory: Path) -> Iterator["Opener"]:
    """Give what opens images, each in a process of its own."""
    pipe = subprocess.PIPE
    command = [*_command("open"), str(directory)]
    with subprocess.Popen(command, env=_with_path(dict(os.environ)), stdin=pipe, stdout=pipe, text=True) as process:
        yield Opener(directory, process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(OPEN_SECONDS) == 0


class Opener:
    """A process that forks for each image, so that one that ends the interpreter is one answer among many."""

    def __init__(self, directory: Path, process: "subprocess.Popen[str]") -> None:
        self._directory = directory
        self._process = process

    def judge(self, recording: Recording, image: Image) -> str:
        """Open an image; return what is wrong with it, "" when nothing is."""
        (self._directory / "image").mkdir(exist_ok=True)
        for left in (self._directory / "image").iterdir():
            left.unlink()
        (self._directory / "image" / "data.mdb").write_bytes(image.data)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("open\n")
        self._process.stdin.flush()
        told: dict[str, Any] = json.loads(self._process.stdout.readline())
        allowed = recording.states[max(0, image.acked) : image.acked + 2]
        if told.get("state") in allowed:
            return ""
        if "error" in told and image.acked < 0:
            return ""  # its creation was never acknowledged
        where = f"at call {image.crash_at}, {image.mode}, after batch {image.acked}"
        if "state" in told:
            held = recording.states.index(told["state"]) if told["state"] in recording.states else "no batch"
            return f"{where}: the image holds the state of {held}"
        return f"{where}: {told}"


def _open_all(directory: Path) -> None:
    for _ in sys.stdin:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            signal.alarm(OPEN_SECONDS)
            os.write(writer, json.dumps(_open(directory / "image")).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            told = pipe.read().decode()
        _, status = os.waitpid(child, 0)
        print(told or json.dumps({"ended": os.waitstatus_to_exitcode(status)}), flush=True)  # noqa: T201  the answer


def _open(directory: Path) -> dict[str, Any]:
    try:
        damage = check_store(directory)
        if damage:
            return {"damage": [str(one) for one in damage[:5]]}
        with LmdbStore.open(directory, map_bytes=MAP_BYTES) as store:
            state = _state(store)
            for batch in batches_of_next_leader():
                apply(store, batch)
        damage = check_store(directory)
        return {"damage after writing": [str(one) for one in damage[:5]]} if damage else {"state": state}
    except StoreError as error:
        return {"error": str(error)}


def _command(word: str) -> list[str]:
    return [sys.executable, "-W", "error", str(Path(__file__)), word]


def _with_path(environment: dict[str, str]) -> dict[str, str]:
    return {**environment, "PYTHONPATH": str(ROOT)}


def main() -> int:
    """Judge many images; be one of the two helpers when the first argument says so."""
    if sys.argv[1:2] == ["record"]:
        _record(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
        return 0
    if sys.argv[1:2] == ["open"]:
        _open_all(Path(sys.argv[2]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000)
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    faults = 0
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        recording = record(place, compile_shim(place), options.seed, options.batches)
        opens = stack.enter_context(opener(place))
        for image in draw_images(recording, options.seed, options.images):
            fault = opens.judge(recording, image)
            if fault:
                faults += 1
                print(fault)  # noqa: T201  a program
    print(f"{options.images} images of {len(recording.calls)} calls, {faults} of them bad")  # noqa: T201  a program
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
