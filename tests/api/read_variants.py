"""CPU time of reading 100,000 result lines of 1 KB in the ways that the public API offers. Run it: it prints.

python tests/api/read_variants.py [lines]
"""

from __future__ import annotations

import http.client
import random
import socket
import subprocess
import sys
import time
import zlib

import anthropic
import httpx2

from batchwise.api.lines import LineSplitter

LINES = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000


WORDS = [random.Random(n).randbytes(4).hex()[: 2 + n % 7].encode() for n in range(2_000)]


def line(i: int) -> bytes:
    """About 1 KB; the text compresses about as prose does."""
    text = b" ".join(random.Random(i).choices(WORDS, k=200))
    head = b'{"custom_id":"c%08d","result":{"type":"succeeded","message":{"text":"' % i
    return (head + text)[:1017].ljust(1017, b".") + b'"}}\n'


def serve() -> None:
    """GET .../<chunk size>/results; gzip if it is accepted and the size says so."""
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    body = b"".join(line(i) for i in range(LINES))
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    packed = packer.compress(body) + packer.flush()
    while True:
        connection, _ = listener.accept()
        with connection:
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(65536)
            size = int(head.split(b" ")[1].split(b"/")[-2])
            squeeze = b"gzip" in head.lower().split(b"accept-encoding:")[-1].split(b"\r\n")[0]
            data = packed if squeeze else body
            out = [b"HTTP/1.1 200 OK\r\nContent-Type: application/x-jsonl\r\nTransfer-Encoding: chunked\r\n"]
            out.append(b"Content-Encoding: gzip\r\n\r\n" if squeeze else b"\r\n")
            for at in range(0, len(data), size):
                piece = data[at : at + size]
                out += [b"%x\r\n" % len(piece), piece, b"\r\n"]
            out.append(b"0\r\n\r\n")
            connection.sendall(b"".join(out))


def raw(response: httpx2.Response, size: int | None):
    return response.iter_raw(size)


def decoded(response: httpx2.Response, size: int | None):
    return response.iter_bytes(size)


def main() -> None:
    from batchwise.engine.ports import SyncPorts

    server = subprocess.Popen([sys.executable, __file__, str(LINES), "serve"], stdout=subprocess.PIPE)
    assert server.stdout is not None
    port = int(server.stdout.readline())
    client = anthropic.Anthropic(api_key="k", base_url=f"http://127.0.0.1:{port}")
    variants = [
        ("iter_raw(), identity", raw, None, "identity"),
        ("iter_raw(65536), identity", raw, 65_536, "identity"),
        ("iter_raw(1048576), identity", raw, 1_048_576, "identity"),
        ("iter_bytes(), identity", decoded, None, "identity"),
        ("iter_bytes(65536), identity", decoded, 65_536, "identity"),
        ("iter_bytes(), gzip", decoded, None, "gzip"),
    ]
    print(f"anthropic {anthropic.__version__}, {LINES} lines of 1 KB; CPU / wall in seconds, best of 3")
    for chunk in (1_021, 16_384, 262_144):
        print(f"server chunks of {chunk} bytes")
        for name, read, size, encoding in variants:
            path = f"/v1/messages/batches/{chunk}/results"

            def sdk(path=path, read=read, size=size, encoding=encoding) -> int:
                options = {"headers": {"Accept-Encoding": encoding}}
                response = client.get(
                    path, cast_to=httpx2.Response, options=options, stream=True, stream_cls=anthropic.Stream
                )
                splitter = LineSplitter()
                return sum(len(splitter.feed(piece)) for piece in read(response, size))

            measure(name, sdk)

        def ours(chunk=chunk) -> int:
            splitter, count = LineSplitter(), 0

            def feed(piece: bytes) -> bool:
                nonlocal count
                count += len(splitter.feed(piece))
                return True

            SyncPorts(client, sleep=time.sleep).read(str(chunk), feed)
            return count

        def floor(chunk=chunk) -> int:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("GET", f"/v1/messages/batches/{chunk}/results")
            response, splitter, count = connection.getresponse(), LineSplitter(), 0
            while piece := response.read1(262_144):
                count += len(splitter.feed(piece))
            connection.close()
            return count

        measure("SyncPorts.read", ours)
        measure("http.client read1 (for comparison)", floor)
    server.kill()


def measure(name: str, read) -> None:
    best, wall = 1e9, 1e9
    for _ in range(3):
        cpu, clock = time.process_time(), time.perf_counter()
        count = read()
        best, wall = min(best, time.process_time() - cpu), min(wall, time.perf_counter() - clock)
        assert count == LINES, (name, count)
    print(f"  {name:38} {best:6.3f} {wall:6.3f}", flush=True)


if __name__ == "__main__":
    serve() if sys.argv[-1] == "serve" else main()
