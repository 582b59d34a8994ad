"""The demo's own parts: its reader of gettext catalogues, checked against the standard library's."""

import gettext
from pathlib import Path

import pycountry

from scripts.demo import read_catalogue, read_catalogues


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
