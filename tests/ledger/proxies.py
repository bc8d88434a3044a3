"""What may stand between a process and its Postgres server: a connection that breaks, and a pooler."""

from __future__ import annotations

import re
import socket
import struct
import threading
from contextlib import suppress
from typing import Any

__all__ = ["Pooler", "Proxy"]

_READY = b"Z\0\0\0\x05I"
"""The server is ready, and in no transaction."""


class _Between:
    """Listens on a port, and serves each connection in a thread."""

    def __init__(self, postgres: str) -> None:
        folder = re.search(r"host=([^&]+)", postgres)
        assert folder is not None
        self.upstream = f"{folder[1]}/.s.PGSQL.5432"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []

    def __enter__(self) -> Any:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._listener, *self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def url(self, url: str) -> str:
        return (
            f"postgresql://postgres@127.0.0.1:{self.port}/postgres?sslmode=disable&gssencmode=disable&"
            + (url.rpartition("&")[2])
        )

    def server(self) -> socket.socket:
        made = socket.socket(socket.AF_UNIX)
        made.connect(self.upstream)
        self._open.append(made)
        return made

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._open.append(client)
                threading.Thread(target=self._serve_quietly, args=(client,), daemon=True).start()

    def _serve_quietly(self, client: socket.socket) -> None:
        with suppress(OSError):
            self.serve(client)

    def serve(self, client: socket.socket) -> None:
        raise NotImplementedError


class Proxy(_Between):
    """Passes all on, until what the client says holds some words: then it cuts the connection."""

    def __init__(self, postgres: str) -> None:
        super().__init__(postgres)
        self._words: bytes | None = None
        self._arrives = False

    def cut_at(self, words: bytes, *, arrives: bool) -> None:
        self._arrives, self._words = arrives, words

    def serve(self, client: socket.socket) -> None:
        server = self.server()
        threading.Thread(target=self._back, args=(server, client), daemon=True).start()
        while data := client.recv(65_536):
            if self._words is not None and self._words in data:
                self._words = None
                client.shutdown(socket.SHUT_RDWR)
                if self._arrives:
                    server.sendall(data)
                else:
                    server.shutdown(socket.SHUT_RDWR)
                return
            server.sendall(data)

    @staticmethod
    def _back(server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(65_536):
                with suppress(OSError):
                    client.sendall(data)


class Pooler(_Between):
    """Gives each transaction of any client the same session, as a pool of one in transaction mode does."""

    def __init__(self, postgres: str) -> None:
        super().__init__(postgres)
        self._turn = threading.Lock()
        self._session = self.server()
        startup = struct.pack("!i", 196_608) + b"user\0postgres\0database\0postgres\0\0"
        self._session.sendall(struct.pack("!i", len(startup) + 4) + startup)
        self._greeting = self._answer()

    def _answer(self) -> list[bytes]:
        """The server's messages up to the next one that it is ready."""
        messages: list[bytes] = []
        while not messages or messages[-1][:1] != b"Z":
            head = self._exactly(self._session, 5)
            messages.append(head + self._exactly(self._session, struct.unpack("!i", head[1:])[0] - 4))
        return messages

    @staticmethod
    def _exactly(source: socket.socket, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = source.recv(size - len(data))
            if not more:
                raise OSError("it ended")
            data += more
        return data

    def serve(self, client: socket.socket) -> None:
        (size,) = struct.unpack("!i", self._exactly(client, 4))
        self._exactly(client, size - 4)
        # The key that it gives is a pooler's own, and no session's.
        greeting = [each for each in self._greeting if each[:1] not in {b"K", b"Z"}]
        client.sendall(b"".join([*greeting, b"K\0\0\0\x0c" + struct.pack("!ii", 1_000_000_000, 1), _READY]))
        inside = False
        while True:
            head = self._exactly(client, 5)
            data = head + self._exactly(client, struct.unpack("!i", head[1:])[0] - 4)
            if head[:1] == b"X":
                return
            if not inside:
                self._turn.acquire()
                inside = True
            self._session.sendall(data)
            if head[:1] in {b"Q", b"S"}:
                answer = self._answer()
                if answer[-1] == _READY:
                    self._turn.release()
                    inside = False
                client.sendall(b"".join(answer))
