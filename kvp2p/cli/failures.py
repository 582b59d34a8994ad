"""How a command fails: one sentence on stderr, what to do about it, an exit code.

Decides: the exit code and the advice of each failure.
Keeps true: I10, code 4 if and only if nobody knows whether a write was applied, also when it is Ctrl-C that ended the waiting for
    its answer (130 then says that nothing was sent, or only reads were); nothing of ours shows a traceback.
In and out: exceptions and outcomes in, `Failure` out; `main` prints it.
"""

from __future__ import annotations

from typing import Final, NoReturn

NOT_FOUND: Final = 1
DAMAGED: Final = 1  # of `scrub`, which looks for it as others look for a key
USAGE: Final = 2
REFUSED: Final = 3
UNKNOWN: Final = 4
INTERRUPTED: Final = 130  # 128 + SIGINT, as shells have it

_ADVICE: Final = {
    "unauthorized": "Give a token with --token or KVP2P_TOKEN; `kvp2p init` has printed the first one.",
    "forbidden": "Use a token that has this permission; `kvp2p token list` shows what each token may do.",
    "not_ready": "The node has just joined; ask another node or try again in a moment.",
    "not_caught_up": "This node is behind; ask another node or try again in a moment.",
    "no_leader": "Nothing was written. Reads go on; `kvp2p status` shows which node leads or led.",
    "node_unavailable": "Nothing was written. The node process is down or starting; its supervisor restarts it, try again.",
    "last_admin_token": "`kvp2p token create NAME --permission admin` makes another.",
    "overloaded": "Nothing was written. Try again with fewer writes at once.",
    "deadline_passed": "Nothing was written. Try again.",
    "disk_full": "Nothing was written. Make room on the leader's disk.",
    "not_sent": "Is the node running? Is the address right (--url or KVP2P_URL)? Nothing was sent.",
    "namespace_not_found": "`kvp2p namespace list` shows those that there are.",
    "precondition_failed": "Nothing was written. Read the key again and decide anew.",
    "outcome_unknown": "It was not sent again. Read the key before you repeat the write.",
}
_NOT_FOUND_CODES: Final = frozenset({"key_not_found", "namespace_not_found", "token_not_found"})


class Failure(Exception):
    """A command ends with `status`. `code` is the machine-readable word that --json shows, `document` what goes beside it."""

    def __init__(
        self, status: int, code: str, message: str, advice: str | None = None, document: dict[str, object] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.document = document or {}
        self.advice = _ADVICE.get(code, "") if advice is None else advice


def refused(code: str, message: str) -> Failure:
    """Return the failure for an answer with an error code."""
    return Failure(NOT_FOUND if code in _NOT_FOUND_CODES else REFUSED, code, message)


def unknown(reason: str) -> Failure:
    """Return the failure for a write whose outcome nobody knows."""
    return Failure(UNKNOWN, "outcome_unknown", f"nobody knows whether the write was applied: {reason}")


def interrupted() -> Failure:
    """Return the failure for Ctrl-C before a write was sent."""
    return Failure(INTERRUPTED, "interrupted", "interrupted", "")


def interrupted_write() -> Failure:
    """Return the failure for Ctrl-C after a write was, or may have been, sent."""
    return unknown("interrupted before an answer came")


def usage(message: str) -> NoReturn:
    """End the command because it was called wrongly."""
    raise Failure(USAGE, "usage", message, "See --help.")
