"""A peer that says exactly what it is told, byte by byte: associations, messages cut anywhere, and plain nonsense."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import UID

APPLICATION_CONTEXT = b"1.2.840.10008.3.1.1.1"
VERIFICATION = "1.2.840.10008.1.1"
EXPLICIT = "1.2.840.10008.1.2.1"
IMPLICIT = "1.2.840.10008.1.2"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
RELEASE_RQ = b"\5\0\0\0\0\4\0\0\0\0"
ABORT = b"\7\0\0\0\0\4\0\0\0\0"
#: (abstract syntax, transfer syntaxes) by presentation context ID.
Contexts = Mapping[int, tuple[str, Sequence[str]]]


class Rejected(Exception):
    """A-ASSOCIATE-RJ: result, source, reason."""

    def __init__(self, result: int, source: int, reason: int) -> None:
        super().__init__(f"{result}/{source}/{reason}")
        self.parameters = (result, source, reason)


class Gone(Exception):
    """The node aborted or closed the connection; ``abort`` says which."""

    def __init__(self, abort: bool) -> None:
        super().__init__("aborted" if abort else "closed")
        self.abort = abort


@dataclass(frozen=True)
class Response:
    """A DIMSE response."""

    context: int
    field: int
    message_id: int
    status: int


def item(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(body)) + body


def associate_rq(called: str, calling: str, contexts: Contexts, max_pdu: int = 16384) -> bytes:
    body = struct.pack(">HH16s16s32x", 1, 0, called.encode().ljust(16), calling.encode().ljust(16))
    body += item(0x10, APPLICATION_CONTEXT)
    for number, (abstract, transfers) in contexts.items():
        syntaxes = item(0x30, abstract.encode()) + b"".join(item(0x40, uid.encode()) for uid in transfers)
        body += item(0x20, bytes([number, 0, 0, 0]) + syntaxes)
    body += item(0x50, item(0x51, struct.pack(">L", max_pdu)) + item(0x52, b"1.2.826.0.1.3680043.10.9999.9"))
    return struct.pack(">BBL", 1, 0, len(body)) + body


def element(number: int, value: bytes) -> bytes:
    return struct.pack("<HHL", 0, number, len(value)) + value


def padded(uid: str) -> bytes:
    raw = uid.encode("latin-1")
    return raw + b"\0" * (len(raw) & 1)


def command_set(*elements: bytes) -> bytes:
    body = b"".join(elements)
    return element(0, struct.pack("<L", len(body))) + body


def store_rq(message_id: int, sop_class: str, sop_instance: str, *, data_set: int = 1) -> bytes:
    return command_set(
        element(0x2, padded(sop_class)),
        element(0x100, b"\1\0"),
        element(0x110, struct.pack("<H", message_id)),
        element(0x700, b"\0\0"),
        element(0x800, struct.pack("<H", data_set)),
        element(0x1000, padded(sop_instance)),
    )


def echo_rq(message_id: int) -> bytes:
    return command_set(
        element(0x2, padded(VERIFICATION)),
        element(0x100, b"\x30\0"),
        element(0x110, struct.pack("<H", message_id)),
        element(0x800, b"\1\1"),
    )


def pdv(context: int, control: int, payload: bytes) -> bytes:
    return struct.pack(">LBB", len(payload) + 2, context, control) + payload


def p_data(*pdvs: bytes) -> bytes:
    body = b"".join(pdvs)
    return struct.pack(">BBL", 4, 0, len(body)) + body


def fragments(context: int, command: bytes, data: bytes, size: int = 16000) -> Iterator[bytes]:
    """PDVs of one message; an empty data set becomes one empty last fragment."""
    yield pdv(context, 3, command)
    for start in range(0, max(1, len(data)), size):
        last = start + size >= len(data)
        yield pdv(context, 2 if last else 0, data[start : start + size])


def encoded(ds: Dataset, transfer_syntax: str = EXPLICIT) -> bytes:
    """A data set's bytes without file meta."""
    uid, out = UID(transfer_syntax), DicomBytesIO()
    out.is_little_endian, out.is_implicit_VR = uid.is_little_endian, uid.is_implicit_VR
    write_dataset(out, Dataset(ds))
    return out.getvalue()


class Parrot:
    """One connection."""

    def __init__(self, port: int, *, timeout: float = 10) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.message_id = 0
        #: Longest PDU the node said it takes.
        self.max_pdu = 0

    def __enter__(self) -> Parrot:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.sock.close()

    @classmethod
    def associated(cls, port: int, contexts: Contexts, *, called: str = "NODE", calling: str = "CT1") -> Parrot:
        """Connect and negotiate; every context must be accepted."""
        parrot = cls(port)
        accepted = parrot.associate(contexts, called=called, calling=calling)
        assert set(accepted) == set(contexts), f"accepted only {accepted}"
        return parrot

    def associate(self, contexts: Contexts, *, called: str = "NODE", calling: str = "CT1") -> dict[int, str]:
        """Negotiate; return context ID -> transfer syntax of the accepted ones."""
        self.send(associate_rq(called, calling, contexts))
        return self.accepted()

    def accepted(self) -> dict[int, str]:
        kind, body = self.pdu()
        if kind == 3:
            raise Rejected(*body[1:4])
        assert kind == 2, f"PDU type {kind}"
        position, found = 68, {}
        while position < len(body):
            kind, length = struct.unpack_from(">BxH", body, position)
            if kind == 0x50:
                self.max_pdu = int.from_bytes(body[position + 8 : position + 12], "big")
            if kind == 0x21 and body[position + 6] == 0:
                found[body[position + 4]] = body[position + 12 : position + 4 + length].decode()
            position += 4 + length
        return found

    def send(self, raw: bytes) -> None:
        self.sock.sendall(raw)

    def pdu(self) -> tuple[int, bytes]:
        """The next PDU; raises `Gone` when there is none, or when it is an A-ABORT."""
        head = self._exactly(6)
        kind, length = struct.unpack(">BxL", head)
        body = self._exactly(length)
        if kind == 7:
            raise Gone(abort=True)
        return kind, body

    def response(self) -> Response:
        """The next DIMSE response."""
        kind, body = self.pdu()
        assert kind == 4, f"PDU type {kind}"
        length, context, control = struct.unpack_from(">LBB", body, 0)
        assert control == 3 and length == len(body) - 4
        raw, values = body[6:], {}
        while raw:
            _, number, size = struct.unpack_from("<HHL", raw)
            values[number], raw = raw[8 : 8 + size], raw[8 + size :]
        number = {name: int.from_bytes(values.get(name, b""), "little") for name in (0x100, 0x120, 0x900)}
        return Response(context, number[0x100], number[0x120], number[0x900])

    def store(
        self, context: int, sop_class: str, sop_instance: str, data: bytes, *, size: int = 16000, together: bool = False
    ) -> int:
        """C-STORE; one PDV a PDU, or all in one PDU. Return the status."""
        self.message_id += 1
        pdvs = list(fragments(context, store_rq(self.message_id, sop_class, sop_instance), data, size))
        self.send(p_data(*pdvs) if together else b"".join(p_data(one) for one in pdvs))
        answer = self.response()
        assert (answer.context, answer.field, answer.message_id) == (context, 0x8001, self.message_id)
        return answer.status

    def store_dataset(self, context: int, ds: Dataset, transfer_syntax: str = EXPLICIT) -> int:
        return self.store(context, str(ds.SOPClassUID), str(ds.SOPInstanceUID), encoded(ds, transfer_syntax))

    def echo(self, context: int) -> int:
        self.message_id += 1
        self.send(p_data(pdv(context, 3, echo_rq(self.message_id))))
        answer = self.response()
        assert answer.field == 0x8030
        return answer.status

    def release(self) -> None:
        """A-RELEASE, answered; the node then closes."""
        self.send(RELEASE_RQ)
        kind, _ = self.pdu()
        assert kind == 6
        self.sock.close()

    def abort(self) -> None:
        self.send(ABORT)
        self.sock.close()

    def ending(self) -> bool:
        """Wait until the node ends the association; whether by A-ABORT."""
        try:
            while True:
                self.pdu()
        except Gone as gone:
            return gone.abort
        except ConnectionResetError:
            return False

    def _exactly(self, count: int) -> bytes:
        parts: list[bytes] = []
        while count:
            part = self.sock.recv(count)
            if not part:
                raise Gone(abort=False)
            parts.append(part)
            count -= len(part)
        return b"".join(parts)


def contexts_for(datasets: Iterable[Dataset], transfer_syntax: str = EXPLICIT) -> dict[int, tuple[str, list[str]]]:
    """Presentation contexts for data sets: 1 for C-ECHO, then one a class."""
    classes = sorted({str(ds.SOPClassUID) for ds in datasets})
    storage = {3 + 2 * number: (uid, [transfer_syntax]) for number, uid in enumerate(classes)}
    return {1: (VERIFICATION, [IMPLICIT]), **storage}
