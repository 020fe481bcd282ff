"""Decode the text of any Specific Character Set (0008,0005), PS3.5 6.1.2: bytes in, str out, or `UnicodeDecodeError`.

Own code, because a name decoded wrongly is another patient, and pydicom's decoder substitutes characters where it is
unsure and leaves the escape sequence of ISO 2022 IR 58 in the text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

#: Terms of (0008,0005) in canonical spelling, for example ("", "ISO 2022 IR 87").
Terms = tuple[str, ...]

#: The character set this node transcodes to.
UNICODE: Final = "ISO_IR 192"
#: Without code extensions, the whole value in one Python codec (PS3.3 Tables C.12-2 and C.12-5).
_WHOLE: Final = {
    "ISO_IR 192": "utf-8",
    "GB18030": "gb18030",
    "GBK": "gbk",
}
#: Number of the registered set -> Python codec of its high half (PS3.3 Tables C.12-2 to C.12-4).
_G1: Final = {
    "100": "latin_1",
    "101": "iso8859_2",
    "109": "iso8859_3",
    "110": "iso8859_4",
    "126": "iso8859_7",
    "127": "iso8859_6",
    "138": "iso8859_8",
    "144": "iso8859_5",
    "148": "iso8859_9",
    "203": "iso8859_15",
    "166": "tis_620",
    "13": "shift_jis",
    "149": "euc_kr",
    "58": "gb2312",
}
#: Codecs of _G1 that take two bytes for a character.
_TWO_BYTES: Final = frozenset({"euc_kr", "gb2312"})
#: Escape sequence after ESC -> (half it designates, codec), PS3.3 Tables C.12-3 and C.12-4.
_ESCAPES: Final = {
    b"(B": (0, "ascii"),
    b"(J": (0, "ascii"),  # JIS X 0201 Romaji: differs from ASCII in yen and overline, which DICOM uses as delimiters
    b")I": (1, "shift_jis"),
    b"-A": (1, "latin_1"),
    b"-B": (1, "iso8859_2"),
    b"-C": (1, "iso8859_3"),
    b"-D": (1, "iso8859_4"),
    b"-F": (1, "iso8859_7"),
    b"-G": (1, "iso8859_6"),
    b"-H": (1, "iso8859_8"),
    b"-L": (1, "iso8859_5"),
    b"-M": (1, "iso8859_9"),
    b"-b": (1, "iso8859_15"),
    b"-T": (1, "tis_620"),
    b"$)C": (1, "euc_kr"),
    b"$)A": (1, "gb2312"),
    b"$B": (0, "jisx0208"),
    b"$@": (0, "jisx0208"),
    b"$(D": (0, "jisx0212"),
}
_ESC: Final = 0x1B
#: Control characters and separators that bring the initial character set back (PS3.5 6.1.2.5.3).
_RESETS: Final = frozenset(b"\t\n\f\r\\")
_RESETS_NAME: Final = _RESETS | frozenset(b"^=")
#: Spellings seen in the field -> canonical term.
_SPELLINGS: Final = {"UTF8": UNICODE, "UTF-8": UNICODE, "GB2312": "ISO_IR 58", "LATIN1": "ISO_IR 100"}


def terms(value: str | Sequence[str] | None) -> Terms:
    """Canonical terms of a SpecificCharacterSet value; absent, empty and ASCII give ``("",)``.

    Wrong separators (``ISO-IR 100``, ``ISO IR 100``, ``ISO_IR_192``) are understood, since scanners write them.
    """
    values = value.split("\\") if isinstance(value, str) else list(value or [""])
    return tuple(_term(text.strip(" \0").upper()) for text in values) or ("",)


def _term(text: str) -> str:
    if text in _SPELLINGS:
        return _SPELLINGS[text]
    found = re.fullmatch(r"ISO[ _-]?(2022)?[ _-]?(?:IR)?[ _-]?(\d+)", text)
    if found is None:
        return text
    if found[2] == "6":
        return ""
    return f"ISO 2022 IR {found[2]}" if found[1] else f"ISO_IR {found[2]}"


def known(term: str) -> bool:
    """Whether `decode` can read text of this canonical term."""
    number = term.rpartition(" ")[2]
    return term == "" or term in _WHOLE or number in _G1 or number in {"87", "159"}


def decode(raw: bytes, charset: Terms, *, name: bool = False) -> str:
    """Decode one element value, all its backslash-separated values at once.

    Parameters
    ----------
    raw
        The value field as in the file.
    charset
        Canonical terms, see `terms`.
    name
        The value is a PN: ``^`` and ``=`` also bring the initial character set back.

    Raises
    ------
    UnicodeDecodeError
        A byte has no meaning in the declared character sets. Nothing is ever substituted.
    """
    if charset[0] in _WHOLE:
        return raw.decode(_WHOLE[charset[0]])
    if _ESC not in raw and raw.isascii():
        return raw.decode("ascii")
    return _decode_2022(raw, charset, _RESETS_NAME if name else _RESETS)


def _codec(term: str) -> str | None:
    """Codec of the high half that a term declares."""
    return _G1.get(term.rpartition(" ")[2]) if term else None


def _decode_2022(raw: bytes, charset: Terms, resets: frozenset[int]) -> str:
    """ISO 2022 with the escape sequences DICOM allows: low half (G0) and high half (G1) switch independently."""
    initial = _codec(charset[0])
    # Korean and Chinese software often escapes once per value, though delimiters reset: the only declared set it is.
    declared = {codec for codec in map(_codec, charset) if codec is not None}
    fallback = initial or (declared.pop() if len(declared) == 1 else None)
    low, high = "ascii", initial
    text: list[str] = []
    at = 0
    while at < len(raw):
        byte = raw[at]
        if byte == _ESC:
            escape = next((raw[at + 1 : at + 1 + n] for n in (2, 3) if raw[at + 1 : at + 1 + n] in _ESCAPES), None)
            if escape is None:
                raise UnicodeDecodeError("ISO 2022", raw, at, at + 1, "escape sequence that DICOM does not define")
            half, codec = _ESCAPES[escape]
            low, high = (codec, high) if half == 0 else (low, codec)
            at += 1 + len(escape)
            continue
        codec = (high or fallback or "ascii") if byte >= 0x80 else low
        if byte in resets and low == "ascii":
            low, high = "ascii", initial
        width = 2 if codec in _TWO_BYTES or (codec.startswith("jisx") and byte > 0x20) else 1
        text.append(_character(raw, at, width, codec))
        at += width
    return "".join(text)


def _character(raw: bytes, at: int, width: int, codec: str) -> str:
    piece = raw[at : at + width]
    if codec.startswith("jisx") and width == 2:
        prefix = b"\x8f" if codec == "jisx0212" else b""
        piece, codec = prefix + bytes(byte | 0x80 for byte in piece), "euc_jp"
    elif width == 1 and piece < b"\x80":
        codec = "ascii"
    try:
        return piece.decode(codec)
    except UnicodeDecodeError as error:
        raise UnicodeDecodeError(codec, raw, at, at + width, error.reason) from None
