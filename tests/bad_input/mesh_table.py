"""The mesh port: what strangers and faulty members send, and how their links end. `mesh_plays.py` acts it out."""

from __future__ import annotations

from tests.bad_input.rows import PlayRow

STRANGERS: tuple[PlayRow, ...] = (
    PlayRow(
        what="garbage, TLS, plain HTTP, endless headers, garbage after the upgrade, an unmasked or endless websocket frame",
        play="garbage",
        ends="closed",
        is_told=False,
    ),
    PlayRow(
        what="a connection that says nothing, before or after the upgrade",
        play="silence",
        ends="closed when the time of a handshake is over",
        is_told=False,
        log="handshake_refused timeout",
    ),
    PlayRow(
        what="the upgrade byte by byte",
        play="drip_upgrade",
        ends="closed when the time of a handshake is over",
        is_told=False,
        log="handshake_refused timeout",
    ),
    PlayRow(what="a reset in the middle of the upgrade, 40 times", play="reset_in_upgrade", ends="closed", is_told=False),
    PlayRow(
        what="65 connections that prove nothing",
        play="many_unproven",
        ends="the 65th is closed at once",
        is_told=False,
        log="handshake_refused too_many_unproven",
    ),
    PlayRow(
        what="a first message that is empty, text, garbage, half a hello, over 512 bytes",
        play="no_hello",
        ends="malformed",
        log="handshake_refused malformed",
    ),
    PlayRow(what="another cluster's id", play="other_cluster", ends="other_cluster", log="handshake_refused other_cluster"),
    PlayRow(what="another version of the protocol", play="other_version", ends="other_version", log="handshake_refused other_version"),
    PlayRow(what="a wrong key", play="wrong_key", ends="wrong_key", log="handshake_refused wrong_key"),
    PlayRow(
        what="a handshake of a member, recorded and replayed",
        play="replayed_handshake",
        ends="wrong_key",
        log="handshake_refused wrong_key",
    ),
    PlayRow(
        what="at a URL that a node dials: its challenge and its own proof reflected",
        play="reflected_challenge",
        ends="wrong_key",
        log="n2: handshake_refused wrong_key",
    ),
    PlayRow(
        what="the same: a reset in the upgrade, garbage, a refused upgrade",
        play="trap_that_spoils_the_upgrade",
        ends="it goes on dialling",
        is_told=False,
        log="n2: dial_failed connection_lost",
    ),
    PlayRow(
        what="the same: its own hello reflected",
        play="reflected_hello",
        ends="self_connection",
        note="that URL is dialled no more",
    ),
    PlayRow(
        what="a node's own id, from another process",
        play="copied_node_id",
        ends="copied_node_id",
        log="handshake_refused copied_node_id",
    ),
)  # fmt: skip

MEMBERS: tuple[PlayRow, ...] = (
    PlayRow(
        what="garbage, text, nothing, a message of an unknown kind",
        play="member_garbage",
        ends="protocol error: …",
        log="link_down protocol error: …",
    ),
    PlayRow(
        what="a message of over 256 KiB",
        play="member_oversize",
        ends="Exceeded maximum message size: 262144 bytes",
        log="link_down protocol error: a websocket message has over 262144 bytes",
    ),
    PlayRow(
        what="half of a message, as a whole one",
        play="member_half_item",
        ends="protocol error: the payload ends inside an item",
        log="link_down protocol error: the payload ends inside an item",
    ),
    PlayRow(
        what="half of a websocket frame, and silence",
        play="member_half_frame",
        ends="nothing was heard of the peer for … s",
        log="link_down nothing was heard of the peer for … s",
    ),
    PlayRow(
        what="a websocket frame byte by byte",
        play="member_drip",
        ends="nothing was heard of the peer for … s",
        log="link_down nothing was heard of the peer for … s",
    ),
    PlayRow(
        what="data, but no answer to a ping",
        play="member_mute",
        ends="the peer answered no ping for … s",
        log="link_down the peer answered no ping for … s",
    ),
    PlayRow(
        what="a damaged row; positions that do not ascend, or lie behind the frame's end",
        play="member_bad_frames",
        ends="protocol error: …",
        log="link_down protocol error: …",
    ),
    PlayRow(
        what="more questions at once than are allowed",
        play="member_asks_too_much",
        ends="it asks for more at once than the protocol allows",
        log="link_down it asks for more at once than the protocol allows",
    ),
    PlayRow(
        what="to the leader: frames or rows of its own log, at positions that it never issued",
        play="made_up_positions",
        ends="it sends positions up to …, and this node has issued …",
        log="peer_refused it sends positions up to …",
    ),
    PlayRow(
        what="to the leader: a digest with positions that it never issued",
        play="made_up_digest",
        ends="the link stays",
        is_told=False,
        log="unissued_positions_shown",
        note="they are not asked for",
    ),
    PlayRow(
        what="stamps after the year 2262, in frames, rows and digests; a row with the stamp 0",
        play="impossible_stamps",
        ends="protocol error: …",
        log="link_down protocol error: …",
    ),
    PlayRow(
        what="a write to an unknown namespace",
        play="forward_to_unknown_namespace",
        ends="namespace_not_found",
    ),
    PlayRow(
        what="a second process with the id of a member: the newest link counts",
        play="two_with_one_id",
        ends="the peer has restarted",
        log="link_down the peer has restarted",
    ),
    PlayRow(
        what="a second link of the same process",
        play="second_link",
        ends="already_linked",
    ),
    PlayRow(
        what="entries of an unknown namespace",
        play="entries_of_unknown_namespace",
        ends="the link stays",
        is_told=False,
        note="kept, and shown to nobody: the namespace's own entry may come later",
    ),
    PlayRow(
        what="a member with the name of another",
        play="two_with_one_name",
        ends="the link stays",
        is_told=False,
        log="two_members_with_one_name",
    ),
    PlayRow(
        what="entries with stamps a day ahead",
        play="stamps_a_day_ahead",
        ends="the link stays",
        is_told=False,
        log="stamps_ahead",
        note="joined, and what is written next is above them",
    ),
    PlayRow(
        what="a digest with the latest of all stamps",
        play="latest_stamp_in_a_digest",
        ends="the link stays",
        is_told=False,
        log="stamps_ahead",
        note="not taken for the time: writes go on",
    ),
)

MESH_GROUPS: dict[str, tuple[PlayRow, ...]] = {"Strangers": STRANGERS, "Members that misbehave": MEMBERS}
