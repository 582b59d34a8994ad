"""The data port under abuse: what takes long, or comes in crowds. `abuse_plays.py` acts it out."""

from __future__ import annotations

from tests.bad_input.rows import PlayRow

ABUSE: tuple[PlayRow, ...] = (
    PlayRow(
        what="a head byte by byte, on 50 connections",
        play="drip_head",
        ends="408 `request_timeout`, closed",
        is_told=False,
        note="`head_timeout_seconds` after its first byte",
    ),
    PlayRow(
        what="a body byte by byte",
        play="drip_body",
        ends="200, stored",
        is_told=False,
        note="a byte within each `body_timeout_seconds` is enough",
    ),
    PlayRow(
        what="a body that stops half-way, with a length or in chunks",
        play="half_body",
        ends="408 `request_timeout`, closed",
        is_told=False,
        note="`body_timeout_seconds` after its last byte; the old value stays",
    ),
    PlayRow(
        what="a client that leaves in the middle of a body",
        play="leave_in_body",
        ends="nothing is stored",
        is_told=False,
        note="the old value stays",
    ),
    PlayRow(
        what="1 000 idle connections",
        play="thousand_idle",
        ends="closed in silence",
        is_told=False,
        note="after `idle_timeout_seconds`",
    ),
    PlayRow(
        what="garbage on 300 connections at once",
        play="garbage_in_crowds",
        ends="400 `malformed_request`, closed",
        is_told=False,
    ),
    PlayRow(
        what="a reader that asks for 25 MiB and never reads, on 10 connections",
        play="never_reads_large_value",
        ends="cut",
        is_told=False,
        note="`body_timeout_seconds` after it last took a byte",
    ),
    PlayRow(
        what="a reader that asks again and again and never reads",
        play="never_reads_pipeline",
        ends="cut",
        is_told=False,
        note="what it asks beyond 1 MiB of answers is not read",
    ),
    PlayRow(
        what="25 MiB without a token that may write, on 10 connections",
        play="large_bodies_of_strangers",
        ends="401 `unauthorized`, kept",
        is_told=False,
        note="no byte of it is kept",
    ),
)
