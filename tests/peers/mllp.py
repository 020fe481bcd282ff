"""An interface engine: takes HL7 v2 messages over MLLP and acknowledges them as it is told to."""

from __future__ import annotations

import socket
import socketserver
import ssl
import threading
from pathlib import Path

START, END = b"\x0b", b"\x1c\x0d"


class Engine:
    """Answers by script, then AA: ``AA``, ``AE``, ``AR``, ``silent``, ``close``, ``other`` (AA for another message).

    Parameters
    ----------
    certificate
        Certificate chain and key in one PEM file: MLLP inside TLS.
    """

    def __init__(self, certificate: Path | None = None):
        engine = self
        self.messages: list[str] = []
        self.connections = 0
        self._script: list[str] = []
        self._released = threading.Event()

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                engine.connections += 1
                engine._serve(self.request)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = allow_reuse_address = True

            def handle_error(self, request, client_address):
                """A peer that leaves is no news."""

        self._server = Server(("127.0.0.1", 0), Handler)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def script(self, *answers: str) -> None:
        """What the next messages are answered."""
        self._script.extend(answers)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def _serve(self, connection: socket.socket) -> None:
        received = b""
        while END not in received:
            part = connection.recv(4096)
            if not part:
                return
            received += part
        message = received[: received.index(END)].removeprefix(START).decode()
        self.messages.append(message)
        answer = self._script.pop(0) if self._script else "AA"
        if answer == "silent":
            self._released.wait(30)
        if answer in ("silent", "close"):
            return
        key = message.split("\r")[0].split("|")[9] if answer != "other" else "SOMEBODY-ELSES"
        code = "AA" if answer == "other" else answer
        # Whoever rejects likes to say whom: nothing of it may come into the node's log.
        told = "MSH|^~\\&|ENGINE||||20260101||ACK^R01^ACK|1|P|2.3\rMSA|%s|%s|Patient SECRET^NAME is not known\r"
        connection.sendall(START + (told % (code, key)).encode() + END)
