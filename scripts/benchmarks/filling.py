"""Writing what a figure needs to be there: a namespace with keys, through one node, as fast as that goes."""

from __future__ import annotations

from collections.abc import Callable

import trio

from kvp2p.client import Acked, Client, Namespace, open_client, run_closed_loop
from scripts.benchmarks.results import CannotMeasure, run_async

NAMESPACE = "bench"
FILL_DEPTH = 512
FILL_SECONDS_MAX = 300.0
KNOWN_SECONDS_MAX = 10.0


async def make_namespace(client: Client) -> str:
    """Make the namespace of all figures and return its id."""
    made = await client.create_namespace(NAMESPACE)
    if not isinstance(made, Namespace):
        raise CannotMeasure(f"the namespace could not be made: {made}")
    return made.id


async def until_known(client: Client, namespace: str) -> None:
    """Wait until a node has a namespace that was made at another one."""
    with trio.fail_after(KNOWN_SECONDS_MAX):
        while namespace not in {one.id for one in await client.list_namespaces()}:  # noqa: ASYNC110  nothing to wait for
            await trio.sleep(0.01)


async def write_keys(
    client: Client, namespace: str, numbers: range, value_of: Callable[[int], bytes], *, depth: int = FILL_DEPTH
) -> str:
    """Write key/N for each number and return the greatest version. The first write that is not acknowledged ends it."""
    newest = ""

    async def write(index: int) -> str:
        nonlocal newest
        outcome = await client.put(namespace, f"key/{numbers[index]}", value_of(numbers[index]))
        if not isinstance(outcome, Acked):
            raise CannotMeasure(f"a key could not be written: {outcome}")
        newest = max(newest, outcome.version)
        return outcome.outcome

    try:
        summary = await run_closed_loop([write], depth=depth, count_max=len(numbers), duration_s=FILL_SECONDS_MAX)
    except* CannotMeasure as group:
        raise CannotMeasure(str(group.exceptions[0])) from group
    if summary.outcomes != {"acked": len(numbers)}:
        raise CannotMeasure(f"filling came to {summary.outcomes} of {len(numbers)} writes")
    return newest


def fill(data_url: str, token: str, keys: int, value: bytes) -> str:
    """Make the namespace with so many keys of one value and return its id."""

    async def make_and_fill() -> str:
        async with open_client(data_url, token) as client:
            namespace = await make_namespace(client)
            await write_keys(client, namespace, range(keys), lambda _: value)
            return namespace

    return run_async(make_and_fill)
