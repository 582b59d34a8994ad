"""A client process of the figures get and put: its share of the connections, all repetitions, each from a common start.

Takes one JSON document as its argument, prints one.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict
from typing import Any

import trio

from kvp2p.client import Client, open_client, run_closed_loop
from kvp2p.client.load import Operation

COUNT_MAX = 100_000_000


async def drive(task: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Run the task and return what each repetition came to."""
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(open_client(task["data_url"], task["token"]))
            for _ in range(task["connections"])
        ]
        make = {"GET": reading, "PUT": writing}[task["kind"]]
        operations = [make(client, task, index * 997) for index, client in enumerate(clients)]
        results = []
        for start_at in task["starts"]:
            await trio.sleep(max(0.0, start_at - time.monotonic()))
            cpu = time.process_time()
            summary = await run_closed_loop(
                operations, depth=task["depth"], count_max=COUNT_MAX, duration_s=task["seconds"]
            )
            results.append({**asdict(summary), "per_s": summary.per_second, "cpu_s": time.process_time() - cpu})
        return results


def reading(client: Client, task: Mapping[str, Any], offset: int) -> Operation:
    async def read(number: int) -> str:
        found = await client.get(task["namespace"], f"key/{(number + offset) % task['keys']}")
        return "found" if found is not None and len(found.value) == task["value_bytes"] else "wrong"

    return read


def writing(client: Client, task: Mapping[str, Any], offset: int) -> Operation:
    value = b"v" * task["value_bytes"]

    async def write(number: int) -> str:
        return (await client.put(task["namespace"], f"key/{(number + offset) % task['keys']}", value)).outcome

    return write


if __name__ == "__main__":
    print(json.dumps(trio.run(drive, json.loads(sys.argv[1]))))
