"""Storage SCU: objects of one association, each with its own outcome."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pydicom import dcmread
from pydicom.uid import UID
from pynetdicom import build_context
from pynetdicom.association import Association
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from dicomnode.dicom import DUPLICATE_SOP_INSTANCE, SUCCESS
from dicomnode.dispatch import contexts
from dicomnode.dispatch import files as part10
from dicomnode.dispatch.association import Peer, associate, break_off, name_of
from dicomnode.dispatch.convert import AS_IT_IS, UNICODE, Encoding, converted
from dicomnode.dispatch.files import File
from dicomnode.dispatch.stream import Answer, Stream
from dicomnode.errors import (
    AssociationAborted,
    AssociationRejected,
    ContextNotAccepted,
    DispatchError,
    PeerUnreachable,
    StoreRefused,
)

Engine = Literal["streaming", "stock"]
#: Errors after which nothing more can be sent on an association.
ASSOCIATION_ERRORS: Final = (PeerUnreachable, AssociationRejected, AssociationAborted)
#: Accepted, with something to note (PS3.4 B.2.3, PS3.7 annex C).
_NOTES: Final = {
    0xB000: "coercion of data elements",
    0xB006: "elements discarded",
    0xB007: "data set does not match SOP class",
    DUPLICATE_SOP_INSTANCE: "it has this SOP Instance UID already",
    0x0001: "warning",
    0x0107: "attribute list error",
    0x0116: "attribute value out of range",
}
_REFUSALS: Final = {
    0x0110: "processing failure",
    0x0117: "invalid SOP instance",
    0x0122: "SOP class not supported",
    0x0124: "not authorized",
    0x0210: "duplicate invocation",
    0x0211: "unrecognized operation",
    0x0212: "mistyped argument",
}
_REFUSED_RANGES: Final = {0xA7: "out of resources", 0xA9: "data set does not match SOP class", 0xC: "cannot understand"}
#: `send_files` calls again so often, without one object getting through, before it gives up.
_RECONNECTS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one object."""

    path: Path
    sop_instance_uid: str
    #: DIMSE status that was answered; None if it did not come to that.
    status: int | None = None
    #: What the peer remarked although it took the object.
    note: str = ""
    error: DispatchError | None = None

    @property
    def delivered(self) -> bool:
        """Whether the peer has it."""
        return self.error is None

    @property
    def problem(self) -> str:
        """Why the peer has not got it; empty if it has."""
        return str(self.error) if self.error else ""


class Link:
    """An established association that objects go out on, one after the other."""

    def __init__(self, assoc: Association, peer: Peer, engine: Engine, encoding: Encoding) -> None:
        self._assoc, self._peer, self._engine, self._encoding = assoc, peer, engine, encoding
        self._accepted = assoc.accepted_contexts
        self._stream = Stream(assoc, peer.timeout) if engine == "streaming" else None
        self._number = 0

    def send(self, file: File) -> Outcome:
        """Send one object. Its own failure is in the outcome; the association's is raised.

        Raises
        ------
        AssociationAborted, PeerUnreachable
            The association is lost; whether the peer has this object is not known.
        """
        chosen = contexts.choose(self._accepted, file, self._encoding.transfer_syntax_uid)
        if chosen is None:
            text = f"{name_of(self._peer)} does not accept {_described(file)}"
            return self._outcome(file, error=ContextNotAccepted(text))
        context_id, syntax = chosen
        try:
            if self._stream is None:
                answer = self._stock(file)
            else:
                character_set = self._encoding.character_set
                as_it_is = syntax == file.transfer_syntax_uid and character_set == UNICODE
                body = file.body() if as_it_is else converted(file.path, syntax, character_set)
                answer = self._stream.store(file, context_id, body)
        except ASSOCIATION_ERRORS:
            raise
        except DispatchError as error:
            return self._outcome(file, error=error)
        return self._judge(file, answer)

    def close(self) -> None:
        """Hand the connection back, for release."""
        if self._stream is not None:
            self._stream.close()

    def cut(self) -> None:
        """Break the connection; the thread that is sending on it meets an error. For another thread's use."""
        break_off(self._assoc)

    def _stock(self, file: File) -> Answer:
        """Let pynetdicom do it: decode, encode, poll."""
        self._number = self._number % 65535 + 1
        try:
            answer = self._assoc.send_c_store(dcmread(file.path), msg_id=self._number)
        except (RuntimeError, AttributeError) as error:
            raise AssociationAborted(f"the association was lost before {file.sop_instance_uid} was sent") from error
        except (OSError, ValueError) as error:
            raise DispatchError(f"{file.path.name} cannot be sent: {error}") from error
        if "Status" not in answer:
            raise AssociationAborted(f"the association was lost while {file.sop_instance_uid} was being sent")
        return Answer(status=int(answer.Status), comment=str(answer.get("ErrorComment", "")))

    def _judge(self, file: File, answer: Answer) -> Outcome:
        status = answer.status
        if status == SUCCESS:
            return self._outcome(file, status=status)
        said = f" ({answer.comment})" if answer.comment else ""
        if status in _NOTES or status & 0xF000 == 0xB000:
            note = f"taken with 0x{status:04X}, {_NOTES.get(status, 'warning')}{said}"
            return self._outcome(file, status=status, note=note)
        meaning = _REFUSALS.get(status) or _REFUSED_RANGES.get(status >> 8) or _REFUSED_RANGES.get(status >> 12)
        text = f"{name_of(self._peer)} refused {file.sop_instance_uid}: 0x{status:04X}, {meaning or 'failure'}{said}"
        return self._outcome(file, status=status, error=StoreRefused(status, text))

    def _outcome(
        self, file: File, *, status: int | None = None, note: str = "", error: DispatchError | None = None
    ) -> Outcome:
        return Outcome(
            path=file.path, sop_instance_uid=file.sop_instance_uid, status=status, note=note, error=error
        )  # fmt: skip


@contextmanager
def connect(
    peer: Peer,
    calling_ae: str,
    to_send: Sequence[File],
    *,
    engine: Engine = "streaming",
    encoding: Encoding = AS_IT_IS,
) -> Iterator[Link]:
    """Hold an association that proposes what these files need (at most `contexts.MAX_CONTEXTS`, see `batches`)."""
    with associate(peer, calling_ae, contexts.propose(to_send, encoding.transfer_syntax_uid)) as assoc:
        link = Link(assoc, peer, engine, encoding)
        try:
            yield link
        finally:
            link.close()


def send_files(
    peer: Peer,
    calling_ae: str,
    paths: Sequence[Path],
    progress: Callable[[Outcome], None] = lambda _: None,
    *,
    engine: Engine = "streaming",
) -> list[Outcome]:
    """Send files, on as few associations as they need, and return one outcome each, in order of completion.

    A lost association is opened again for what was not sent; an object in flight when it was lost is tried again (the
    same UID twice does no harm) until the peer has broken off three times without taking anything.
    """
    done: list[Outcome] = []

    def report(outcome: Outcome) -> None:
        done.append(outcome)
        progress(outcome)

    readable = []
    for path in paths:
        try:
            readable.append(part10.read(path))
        except DispatchError as error:
            report(Outcome(path=path, sop_instance_uid="", error=error))
    for part in contexts.batches(readable):
        left, failures = list(part), 0
        lost: DispatchError = AssociationAborted("nothing was sent")
        while left:
            before = len(left)
            try:
                _send_part(peer, calling_ae, left, report, engine)
            except AssociationAborted as error:
                lost, failures = error, 1 if len(left) < before else failures + 1
            except DispatchError as error:  # nobody there, or nothing wanted: calling again does not help
                lost, failures = error, _RECONNECTS
            if left and failures >= _RECONNECTS:
                for file in left:
                    report(Outcome(path=file.path, sop_instance_uid=file.sop_instance_uid, error=lost))
                left.clear()
    return done


def _send_part(
    peer: Peer, calling_ae: str, left: list[File], report: Callable[[Outcome], None], engine: Engine
) -> None:
    with connect(peer, calling_ae, left, engine=engine) as link:
        while left:
            outcome = link.send(left[0])
            del left[0]
            report(outcome)


def echo(peer: Peer, calling_ae: str) -> str:
    """C-ECHO; return what is wrong, or an empty text if the peer answers."""
    try:
        with associate(peer, calling_ae, [build_context(Verification)]) as assoc:
            answer = assoc.send_c_echo()
    except ContextNotAccepted:
        return f"{name_of(peer)} takes the association but not C-ECHO"
    except DispatchError as error:
        return str(error)
    if "Status" not in answer:
        return f"{name_of(peer)} did not answer C-ECHO within {peer.timeout:g} s"
    return "" if answer.Status == SUCCESS else f"{name_of(peer)} answered C-ECHO with 0x{answer.Status:04X}"


def _described(file: File) -> str:
    return f"{UID(file.sop_class_uid).name} in {UID(file.transfer_syntax_uid).name}"
