"""Scrubbing: walking a store file to find damage, at a bounded rate, while a node uses it.

Decides: how long a read transaction stays open, and how fast the file is read.
Keeps true
* No slice pins pages for long: freed pages are used again from the second commit after the slice's end.
* I9: at most SCRUB_DAMAGE_MAX places are told, the rest is counted.
In and out: a directory in, `Damage` out. `python -m kvp2p.store.scrub` is the same as a process: a file can be damaged so that LMDB ends
whoever reads it (SIGABRT, or SIGBUS where the file is too short), and that is an answer, too. It writes JSON lines.
"""

from __future__ import annotations

import json
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import lmdb

from kvp2p.core.entry import decode_row, is_value
from kvp2p.core.system_rows import decode_namespace, namespace_key
from kvp2p.errors import RemoteProtocolError, StoreError
from kvp2p.ids import ID_BYTES, SYSTEM_NAMESPACE, NamespaceId
from kvp2p.limits import SCRUB_DAMAGE_MAX, SCRUB_SLICE_BYTES
from kvp2p.store.check import Damage, StoreCheck
from kvp2p.store.layout import LayoutReader
from kvp2p.store.lmdb_store import LmdbStore
from kvp2p.store.snapshot import Snapshot, open_snapshot

_SLICE_SECONDS: Final = 0.1  # of the rate, at most, in one go: a slower walk has shorter slices
_PROGRESS_SECONDS: Final = 0.1


class Progress(NamedTuple):
    """How far a walk is. `bytes_total` is an estimate."""

    stage: str
    bytes_seen: int
    bytes_total: int
    rows: int
    positions: int


class Found(NamedTuple):
    """Damage, with the title of its namespace ("" when there is none to be read)."""

    damage: Damage
    title: str


class Summary(NamedTuple):
    """How a walk ended. `not_compared` are namespaces whose totals changed while their rows were read."""

    damaged: int
    rows: int
    positions: int
    not_compared: list[NamespaceId]


def check_store(path: Path | str) -> list[Damage]:
    """Check a whole store in one transaction; return what is wrong. Raises StoreError when it cannot be opened."""
    found: list[Damage] = []
    scrub(path, on_found=lambda one: found.append(one.damage), is_consistent=True)
    return found


def scrub(
    path: Path | str,
    *,
    on_found: Callable[[Found], object],
    on_progress: Callable[[Progress], object] = lambda _: None,
    bytes_per_second: int | None = None,
    is_consistent: bool = False,
    sleep: Callable[[float], object] = time.sleep,
) -> Summary:
    """Check a store in slices, or in one transaction (`is_consistent`); tell of damage as it is found.

    Raises StoreError when the store cannot be opened, or was replaced meanwhile.
    """
    walk = _Walk(on_found, on_progress, bytes_per_second, sleep)
    with LmdbStore.open(path, readonly=True) as store:
        while walk.check.stage:
            store.check_in_place()
            with open_snapshot(store) as snapshot:
                walk.take_slice(snapshot)
                while is_consistent and walk.check.stage:
                    walk.rest()
                    walk.take_slice(snapshot)
            walk.rest()
    check = walk.check
    return Summary(walk.damaged, check.rows_seen, check.positions_seen, check.not_compared)


class _Walk:
    """One walk through a store. It rests after each slice, for as long as its rate wants."""

    def __init__(
        self,
        on_found: Callable[[Found], object],
        on_progress: Callable[[Progress], object],
        bytes_per_second: int | None,
        sleep: Callable[[float], object],
    ) -> None:
        self.check = StoreCheck()
        self.damaged = 0
        self._on_found = on_found
        self._on_progress = on_progress
        self._rate = bytes_per_second
        self._sleep = sleep
        self._slice_bytes = SCRUB_SLICE_BYTES
        if bytes_per_second is not None:
            self._slice_bytes = max(1, min(SCRUB_SLICE_BYTES, int(bytes_per_second * _SLICE_SECONDS)))
        self._bytes_seen = 0
        self._rest_s = 0.0

    def take_slice(self, snapshot: Snapshot) -> None:
        begun = time.monotonic()
        check, reader, bytes_in_use = self.check, snapshot.reader, snapshot.bytes_in_use
        try:
            damage, bytes_seen = check.go_on(reader, self._slice_bytes)
        except lmdb.Error as error:
            check.give_up()
            message = f"LMDB cannot read the file any further: {error}"
            damage, bytes_seen = [*check.damage, Damage("file", None, None, message)], 0
        self._bytes_seen += bytes_seen
        for one in damage:
            self.damaged += 1
            if self.damaged <= SCRUB_DAMAGE_MAX:
                self._on_found(Found(one, _title(reader, one.namespace)))
        total = max(self._bytes_seen, bytes_in_use)
        self._on_progress(Progress(check.stage, self._bytes_seen, total, check.rows_seen, check.positions_seen))
        if self._rate is not None:
            self._rest_s = bytes_seen / self._rate - (time.monotonic() - begun)

    def rest(self) -> None:
        if self.check.stage and self._rest_s > 0:
            self._sleep(self._rest_s)


def _title(reader: LayoutReader, namespace: NamespaceId | None) -> str:
    """Return the title of a namespace, as far as it can be read."""
    if namespace is None or len(namespace) != ID_BYTES:
        return ""
    key = namespace_key(namespace)
    try:
        row = reader.row(SYSTEM_NAMESPACE, key)
        if row is not None and is_value(row):
            return decode_namespace(key, decode_row(SYSTEM_NAMESPACE, key, row).value).title
    except (
        RemoteProtocolError,
        ValueError,
        struct.error,
        lmdb.Error,
    ):  # the last after LMDB has given this transaction up
        pass
    return ""


def main() -> int:
    """Scrub the store that the first argument names, at the bytes per second of the second (0: no limit), in slices or not."""
    path, bytes_per_second, mode = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    told_at = 0.0

    def tell(**document: Any) -> None:
        sys.stdout.write(json.dumps(document) + "\n")
        sys.stdout.flush()

    def on_progress(progress: Progress) -> None:
        nonlocal told_at
        if time.monotonic() - told_at > _PROGRESS_SECONDS:
            told_at = time.monotonic()
            tell(progress=progress._asdict())

    def on_found(found: Found) -> None:
        what, namespace, key, message = found.damage
        tell(
            damage={
                "what": what,
                "namespace": namespace.hex() if namespace is not None else None,
                "title": found.title,
                "key": key.decode("utf-8", "backslashreplace") if key is not None else None,
                "message": message,
            }
        )

    try:
        done = scrub(
            path,
            on_found=on_found,
            on_progress=on_progress,
            bytes_per_second=bytes_per_second or None,
            is_consistent=mode == "consistent",
        )
    except StoreError as error:
        tell(error=str(error))
        return 0
    tell(done={**done._asdict(), "not_compared": [one.hex() for one in done.not_compared]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
