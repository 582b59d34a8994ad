"""Who may open a link: mutual challenge and response, as bytes in and bytes out.

Decides: the protocol version of a link, who is at its other end, and who of the two has the last word on whether it stays.

    dialler                                acceptor
    hello: versions, cluster, node,  --->
           instance, nonce           <---  hello: the same of its own
    proof: MAC("dialler", …)         --->  checked here; on failure the acceptor has shown nothing but its hello
    checked here                     <---  proof: MAC("acceptor", …)
    accept, from the end with the smaller node id, whichever way it was dialled: it has the last word

    MAC = HMAC-SHA256(cluster key, "kvp2p link" ‖ direction ‖ version ‖ length and bytes of the dialler's hello ‖ of the acceptor's hello)

Each end may say `refuse` with a word instead of any message.

Keeps true: the MAC covers both nonces (32 bytes, fresh for each connection), both node ids, both instances, the cluster id, the version agreed on and
the ranges offered, and the direction. So an old proof does not fit a new nonce (replay), a proof does not fit the other direction or another
connection (reflection), and nobody in between can lower the version. *The one that dials proves first*: whoever can merely reach the mesh
port never gets a MAC out of a node, neither to attack the key with nor to pass on. A dialler does give its MAC to whatever answers at the URL it
was told; that MAC is good for these two nonces only, so the worst that a false acceptor can do is to relay: being a wire. Against one that then changes
what it relays only encryption helps, which is TLS's part, not built yet.
In and out: one websocket message each way a step. Raises HandshakeRefused with a stable word; nothing is kept of a refused peer.
Source: challenge-response with both identities in the MAC, as ISO/IEC 9798-4 (three-pass mutual authentication) and SKID3 have it;
here the whole transcript of hellos is covered instead of chosen fields.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from typing import Final

from kvp2p.errors import HandshakeRefused, LocalProtocolError, RemoteProtocolError
from kvp2p.ids import ID_BYTES, ClusterId, NodeId
from kvp2p.limits import HANDSHAKE_BYTES_MAX
from kvp2p.wire.cbor import CborValue, decode, encode
from kvp2p.wire.fields import U32_MAX, fixed, items, number, text
from kvp2p.wire.mesh import WIRE_VERSION

NONCE_BYTES: Final = 32
INSTANCE_BYTES: Final = 8
KEY_BYTES: Final = 32
MAC_BYTES: Final = 32
PROTOCOL: Final = "kvp2p"
WORD_CHARS_MAX: Final = 32
_DOMAIN: Final = b"kvp2p link"
_HELLO, _PROOF, _ACCEPT, _REFUSE = 1, 2, 3, 4
_HELLO_FIELDS: Final = 8  # more may follow in later versions: ignored, but covered by the MAC


class Refusal(StrEnum):
    """Why a link is not opened, in a word."""

    OTHER_CLUSTER = "other_cluster"
    OTHER_VERSION = "other_version"
    WRONG_KEY = "wrong_key"
    SELF = "self_connection"
    COPIED_NODE_ID = "copied_node_id"  # somebody runs a copy of this node's data directory
    ALREADY_LINKED = "already_linked"
    TOO_MANY_LINKS = "too_many_links"
    MALFORMED = "malformed"


# What somebody has to check for a refusal that no further attempt can mend; true at both ends.
CHECKS: Final[dict[str, str]] = {
    Refusal.OTHER_CLUSTER: "the two nodes belong to different clusters: check the mesh URLs in `join`, and that this node was made "
    "with the cluster.key of a member of the cluster that it is to join",
    Refusal.OTHER_VERSION: "the two nodes speak different versions of the protocol: check that they run the same release of kvp2p",
    Refusal.WRONG_KEY: "the two nodes are of one cluster and have different keys: check that cluster.key is the same file on both",
    Refusal.COPIED_NODE_ID: "two processes have the same node id: check that no copy of a data directory runs; make a further "
    "node with `kvp2p init --join`",
}


@dataclass(frozen=True, slots=True)
class Identity:
    """This end. `instance` is drawn each time the process starts, so that a restarted node is told from its former self."""

    cluster: ClusterId
    node: NodeId
    instance: bytes
    key: bytes = field(repr=False)
    versions: tuple[int, int] = (WIRE_VERSION, WIRE_VERSION)  # least and greatest that this end speaks

    def __post_init__(self) -> None:
        """Refuse what cannot work; the key is not shown."""
        widths = (len(self.cluster), len(self.node), len(self.instance), len(self.key))
        if widths != (ID_BYTES, ID_BYTES, INSTANCE_BYTES, KEY_BYTES):
            raise LocalProtocolError(f"cluster, node, instance and key have {widths} bytes")


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end, as its hello says; true only once it has proved it."""

    node: NodeId
    instance: bytes


class Phase(Enum):
    """Where a handshake stands."""

    HELLO = auto()  # waits for the other hello
    PROOF = auto()  # waits for the other proof
    PROVEN = auto()  # the peer is who it says; the one that decides may accept or refuse
    OPEN = auto()


class Handshake:
    """One end of one handshake."""

    def __init__(self, identity: Identity, is_dialler: bool, nonce: bytes) -> None:
        if len(nonce) != NONCE_BYTES:
            raise LocalProtocolError(f"a nonce has {len(nonce)} bytes, not {NONCE_BYTES}")
        self.phase = Phase.HELLO
        self.version = 0  # agreed on once hellos are exchanged
        self._identity = identity
        self._is_dialler = is_dialler
        self._own_hello = encode(
            [
                _HELLO,
                PROTOCOL,
                *identity.versions,
                identity.cluster,
                identity.node,
                identity.instance,
                nonce,
            ]
        )
        self._other_hello = b""
        self._peer: Peer | None = None

    @property
    def peer(self) -> Peer | None:
        """The other end, once its hello has come; not to be believed before `phase` is PROVEN."""
        return self._peer

    @property
    def decides(self) -> bool:
        """Tell whether this end has the last word: the smaller node id has, so that exactly one of two does."""
        return self._peer is not None and self._identity.node < self._peer.node

    def start(self) -> bytes | None:
        """Return the first message: the dialler's hello; an acceptor waits."""
        return self._own_hello if self._is_dialler else None

    def receive(self, data: bytes) -> bytes | None:
        """Take a message of the other end and return the answer, if there is one.

        Raises HandshakeRefused; this end is then of no more use.
        """
        tag, fields = _read(data)
        if tag == _REFUSE:
            raise _refused_by_peer(fields)
        match self.phase, tag:
            case Phase.HELLO, 1:
                self._take_hello(data, fields)
                self.phase = Phase.PROOF
                return self._proof(self._is_dialler) if self._is_dialler else self._own_hello
            case Phase.PROOF, 2:
                self._check_proof(fields)
                self.phase = Phase.PROVEN
                return None if self._is_dialler else self._proof(self._is_dialler)
            case Phase.PROVEN, 3 if not self.decides:
                self.phase = Phase.OPEN
                return None
        raise _malformed(f"message {tag} has no place in phase {self.phase.name}")

    def accept(self) -> bytes:
        """Open the link; only the end that decides may."""
        if self.phase is not Phase.PROVEN or not self.decides:
            raise LocalProtocolError(f"this end cannot accept in phase {self.phase.name}")
        self.phase = Phase.OPEN
        return encode([_ACCEPT])

    def _take_hello(self, data: bytes, fields: list[CborValue]) -> None:
        try:
            if len(fields) < _HELLO_FIELDS or text(fields[1], "protocol", WORD_CHARS_MAX) != PROTOCOL:
                raise _malformed("the hello is not kvp2p's")
            least, greatest = (
                number(fields[2], "least version", U32_MAX),
                number(fields[3], "greatest version", U32_MAX),
            )
            cluster = fixed(fields[4], ID_BYTES, "cluster id")
            node = NodeId(fixed(fields[5], ID_BYTES, "node id"))
            instance = fixed(fields[6], INSTANCE_BYTES, "instance")
            fixed(fields[7], NONCE_BYTES, "nonce")
        except HandshakeRefused:
            raise
        except RemoteProtocolError as error:
            raise _malformed(str(error)) from error
        mine = self._identity
        self.version = min(greatest, mine.versions[1])
        if self.version < max(least, mine.versions[0]):
            raise HandshakeRefused(
                Refusal.OTHER_VERSION,
                f"the peer speaks versions {least} to {greatest} of the protocol, this node {mine.versions[0]} to {mine.versions[1]}",
            )
        if cluster != mine.cluster:
            raise HandshakeRefused(
                Refusal.OTHER_CLUSTER, f"the peer is of cluster {cluster.hex()}, not {mine.cluster.hex()}"
            )
        if node == mine.node:
            if instance == mine.instance:
                raise HandshakeRefused(Refusal.SELF, "the other end is this very node")
            raise HandshakeRefused(
                Refusal.COPIED_NODE_ID, "another process has this node's id: a copied data directory?"
            )
        self._other_hello = data
        self._peer = Peer(node, instance)

    def _check_proof(self, fields: list[CborValue]) -> None:
        try:
            mac = fixed(fields[-1], MAC_BYTES, "proof")
        except RemoteProtocolError as error:
            raise _malformed(str(error)) from error
        if not hmac.compare_digest(mac, self._mac(not self._is_dialler)):
            raise HandshakeRefused(Refusal.WRONG_KEY, "the peer does not have this cluster's key")

    def _proof(self, by_dialler: bool) -> bytes:
        return encode([_PROOF, self._mac(by_dialler)])

    def _mac(self, by_dialler: bool) -> bytes:
        hellos = (self._own_hello, self._other_hello)
        if not self._is_dialler:
            hellos = hellos[::-1]
        # Lengths stand before the parts of variable length, so that no two transcripts run together to the same bytes.
        transcript = b"".join(len(hello).to_bytes(4, "big") + hello for hello in hellos)
        direction = b"D" if by_dialler else b"A"
        message = _DOMAIN + direction + self.version.to_bytes(4, "big") + transcript
        return hmac.digest(self._identity.key, message, "sha256")


def refuse(reason: str) -> bytes:
    """Return the message that ends a handshake with a word."""
    return encode([_REFUSE, reason])


def _read(data: bytes) -> tuple[int, list[CborValue]]:
    try:
        fields = items(decode(data, HANDSHAKE_BYTES_MAX), "a message of a handshake", HANDSHAKE_BYTES_MAX, 1)
        return number(fields[0], "its kind", U32_MAX), fields
    except RemoteProtocolError as error:
        raise _malformed(str(error)) from error


def _refused_by_peer(fields: list[CborValue]) -> HandshakeRefused:
    try:
        reason = text(fields[-1], "reason", WORD_CHARS_MAX)
    except RemoteProtocolError as error:
        return _malformed(str(error))
    # Shown in logs: only our own words are repeated.
    word = reason if reason in set(Refusal) else "unknown"
    return HandshakeRefused(word, f"the peer refused the link: {word}", by_peer=True)


def _malformed(message: str) -> HandshakeRefused:
    return HandshakeRefused(Refusal.MALFORMED, message)
