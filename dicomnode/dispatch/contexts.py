"""Which presentation contexts to propose for a list of files, and which accepted one carries a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.presentation import PresentationContext, build_context

from dicomnode.dispatch.files import File

#: A-ASSOCIATE-RQ holds no more presentation contexts (odd identifiers of one byte, PS3.8 9.3.2.2).
MAX_CONTEXTS: Final = 128
#: What an uncompressed object may be rewritten to, the preferred one first.
_PLAIN: Final = (str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian))
#: What may be rewritten. Not big endian: pydicom does not swap the bytes of pixel data.
_CONVERTIBLE: Final = frozenset({*_PLAIN, str(DeflatedExplicitVRLittleEndian)})


def propose(files: Iterable[File], prefer: str = "") -> list[PresentationContext]:
    """Return one context for each (SOP class, transfer syntax), so that the peer's choice never forces a conversion.

    A SOP class with uncompressed files gets one more for ``prefer``, the transfer syntax its peer is configured for,
    and one with the plain syntaxes it has not got yet, for peers that know Implicit VR only.
    """
    syntaxes: dict[str, dict[str, None]] = {}
    for file in files:
        syntaxes.setdefault(file.sop_class_uid, {})[file.transfer_syntax_uid] = None
    contexts = []
    for sop_class, wanted in syntaxes.items():
        contexts += [build_context(sop_class, syntax) for syntax in wanted]
        convertible = not _CONVERTIBLE.isdisjoint(wanted)
        if convertible and prefer and prefer not in wanted:
            contexts.append(build_context(sop_class, prefer))
        others = [syntax for syntax in _PLAIN if syntax not in wanted and syntax != prefer]
        if others and convertible:
            contexts.append(build_context(sop_class, others))
    return contexts


def batches(files: Sequence[File], prefer: str = "") -> Iterator[list[File]]:
    """Split files, in their order, so that each part's proposal fits one association."""
    part: list[File] = []
    pairs: set[tuple[str, str]] = set()
    for file in files:
        # The most that `propose` can make of a pair.
        pairs.add((file.sop_class_uid, file.transfer_syntax_uid))
        if (3 if prefer else 2) * len(pairs) > MAX_CONTEXTS:
            yield part
            part, pairs = [], {(file.sop_class_uid, file.transfer_syntax_uid)}
        part.append(file)
    if part:
        yield part


def choose(accepted: Iterable[PresentationContext], file: File, prefer: str = "") -> tuple[int, str] | None:
    """Return context identifier and transfer syntax to send a file in; None if the peer took nothing that fits."""
    syntaxes = {
        str(context.transfer_syntax[0]): context.context_id
        for context in accepted
        if context.abstract_syntax == file.sop_class_uid and context.context_id is not None
    }
    wanted = [file.transfer_syntax_uid]
    if file.transfer_syntax_uid in _CONVERTIBLE:
        wanted = [*([prefer] if prefer else []), *wanted, *_PLAIN]
    return next(((syntaxes[syntax], syntax) for syntax in wanted if syntax in syntaxes), None)
