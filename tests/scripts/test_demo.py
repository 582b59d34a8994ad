"""The demo's own parts: its reader of gettext catalogues, checked against the standard library's, and its comparison."""

import gettext
from pathlib import Path
from typing import cast

import pycountry
import trio

from kvp2p.client import Client, Found, Response
from scripts.demo import Cluster, Demo, read_catalogue, read_catalogues


def test_every_entry_of_a_catalogue_is_read_but_its_header() -> None:
    path = Path(pycountry.__file__).parent / "locales" / "de" / "LC_MESSAGES" / "iso4217.mo"
    with path.open("rb") as file:
        translations = gettext.GNUTranslations(file)
    entries = dict(read_catalogue(path))
    assert len(entries) > 100
    assert "" not in entries
    assert {msgid: translations.gettext(msgid).encode() for msgid in entries} == entries


def test_the_catalogues_make_over_55_000_keys_that_a_node_takes() -> None:
    entries = read_catalogues()
    assert len(entries) > 55_000
    assert entries["iso3166-1/de/Germany"] == b"Deutschland"
    assert max(len(key.encode()) for key in entries) <= 512


class FakeClient:
    """A node that has these values."""

    def __init__(self, values: dict[str, bytes]) -> None:
        self.values = values

    async def get(self, _namespace: str, key: str, *, min_version: str | None = None) -> Found | None:
        return (await self.get_many("", [key]))[0]

    async def get_many(self, _namespace: str, keys: list[str]) -> list[Found | None]:
        await trio.lowlevel.checkpoint()
        found = (self.values.get(key) for key in keys)
        return [None if value is None else Found(Response(200, [], value, closes=False)) for value in found]


async def compare_nodes(entries: dict[str, bytes], *nodes: dict[str, bytes]) -> Demo:
    demo = Demo(Cluster(Path("unused")), entries)
    clients = {f"n{number}": cast("Client", FakeClient(values)) for number, values in enumerate(nodes, 1)}
    await demo._compare(clients, "comparison")
    return demo


async def test_equal_nodes_are_compared_key_by_key_and_found_good() -> None:
    entries = {f"k{number}": b"%d" % number for number in range(500)}
    demo = await compare_nodes(entries, dict(entries), dict(entries), dict(entries))
    assert demo.comparisons == 1_500
    assert demo.report.is_good


async def test_one_different_or_missing_value_fails_the_demo() -> None:
    entries = {f"k{number}": b"%d" % number for number in range(500)}
    assert not (await compare_nodes(entries, entries, {**entries, "k77": b"78"})).report.is_good
    assert not (
        await compare_nodes(entries, entries, {key: entries[key] for key in entries if key != "k3"})
    ).report.is_good
