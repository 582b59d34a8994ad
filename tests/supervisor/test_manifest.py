"""The manifest of a backup: all fields are required, in their form, and what is wrong is named."""

import json
from typing import Any

import pytest

from kvp2p.errors import StoreFormatError
from kvp2p.supervisor.manifest import MANIFEST_BYTES, Manifest, StoredFile, decode_manifest

SOUND = Manifest(
    backup_format=1,
    made_by="0.1.0",
    made_at="2026-01-31T23:59:59Z",
    cluster_id="0123456789abcdef" * 2,
    node_id="fedcba9876543210" * 2,
    name="n1.rack-2",
    state_hash="00ff" * 8,
    other_members=2,
    files={
        "kvp2p.toml": StoredFile(bytes=0, blake2b="1a" * 32),
        "cluster.key": StoredFile(bytes=150, blake2b="2b" * 32),
        "store.mdb": StoredFile(bytes=1 << 40, blake2b="3c" * 32),
    },
)
FIELDS = tuple(SOUND.document())


def refusal(raw: bytes) -> str:
    with pytest.raises(StoreFormatError) as caught:
        decode_manifest(raw, "FILE")
    return str(caught.value)


def changed(**fields: Any) -> bytes:
    return json.dumps({**SOUND.document(), **fields}).encode()


def test_manifest_reads_back_as_it_was_written() -> None:
    raw = SOUND.encode()
    assert len(raw) == MANIFEST_BYTES
    assert decode_manifest(raw, "FILE") == SOUND
    assert json.loads(raw) == SOUND.document()


@pytest.mark.parametrize("name", FIELDS)
def test_field_that_is_missing_is_named(name: str) -> None:
    document = SOUND.document()
    del document[name]
    told = refusal(json.dumps(document).encode())
    assert f"({name} " in told
    assert told.startswith("FILE is no backup of kvp2p, or it is damaged")
    assert told.endswith("Use another backup")


@pytest.mark.parametrize("value", [None, True, -1, 1.0, 1e400, 10**30, "", "x\n", "é" * 32, [], [1], {}, {"a": {}}])
@pytest.mark.parametrize("name", FIELDS)
def test_field_of_another_form_is_named(name: str, value: object) -> None:
    told = refusal(changed(**{name: value}))
    assert f"({name} " in told or (name == "files" and "(the files " in told)
    assert told.isprintable()
    assert len(told) < 500


FILES = SOUND.document()["files"]


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({**FILES, "kvp2p.toml": None}, "kvp2p.toml must be an object"),
        ({**FILES, "kvp2p.toml": {"bytes": 1}}, "blake2b is missing"),
        ({**FILES, "kvp2p.toml": {"blake2b": "1a" * 32}}, "bytes is missing"),
        ({**FILES, "store.mdb": {"bytes": "1", "blake2b": "1a" * 32}}, "bytes is '1'; it must be a number from 0"),
        ({**FILES, "store.mdb": {"bytes": 1, "blake2b": "1A" * 32}}, "blake2b is '1A1A"),
        ({**FILES, "store.mdb": {"bytes": 1, "blake2b": "1a" * 31}}, "it must be 64 lower-case hex digits"),
        ({**FILES, "../outside": FILES["kvp2p.toml"]}, "'../outside' make no data directory"),
        ({"kvp2p.toml": FILES["kvp2p.toml"]}, "the files 'kvp2p.toml' make no data directory"),
    ],
)
def test_file_that_cannot_be_is_refused(files: object, told: str) -> None:
    assert told in refusal(changed(files=files))


@pytest.mark.parametrize("raw", [b"", b"null", b"[]", b"{}", b"[" * 8_000, b"\xff\xfe", bytes(8_192), b"9" * 8_000])
def test_what_is_no_manifest_is_refused_with_one_line(raw: bytes) -> None:
    told = refusal(raw.ljust(MANIFEST_BYTES))
    assert told.startswith(
        "FILE is no backup of kvp2p, or it is damaged or was not finished: its manifest cannot be read ("
    )
    assert told.endswith(". Use another backup")
    assert told.isprintable()


def test_bit_that_is_turned_over_is_refused_or_leaves_every_field_in_its_form() -> None:
    """All bits of the text: what passes can be written again as it was read, so that nobody who has it meets a surprise."""
    text = SOUND.encode().rstrip()
    passed = refused = 0
    for at in range(8 * len(text)):
        damaged = bytearray(text)
        damaged[at // 8] ^= 1 << at % 8
        try:
            manifest = decode_manifest(bytes(damaged), "FILE")
        except StoreFormatError:
            refused += 1
        else:
            assert manifest == decode_manifest(manifest.encode(), "FILE")
            passed += 1
    assert min(passed, refused) > 100
