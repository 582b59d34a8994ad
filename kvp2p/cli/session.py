"""A command's way to a node: address, token, the client of the data port, requests to the API port.

Decides: where `--url`, `--token` and `--json` come from (the command, the program, the environment, in this order).
Keeps true: I10, no write is ever sent twice; failures of the client become failures of the command here and nowhere else.
In and out: `Session.run` runs an async function on an open client; `Session.api` asks the API port, whose address the data port
    tells; `Session.read_each` asks many nodes at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from kvp2p.cli.failures import REFUSED, Failure, interrupted, interrupted_write, refused, unknown, usage

if TYPE_CHECKING:
    import httpx

    from kvp2p.client import Client, Refused, Unknown

URL_DEFAULT: Final = "http://127.0.0.1:8787"
TIMEOUT_S: Final = 15.0  # above what a node may take for a write: deadline 5 s and hold

Url = Annotated[
    str | None,
    typer.Option(
        "--url", help=f"Data address of any node. [env: KVP2P_URL; default: {URL_DEFAULT}]", show_default=False
    ),
]
Token = Annotated[str | None, typer.Option("--token", help="Token to use. [env: KVP2P_TOKEN]", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, for programs.")]

T = TypeVar("T")


@dataclass(frozen=True)
class Session:
    """What the command line says about the node to talk to."""

    url: str
    token: str | None
    as_json: bool

    def run(
        self,
        work: Callable[[Client], Awaitable[T]],
        connections: int = 1,
        *,
        writes: bool | Callable[[], bool] = False,
        connects_at_once: bool = True,
    ) -> T:
        """Run `work` on a client that is open for its length.

        `writes`: from its first step on `work` may have sent a write, so that an interruption leaves an unknown outcome; or a
        function that tells whether it has. Without `connects_at_once` only what `work` calls for is connected.
        """
        import trio

        from kvp2p.client import ClientConfig, ClientError, NotSent, ReadRefused, open_client

        has_begun = False

        async def run() -> T:
            nonlocal has_begun
            config = ClientConfig(connections=connections, connects_at_once=connects_at_once)
            async with open_client(self.url, self.token, config=config) as client:
                has_begun = True
                return await work(client)

        try:
            return trio.run(run)
        except NotSent as error:
            raise Failure(REFUSED, "not_sent", f"cannot reach {self.url}: {_plain(error.reason)}") from error
        except ReadRefused as error:
            raise refused(error.code or f"http_{error.status}", error.message or f"status {error.status}") from error
        except ClientError as error:
            raise Failure(
                REFUSED, "connection_lost", f"the connection to {self.url} was lost: {error}", "Try again."
            ) from error
        except (KeyboardInterrupt, BaseExceptionGroup) as error:
            if not _is_interruption(error):
                raise
            may_have_written = writes() if callable(writes) else writes and has_begun
            raise (interrupted_write() if may_have_written else interrupted()) from error

    @cached_property
    def health(self) -> dict[str, Any]:
        """What the data port says of its node; no token needed."""
        document: dict[str, Any] = self._request("GET", f"{self.url}/healthz", None)
        return document

    def api(self, method: str, path: str, document: object = None) -> Any:
        """Ask the API port of the node; return the JSON of the answer, None when it has none."""
        return self._request(method, str(self.health["api_url"]) + path, document)

    def read_each(self, urls: Sequence[str], timeout_s: float) -> list[dict[str, Any] | Failure]:
        """Read from all addresses at once; of one that has not answered in `timeout_s`, or wrongly, return the failure."""
        import httpx
        import trio

        told: list[dict[str, Any] | Failure] = [
            Failure(REFUSED, "no_answer", f"no answer from {url} in {timeout_s:g} s", "Ask another node.")
            for url in urls
        ]

        async def read(client: httpx.AsyncClient, number: int) -> None:
            try:
                told[number] = _document("GET", urls[number], await client.get(urls[number]))
            except httpx.ConnectError as error:
                told[number] = Failure(REFUSED, "not_sent", f"cannot reach {urls[number]}: {_plain(str(error))}")
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                told[number] = Failure(REFUSED, "connection_lost", f"no answer from {urls[number]}: {error}", "")
            except Failure as failure:
                told[number] = failure

        async def run() -> None:
            limits = httpx.Limits(max_connections=None)
            client = httpx.AsyncClient(headers=self._headers, timeout=None, limits=limits, trust_env=False)  # noqa: S113  one bound for all
            with trio.move_on_after(timeout_s):
                async with client, trio.open_nursery() as nursery:
                    for number in range(len(urls)):
                        nursery.start_soon(read, client, number)

        try:
            trio.run(run)
        except (KeyboardInterrupt, BaseExceptionGroup) as error:
            if not _is_interruption(error):
                raise
            raise interrupted() from error
        return told

    @property
    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def _request(self, method: str, url: str, document: object) -> Any:
        import httpx

        try:
            answer = httpx.request(
                method, url, headers=self._headers, json=document, timeout=TIMEOUT_S, trust_env=False
            )
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Failure(REFUSED, "not_sent", f"cannot reach {url}: {_plain(str(error))}") from error
        except httpx.HTTPError as error:
            if method == "GET":
                raise Failure(REFUSED, "connection_lost", f"no answer from {url}: {error}", "Try again.") from error
            raise unknown(f"{url} gave no answer: {error}") from error
        except KeyboardInterrupt as error:
            raise (interrupted() if method == "GET" else interrupted_write()) from error
        return _document(method, url, answer)


def _document(method: str, url: str, answer: httpx.Response) -> Any:
    if answer.status_code == 204:
        return None
    try:
        document = answer.json()
    except ValueError:
        document = None
    if answer.is_success and isinstance(document, dict):
        return document
    error = document.get("error") if isinstance(document, dict) else None
    told = error if isinstance(error, dict) else {}
    # A proxy's 502 or 504 says nothing of what the node behind it did with a write, and neither does its error page with 200.
    is_certain = told.get("applied") == "no" or ("applied" not in told and 400 <= answer.status_code < 500)
    if method != "GET" and not is_certain:
        raise unknown(str(told.get("message") or f"{url} answered {answer.status_code} and not as a kvp2p node does"))
    if not told:
        raise Failure(
            REFUSED,
            "not_a_node",
            f"{url} answered {answer.status_code} and not as a kvp2p node does",
            "Check the address.",
        )
    raise refused(str(told.get("code")), str(told.get("message")))


def _is_interruption(error: BaseException) -> bool:
    """Tell Ctrl-C; that which hits a task comes in the group of its nursery."""
    return not isinstance(error, BaseExceptionGroup) or error.split(KeyboardInterrupt)[0] is not None


def session_of(context: typer.Context, url: str | None, token: str | None, as_json: bool) -> Session:
    """Return what applies to this command; raises Failure when the address or the token cannot be one."""
    root: Session = context.find_root().obj
    session = Session((url or root.url).rstrip("/"), token or root.token, as_json or root.as_json)
    if not session.url.startswith("http://") or session.url.count("/") != 2:
        usage(f"--url must be a data address such as {URL_DEFAULT}, not {session.url!r}")
    if session.token is not None and not (session.token.isascii() and session.token.isprintable()):
        usage("--token has characters that no token has")
    context.find_root().obj = session
    return session


def failed(outcome: Refused | Unknown) -> Failure:
    """Return the failure for a write that was not acknowledged."""
    from kvp2p.client import Unknown

    if isinstance(outcome, Unknown):
        return unknown(outcome.reason)
    return refused(outcome.code or f"http_{outcome.status}", outcome.message)


def print_json(document: object) -> None:
    """Print one JSON document to stdout."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def _plain(reason: str) -> str:
    """Return what the system said of a connection, without the wrapping of libraries."""
    for known in ("Connection refused", "No route to host", "Name or service not known", "timed out"):
        if known.lower() in reason.lower() or (known == "Connection refused" and "all attempts to connect" in reason):
            return known.lower()
    return reason
