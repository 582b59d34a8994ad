"""The one table of limits: every queue, list, message and in-flight byte count is bounded here [I9].

Decides: how much of anything kvp2p takes. A limit is named unit, then `_max`.
Keeps true: I9. A number carries its reason: Cloudflare KV's own limit, a measured trap of LMDB or trio-websocket, or the
word *guess*.
"""

from __future__ import annotations

from typing import Final

# What a caller may store (Cloudflare KV's limits, shared/cloudflare-kv.md §3).
KEY_BYTES_MAX: Final = 512
METADATA_BYTES_MAX: Final = 1024
VALUE_BYTES_MAX: Final = 26_214_400  # Cloudflare's 25 MiB, inclusive
# Up to here a value stands in its row (DESIGN §5); a longer one is cut into chunks, and the row names them.
INLINE_VALUE_BYTES_MAX: Final = 32 * 1024
# What a row may hold all the same: in format 1 values up to here had no chunks. A row stays under 256 KiB in LMDB and on the mesh.
ROW_VALUE_BYTES_MAX: Final = 192 * 1024
CHUNK_BYTES: Final = 256 * 1024  # all chunks of a value but the last (DESIGN §5)
CHUNKS_PER_VALUE_MAX: Final = VALUE_BYTES_MAX // CHUNK_BYTES  # 100; their ids take 3 200 bytes of a row
NAMESPACE_TITLE_CHARS_MAX: Final = 512
NAMESPACES_PER_ACCOUNT_MAX: Final = 1_000
LIST_KEYS_MAX: Final = 1_000
LIST_ROWS_SCANNED_MAX: Final = 5_000  # hidden rows too: 1.4 µs each measured, a list stalls for about 7 ms at most
TOKENS_MAX: Final = 10_000  # guess
TOKEN_NAME_CHARS_MAX: Final = 128  # guess
OPS_PER_WRITE_MAX: Final = 10_000  # Cloudflare's bulk limit
WRITE_BYTES_MAX: Final = 224 * 1024  # one forwarded write fits one mesh message
TTL_SECONDS_MIN: Final = 60
EXPIRES_AT_MAX: Final = 2**53 - 1  # unix seconds; what a JSON number holds exactly
EXPIRES_IN_MAX: Final = EXPIRES_AT_MAX // 2  # seconds from now, so that the moment is one of these

# HTTP parsing (DESIGN §6: what httptools lets through).
HTTP_URL_BYTES_MAX: Final = 8 * 1024
HTTP_HEADER_BYTES_MAX: Final = 16 * 1024
HTTP_HEADERS_MAX: Final = 100
HTTP_CHUNK_EXTENSION_BYTES_MAX: Final = 64
HTTP_PIPELINED_WRITES_MAX: Final = 64  # guess: enough to fill a group commit from one connection
HTTP_CONNECTIONS_MAX: Final = 4_096  # per gateway process; the file descriptor limit is raised to match
HTTP_HEAD_TIMEOUT_SECONDS: Final = 10.0
HTTP_BODY_TIMEOUT_SECONDS: Final = 30.0  # without one byte of progress
HTTP_IDLE_TIMEOUT_SECONDS: Final = 75.0
HTTP_RESPONSE_BUFFER_BYTES_MAX: Final = 1024 * 1024  # unsent answers of one connection before it is not read any more
# received and not answered, of one connection, before reading stops
HTTP_PENDING_REQUESTS_MAX: Final = 2 * HTTP_PIPELINED_WRITES_MAX
HTTP_PENDING_BODY_BYTES_MAX: Final = 1024 * 1024  # of their bodies; guess
HTTP_RECEIVE_BYTES: Final = (
    64 * 1024
)  # guess: some hundred requests in one call; nothing of it is held by an idle connection
# Of all connections of a gateway; guess. Large values may take the second number of it: 153 chunks, so that 51 values at once
# have all that they can use, and 102 more go on with one chunk each. What is left is for small bodies.
HTTP_BODY_BYTES_HELD_MAX: Final = 64 * 1024 * 1024
HTTP_UPLOAD_BYTES_HELD_MAX: Final = 48 * 1024 * 1024
# Of a node's large values that are with the leader, shared out among its gateways: 4 of the largest, for which it has 30 s (3.5 MB/s). The others
# wait for their turn before they are 429: fifty of the largest need 22 MB/s, and longer than that few clients wait. Guesses.
HTTP_LARGE_WRITE_BYTES_MAX: Final = 4 * VALUE_BYTES_MAX
HTTP_TURN_WAIT_SECONDS: Final = 60.0
UPLOAD_CHUNKS_UNANSWERED_MAX: Final = 2  # the next is on its way while one is synced; guess
HTTP_ROOM_WAIT_SECONDS: Final = 10.0  # that a large value waits for the first of these before it is 429; guess
# read and dropped for a 413 on a connection that goes on: the largest value, and a little
HTTP_DISCARDED_BODY_BYTES_MAX: Final = VALUE_BYTES_MAX + 1024 * 1024
# Values of more than one chunk that a gateway sends at once, and for how long: each holds a slot of the store, and the pages that are freed
# meanwhile. 60 s for 25 MiB take a line of 3.5 Mbit/s (DESIGN §5); the number is a guess, well above the 50 that are tested.
HTTP_STREAMS_MAX: Final = 64
HTTP_STREAM_SECONDS_MAX: Final = 60.0
# In the kernel, of one connection that a value has been streamed on: it would take up to 4 MiB otherwise. It also makes progress finer: a reader
# counts as steady when it takes so much within its time.
HTTP_STREAM_NOT_SENT_BYTES: Final = 256 * 1024
HTTP_ACCEPTS_MAX: Final = 64  # connections in one go, so that a flood of them does not stop those that are there; guess
HTTP_BACKLOG_MAX: Final = 1_024  # connections that the kernel keeps for us; guess
HTTP_LINGER_SECONDS: Final = 1.0  # after our last byte, so that the peer reads it before a reset
ACCESS_CACHED_MAX: Final = (
    16_384  # pairs of token and namespace that a process serves without a look at the store; guess
)
API_BACKLOG_MAX: Final = 100  # connections that the kernel keeps for the API port; hypercorn's own
API_BODY_BYTES_MAX: Final = 64 * 1024  # of a request to the API port; guess

# The mesh.
MESH_MESSAGE_BYTES_MAX: Final = 256 * 1024  # one websocket message (DESIGN §6: larger ones starve pings)
FRAME_BYTES_MAX: Final = 224 * 1024  # rows in one frame or walk part, before framing
FRAME_POSITIONS_MAX: Final = 4_096
TERM_MAX: Final = 2**32 - 1  # a version has 4 bytes for it
WALL_MS_MAX: Final = (2**63 - 1) // 1_000_000  # Linux counts wall time in 63 bits of nanoseconds: until the year 2262
STAMP_MAX: Final = WALL_MS_MAX << 16  # 16 bits of counter
# What is above is not taken for the time: 2^40 stamps are left for a leader that goes past one that is just below, which no leader uses up.
STAMP_OBSERVED_MAX: Final = STAMP_MAX - (1 << 40)
STAMPS_AHEAD_MS_MAX: Final = 3_600_000  # before it is told; guess: no clock that somebody looks after is off by so much
# One per start of a leader since the last Purge. A walk's part may have to carry the largest row and the whole vector: a value of 196 608
# bytes, metadata of 1 024, a key and two ends of 528 each, 20 + 20 * 2 048 of vector, about 100 of heads: 240 300 of the 262 139 that fit.
VECTOR_ISSUERS_MAX: Final = 2_048
WALK_ABOVE_ISSUERS_MAX: Final = 512  # in what stands above that vector: 10 260 bytes of the room that is left
MEMBERS_MAX: Final = 1_024
PEERS_MAX: Final = 32  # full mesh up to here
UNPROVEN_LINKS_MAX: Final = 64  # guess: connections to the mesh port that have not proved to be a member's yet
HANDSHAKE_BYTES_MAX: Final = 512  # one message of a handshake; a hello has 87
CONTROL_QUEUE_BYTES_MAX: Final = 1024 * 1024
DATA_QUEUE_BYTES_MAX: Final = 4 * 1024 * 1024
DATA_CREDIT_BYTES_MAX: Final = 2 * 1024 * 1024  # sent and not yet taken in by the peer
PULL_BYTES_MAX: Final = 2 * 1024 * 1024
PULLS_MAX: Final = 4
PERSIST_BYTES_IN_FLIGHT_MAX: Final = 16 * 1024 * 1024  # frames beyond this are dropped and pulled later
SERVES_PER_PEER_MAX: Final = 2 * PULLS_MAX + 1  # questions of one peer that wait for an answer from the store
# in the kernel: what is queued there can no longer be overtaken by a control message
NOT_SENT_BYTES_MAX: Final = 16 * 1024
# Of a payload that is not whole yet, within the time after which a peer counts as silent (5 s): it is then a slow line, with 26 kbit/s or more, and
# the largest payload has 80 s. Guess.
LINK_PROGRESS_BYTES_MIN: Final = 16 * 1024
CREDIT_STEPS: Final = 8  # of a lane's window: so much of it is taken in before credit goes back
# data behind control in one payload; delays it no more than the kernel does, which holds as much
SHARED_PAYLOAD_BYTES_MAX: Final = 16 * 1024
MEMBER_NAME_CHARS_MAX: Final = 128  # guess
URL_CHARS_MAX: Final = 512  # guess: scheme, host name of 253, port
CBOR_DEPTH_MAX: Final = 8  # arrays inside arrays; the deepest message uses 5
# guess: from here on each start of a leader is logged with a warning
ISSUERS_WARNED_OF: Final = VECTOR_ISSUERS_MAX // 2
# A node that has begun more issuers than this within so long waits before it begins another: a crash loop uses up one in 10 s in the long
# run. The span is longer than 8 + 1 waits, so that a loop goes on waiting. Guesses; a leader that is killed every 25 s stays below.
ISSUERS_LATELY_MAX: Final = 8
ISSUERS_LATELY_MS: Final = 100_000
ISSUERS_PAUSE_MS: Final = 10_000
ISSUERS_KEPT_FREE: Final = 64  # guess: issuers that other leaders may have begun and this node has not heard of yet

# The write path.
GROUP_OPS_MAX: Final = 4_096
GROUP_BYTES_MAX: Final = 4 * 1024 * 1024
WRITE_QUEUE_MAX: Final = 16_384  # writes waiting at the leader
WRITE_QUEUE_BYTES_MAX: Final = 64 * 1024 * 1024
FORWARDS_IN_FLIGHT_MAX: Final = 16_384
WRITE_DEADLINE_MS: Final = 5_000
WRITE_LARGE_MS_PER_MIB: Final = 1_000  # more, for the leader to pull the chunks
HOLD_MS: Final = 1_000  # plus 1 000 ms per MiB written
HOLDS_MAX: Final = 16_384  # held replies, and readers waiting for KV-Min-Version, together
LOCAL_MESSAGE_BYTES_MAX: Final = 1024 * 1024  # one message on the unix socket
LOCAL_QUEUE_BYTES_MAX: Final = 8 * 1024 * 1024
# given to the kernel at once; what waits behind it can still be cancelled; guess
LOCAL_SEND_BYTES_MAX: Final = 1024 * 1024
LOCAL_WAITS_MAX: Final = 4_096  # readers of one process that wait for KV-Min-Version; apart from writes, which they must not crowd out; guess
LOCAL_ANSWERS_MAX: Final = (
    65_536  # more than a process may have in flight, so only one that reads nothing gets there; guess
)
LOCAL_COUNTERS_MAX: Final = 4_096  # samples of one process; guess
LOCAL_COUNTER_NAME_CHARS_MAX: Final = 512  # name and labels of one sample
LOCAL_WORD_CHARS_MAX: Final = 64  # the role of a process, the name of a document
SPAN_MARKS_MAX: Final = 8_192  # of up to 105 bytes of JSON: all of them fit one message on the unix socket
INBOX_EVENTS_MAX: Final = 8_192
WALK_ROWS_LOOKED_AT_MAX: Final = 4_096  # guess: own rows compared with a walk's part in one transaction
NAMESPACE_SWEEP_ROWS_MAX: Final = 512  # rows of a deleted namespace freed in one transaction
PURGE_ROWS_MAX: Final = 4_096  # tombstones, and as many expired rows, in one transaction; about 50 ms; guess
LOG_TRIM_MAX: Final = 4_096  # positions freed in one transaction; guess
BATCHES_PER_SYNC_MAX: Final = 256  # guess: bounds how long the first of them waits
CODE_CHARS_MAX: Final = 64  # the codes of DESIGN §7 have up to 20
EXPLANATION_CHARS_MAX: Final = 1_024  # guess: a sentence or three for a person
WRITE_TIMEOUT_MS_MAX: Final = 60_000  # guess: twelve times the deadline of a write, so that the deadline may be tuned
# The estimate of the leader's clock moves by some ms with each digest; a rise by less is not told to gateways. So late, not early, they may
# hide what has expired; guess.
CLOCK_TOLD_MS: Final = 20
# For tests: a year and a day each way. Stamps have 48 bits for milliseconds, all of them after 1970.
CLOCK_OFFSET_MS_MAX: Final = 366 * 86_400_000

# Large values.
CHUNK_PART_BYTES: Final = (
    64 * 1024
)  # of a chunk in one mesh message: a control message waits for no more than this; guess
CHUNK_CREDIT_BYTES_MAX: Final = (
    512 * 1024
)  # sent and not yet taken in by the peer: it stands before whatever comes later; guess
CHUNK_PAYLOAD_BYTES_MAX: Final = CHUNK_PART_BYTES + 1024  # one part with its head
CHUNK_PART_BYTES_MIN: Final = 256  # what may be asked for: a chunk is at most 1 024 messages
CHUNK_PULLS_MAX: Final = (
    6  # chunks under way to this node for its rows, so at most 1.5 MiB of parts in its memory; guess
)
CHUNK_PULLS_BUSY_MAX: Final = (
    2  # while other entries come: four of them delayed small writes twice as much (scripts/bench large)
)
CHUNK_PAUSE_MS_MAX: Final = 200  # a place that had a chunk under way rests as long as that took, up to here; guess
WRITE_CHUNK_PULLS_MAX: Final = (
    2  # and from each peer, for its large writes, to the leader: 16 MiB at most with all of PEERS_MAX; guess
)
CHUNKS_WANTED_MAX: Final = 64  # missing chunks that a batch's result names; more are named when these are here
CHUNKS_WANTED_FIRST_MAX: Final = 32  # of the first rows; the others are one of each row behind them; guess
CHUNK_ROWS_MAX: Final = (
    128  # rows whose missing chunks are named, looked at again whenever chunks have come: 4.5 us each, measured
)
PENDING_TOLD_MAX: Final = (
    256  # versions without all their chunks that a result names, whenever chunks have come: 2.5 us each, measured
)
# Of one local process: chunks that the node has been given and has not stored yet (4 MiB for each gateway in the node's memory), and all
# that wait, which a gateway bounds by bytes besides; guesses.
LOCAL_STAGES_IN_FLIGHT_MAX: Final = 16
LOCAL_STAGES_MAX: Final = 256
STAGE_TIMEOUT_MS: Final = 30_000  # from the chunk's place in the queue to its being durable; guess, a disk that stalls
STAGED_RELEASED_MAX: Final = 256  # staged chunks freed in one transaction
UPLOADS_MAX: Final = 512  # large values on their way in at one node, at most 51 200 chunk ids; guess
# of chunks that local processes have sent and the disk has not taken up yet: 128 of the largest. All gateways together should have fewer
# under way, or some are refused as `overloaded`; guess
UPLOAD_BYTES_WAITING_MAX: Final = 32 * 1024 * 1024
# of chunks given to the store and not synced yet: what a small write may find before it in its own sync; guess
CHUNK_BYTES_TO_DISK_MAX: Final = 2 * CHUNK_BYTES
CHUNKS_SWEPT_MAX: Final = 2_048  # that rows of a deleted namespace name, freed in one transaction: 10 us each, measured
CHUNKS_PER_WRITE_MAX: Final = (
    4 * CHUNKS_PER_VALUE_MAX
)  # of all values of one write: Cloudflare's bulk write has up to 100 MB
LARGE_WRITES_MAX: Final = 256  # writes with chunks under way at the leader; guess
LOCAL_UPLOADS_MAX: Final = HTTP_CONNECTIONS_MAX  # of one local process that have not ended: one for each of its clients

# The store.
STORE_READERS_MAX: Final = 512  # slots of the lock file: several transactions for each of some dozens of processes
# Slots that the streams of all gateways may take; the others are for reads that end at once, of the gateways and of programs.
STORE_STREAMS_MAX: Final = 384
SPARE_TRANSACTIONS_MAX: Final = 16  # read transactions kept for renewal: beginning one takes 0.13 us instead of 0.5
# guess: a few groups of writes; kept free for transactions that make room
STORE_RESERVE_BYTES: Final = 32 * 1024 * 1024
# Read by a scrub in one transaction, which pins pages as long as it is open: about 30 ms of rows of 200 bytes. Guess.
SCRUB_SLICE_BYTES: Final = 1024 * 1024
SCRUB_DAMAGE_MAX: Final = 1_000  # places that a scrub tells of; more of them do not tell more
# rows kept in memory by one transaction: what a group of writes touches, and what it asks for besides
REMEMBERED_ROWS_MAX: Final = 2 * GROUP_OPS_MAX
