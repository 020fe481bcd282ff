"""Follow a data set's elements while its bytes go by: find out whether it is whole, and its routing attributes.

Nothing is decoded and nothing but the few wanted values is kept, so the walk costs tens of microseconds an object and
the same memory at any size. Lengths are believed but verified: the walk must end exactly where the bytes end.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Final

from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from dicomnode.domain import INDEX_TAGS

_UNDEFINED: Final = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
#: Pixel Data, Float Pixel Data, Double Float Pixel Data (PS3.3 C.7.6.3, C.7.6.24, C.7.6.25).
_PIXEL_DATA: Final = frozenset({0x7FE00010, 0x7FE00008, 0x7FE00009})
_PIXEL_URL: Final = 0x00287FE0
#: Value representations by the size of their length field (PS3.5 7.1.2).
_SHORT_NAMES: Final = b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US"
_LONG_NAMES: Final = b"OB OD OF OL OV OW SQ SV UC UN UR UT UV"
_SHORT: Final = frozenset(_SHORT_NAMES.split())
_LONG: Final = frozenset(_LONG_NAMES.split())
_SEQUENCES: Final = frozenset({b"SQ", b"UN"})
_KNOWN: Final = _SHORT | _LONG
#: Wanted besides the index: what the pixel data's length follows from.
PHOTOMETRIC, SAMPLES, FRAMES, ROWS, COLUMNS, ALLOCATED = (
    0x00280004,
    0x00280002,
    0x00280008,
    0x00280010,
    0x00280011,
    0x00280100,
)
_WANTED: Final = frozenset(INDEX_TAGS) | {PHOTOMETRIC, SAMPLES, FRAMES, ROWS, COLUMNS, ALLOCATED}
#: A wanted value longer than this is skipped like any other [bytes].
_LONGEST_VALUE: Final = 4096
#: Bytes copied out of the receive buffer at a time; most headers end inside the first piece.
_PIECE: Final = 16384
#: Sequences nested deeper than this are an attack, not a header.
_DEEPEST: Final = 64
_NEVER: Final = 1 << 62

_ELEMENTS, _ITEMS, _FRAGMENTS, _PADDING = range(4)
_IMPLICIT_LITTLE = struct.Struct("<HHL").unpack_from
_EXPLICIT_LITTLE = struct.Struct("<HH2sH").unpack_from
_EXPLICIT_BIG = struct.Struct(">HH2sH").unpack_from
_LONG_LITTLE = struct.Struct("<L").unpack_from
_LONG_BIG = struct.Struct(">L").unpack_from
_IMPLICIT_BIG = struct.Struct(">HHL").unpack_from


class Walk:
    """One data set's elements.

    Parameters
    ----------
    transfer_syntax
        UID; whatever is not implicit, big endian or deflated is explicit VR little endian (PS3.5 A.4).
    limit
        A deflated data set may not grow beyond this [bytes].
    """

    __slots__ = (
        "_explicit",
        "_inflate",
        "_inflated",
        "_limit",
        "_little",
        "_mode",
        "_rest",
        "_skip",
        "_some",
        "_stack",
        "fault",
        "little",
        "padded",
        "pixels",
        "values",
    )

    def __init__(self, transfer_syntax: str, limit: int = _NEVER) -> None:
        self.values: dict[int, bytes] = {}
        #: Why the data set cannot be taken: ``(code, sentence)``.
        self.fault: tuple[str, str] | None = None
        #: Length of the top level's native pixel data [bytes]; -1 encapsulated or elsewhere, None: there is none.
        self.pixels: int | None = None
        #: Bytes of zeros behind the last element.
        self.padded = False
        self.little = self._little = transfer_syntax != ExplicitVRBigEndian
        #: None: find out at each element (inside an UN sequence, see `_undefined`).
        self._explicit: bool | None = transfer_syntax != ImplicitVRLittleEndian
        self._mode = _ELEMENTS
        self._stack: list[tuple[int, bool | None, bool]] = []
        self._skip, self._rest, self._some = 0, b"", False
        self._inflate = zlib.decompressobj(-15) if transfer_syntax == DeflatedExplicitVRLittleEndian else None
        self._inflated, self._limit = 0, limit

    def feed(self, chunk: memoryview | bytes) -> None:
        """Take the next bytes."""
        if self._inflate is None:
            if self._skip >= len(chunk):  # inside pixel data: the common case, and the whole cost of it
                self._skip -= len(chunk)
            else:
                self._take(chunk)
            return
        for part in self._inflated_parts(chunk):
            self._take(part)

    @property
    def skip(self) -> int:
        """How many of the next bytes need not be looked at (a reader of files seeks over them)."""
        return 0 if self._inflate else self._skip

    def skipped(self, count: int) -> None:
        """Say that ``count`` bytes, at most `skip`, were passed over unread."""
        self._skip -= count

    def end(self) -> None:
        """Say that there are no more bytes; sets `fault` unless the elements end here."""
        if self.fault:
            return
        if not self._some:
            self.fault = ("empty", "the data set has no bytes")
        elif not self.values and not self._skip:
            self.fault = ("unreadable", "the bytes hold no attribute of a composite instance")
        elif self._inflate and not self._inflate.eof:
            self.fault = ("truncated", "the deflated data set ends before its last block")
        elif self._skip:
            self.fault = ("truncated", f"the data set ends {self._skip} bytes before its last element does")
        elif self._stack or self._mode not in (_ELEMENTS, _PADDING):
            self.fault = ("truncated", "the data set ends inside a sequence or inside encapsulated pixel data")
        elif self._rest:
            if self._rest.strip(b"\0"):
                self.fault = ("truncated", "the data set ends inside an element")
            else:
                self.padded = True

    def text(self, tag: int) -> str:
        """Value of a wanted attribute as text, empty when it is absent."""
        raw = self.values.get(tag, b"")
        if tag in _BINARY:
            return str(int.from_bytes(raw[:2], "little" if self.little else "big")) if len(raw) >= 2 else ""
        return decoded(raw)

    def _take(self, chunk: memoryview | bytes) -> None:
        size, position = len(chunk), self._skip
        self._skip, self._some = 0, True
        while position < size:
            piece = bytes(chunk[position : position + _PIECE])
            position += len(piece)
            if self._rest:
                piece = self._rest + piece
                self._rest = b""
            used = self._parse(piece)
            if self.fault:
                self._skip = _NEVER
                return
            if used < len(piece):
                self._rest = piece[used:]
            else:
                position += used - len(piece)
        self._skip = position - size

    def _parse(self, data: bytes) -> int:
        """Step over the elements that begin in ``data``; return where the next one begins, perhaps beyond its end.

        This is longer than a page because the state of the hot loop stays in local variables.
        """
        position, end, mode, explicit, little = 0, len(data), self._mode, self._explicit, self._little
        stack, top = self._stack, not self._stack
        short, wanted, values, read = _SHORT, _WANTED, self.values, _EXPLICIT_LITTLE if little else _EXPLICIT_BIG
        while end - position >= 8:
            vr = b""
            if mode == _ELEMENTS and (explicit or (explicit is None and data[position + 4 : position + 6] in _KNOWN)):
                group, element, vr, length = read(data, position)
                start = position + 8
                if vr in short:  # nine elements of ten; delimiters have no VR, so none of them gets in here
                    if top and (tag := group << 16 | element) in wanted and length <= _LONGEST_VALUE:
                        if end - start < length:
                            break
                        values[tag] = data[start : start + length]
                    position = start + length
                    continue
                if group == 0xFFFE:
                    length = (_LONG_LITTLE if little else _LONG_BIG)(data, position + 4)[0]
                elif vr in _LONG or (length == 0 and vr.isalpha() and vr.isupper()):
                    # A VR that is not in the table has the long form by rule (PS3.5 7.1.2, note).
                    if end - position < 12:
                        break
                    length = (_LONG_LITTLE if little else _LONG_BIG)(data, position + 8)[0]
                    start = position + 12
                elif not (vr.isalpha() and vr.isupper()) and not self._pads(data, position):
                    self._malformed(f"({group:04X},{element:04X}) has no value representation")
                    return 0
            else:
                group, element, length = (_IMPLICIT_LITTLE if little else _IMPLICIT_BIG)(data, position)
                start = position + 8
            tag = group << 16 | element
            if mode == _ELEMENTS:
                if group == 0xFFFE or length == _UNDEFINED or tag == 0:
                    if tag == 0 and top and self._pads(data, position):
                        mode = _PADDING
                        position = end
                        break
                    if not self._structure(tag, vr, length):
                        return 0
                    mode, explicit, little, top = self._mode, self._explicit, self._little, not stack
                    read = _EXPLICIT_LITTLE if little else _EXPLICIT_BIG
                    position = start
                    continue
                if top:
                    if tag in wanted and length <= _LONGEST_VALUE:
                        if end - start < length:
                            break
                        values[tag] = data[start : start + length]
                    elif tag in _PIXEL_DATA:
                        self.pixels = length
                    elif tag == _PIXEL_URL and self.pixels is None:
                        self.pixels = -1
            elif mode == _PADDING:
                if not self._pads(data, 0):
                    self._malformed("there are bytes behind the padding")
                    return 0
                position = end
                break
            elif tag == _ITEM and length != _UNDEFINED:
                pass
            else:
                if not self._structure(tag, vr, length):
                    return 0
                mode, explicit, little, top = self._mode, self._explicit, self._little, not stack
                read = _EXPLICIT_LITTLE if little else _EXPLICIT_BIG
                position = start
                continue
            position = start + length
        self._mode, self._explicit, self._little = mode, explicit, little
        return position

    def _structure(self, tag: int, vr: bytes, length: int) -> bool:
        """Enter or leave a sequence, an item or encapsulated pixel data; False when that makes no sense here."""
        here = (self._mode, self._explicit, self._little)
        if self._mode == _ELEMENTS:
            if tag == _ITEM_END and self._stack:
                self._mode, self._explicit, self._little = self._stack.pop()
                return True
            if length == _UNDEFINED and tag >> 16 != 0xFFFE:
                return self._undefined(tag, vr, here)
        elif tag == _SEQUENCE_END:
            self._mode, self._explicit, self._little = self._stack.pop()
            return True
        elif tag == _ITEM and self._mode == _ITEMS:
            self._stack.append(here)
            self._mode = _ELEMENTS
            if len(self._stack) <= _DEEPEST:
                return True
        self._malformed(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) cannot stand where it does")
        return False

    def _undefined(self, tag: int, vr: bytes, here: tuple[int, bool | None, bool]) -> bool:
        """Enter what has no length of its own."""
        if tag in _PIXEL_DATA or vr not in (b"", *_SEQUENCES):
            if not self._stack and tag in _PIXEL_DATA:
                self.pixels = -1
            self._mode = _FRAGMENTS
        else:
            self._mode = _ITEMS
            if vr == b"UN":
                # Implicit VR little endian inside (PS3.5 6.2.2, note 2), but some writers keep their own syntax.
                self._explicit, self._little = None, True
        self._stack.append(here)
        return True

    def _pads(self, data: bytes, position: int) -> bool:
        """Whether only zeros follow: not in the standard, but harmless and common behind the last element."""
        if self._stack or data.count(0, position) != len(data) - position:
            return False
        self.padded = True
        return True

    def _malformed(self, what: str) -> None:
        self.fault = ("unreadable", f"the bytes are not a data set of the negotiated transfer syntax: {what}")

    def _inflated_parts(self, chunk: memoryview | bytes) -> Iterator[bytes]:
        assert self._inflate is not None
        pending = bytes(chunk)
        while pending and not self.fault and not self._inflate.eof:  # one zero may follow the last block (PS3.5 A.5)
            try:
                part = self._inflate.decompress(pending, 1 << 18)
            except zlib.error as error:
                self.fault = ("unreadable", f"the data set does not inflate: {error}")
                return
            pending = self._inflate.unconsumed_tail
            self._inflated += len(part)
            if self._inflated > self._limit:
                self.fault = ("too-large", f"the data set inflates to more than {self._limit} bytes")
                return
            yield part


def decoded(raw: bytes) -> str:
    """Text of a value without its padding; a character set beside UTF-8 only makes odd letters here."""
    raw = raw.strip(b"\0 ")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    if "\\" in text:
        text = "\\".join(value.strip(" ") for value in text.split("\\"))
    return text.replace("\0", "")  # PostgreSQL takes no NUL in text


_BINARY: Final = frozenset({SAMPLES, ROWS, COLUMNS, ALLOCATED})
