"""Many clients of one REST server in one process, for `benchmarks.serving`.

    python -m benchmarks.clients HOST PORT BODY REQUESTS CLIENTS

sends the file BODY as REQUESTS predict requests over CLIENTS connections that stay open. A request
begins when the one before it on its connection is answered. Prints a JSON list with the seconds of
each request, by connection. The connections' first requests come all at once, while the server
accepts the connections. `benchmarks.serving` starts the process on its own cores.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from pathlib import Path

_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


async def _ask(host: str, port: int, request: bytes, share: int) -> list[float]:
    seconds = []
    reader, writer = await asyncio.open_connection(host, port)
    for _ in range(share):
        began = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        body = await reader.readexactly(int(length[1]) if length else 0)
        seconds.append(time.perf_counter() - began)
        if not head.startswith(b"HTTP/1.1 200") or b'"status": 0' not in body:
            raise RuntimeError((head + body)[:500].decode())
    writer.close()
    return seconds


async def _all(host: str, port: int, body: bytes, requests: int, clients: int) -> list[list[float]]:
    head = (
        f"POST /v1/models/classifier:predict HTTP/1.1\r\nHost: {host}\r\nContent-Length:"
        f" {len(body)}\r\n\r\n"
    )
    request = head.encode() + body
    shares = [requests // clients + (i < requests % clients) for i in range(clients)]
    return await asyncio.gather(*(_ask(host, port, request, share) for share in shares))


if __name__ == "__main__":
    _host, _port, _body, _requests, _clients = sys.argv[1:]
    _answered = _all(_host, int(_port), Path(_body).read_bytes(), int(_requests), int(_clients))
    print(json.dumps(asyncio.run(_answered)))
