"""Stored values of one file: decoded, unused bits cleared, padding found.

What a voxel held outside BitsStored (old overlays, padding such as -2000 in 12 bits) is told from its value here and
nowhere else.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, RLELossless

from dicomnode.errors import MissingAttribute, UndecodablePixels

Stored = NDArray[np.integer]
Mask = NDArray[np.bool_]

_PIXEL_DATA: Final = 0x7FE00010
#: float32 holds integers of 24 bits exactly; more would change voxels silently.
_MAX_BITS_STORED: Final = 24
#: Last marker of JPEG, JPEG-LS and JPEG 2000 code streams, and how far before the end of the frame padding may put it.
_END_OF_IMAGE: Final = b"\xff\xd9"
_MAX_PADDING: Final = 16
#: What decoders raise on corrupt code streams.
_DECODER_ERRORS: Final = (
    ValueError,
    RuntimeError,
    NotImplementedError,
    AttributeError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OSError,
    struct.error,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How the pixels of one instance are stored (PS3.3 C.7.6.3)."""

    rows: int
    columns: int
    frames: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    #: Least and greatest stored value of padding (PixelPaddingValue, PixelPaddingRangeLimit); None without.
    padding: tuple[int, int] | None

    @property
    def dtype(self) -> np.dtype[np.integer]:
        """Type of a stored value in memory."""
        return np.dtype(f"{'i' if self.signed else 'u'}{self.bits_allocated // 8}")

    @property
    def size(self) -> int:
        """Bytes of the uncompressed pixel data."""
        return self.frames * self.rows * self.columns * self.bits_allocated // 8


def encoding_of(header: Dataset, uid: str) -> Encoding:
    """Read and check the image pixel attributes.

    Raises
    ------
    MissingAttribute
        One is absent.
    UndecodablePixels
        They do not describe one greyscale sample per pixel of at most 24 bits.
    """
    required = ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation")
    absent = [keyword for keyword in required if not isinstance(header.get(keyword), int)]
    if absent:
        raise MissingAttribute(f"{', '.join(absent)} absent in {uid}: its pixels cannot be read")
    samples, photometric = header.get("SamplesPerPixel", 1), header.get("PhotometricInterpretation", "")
    if samples != 1 or photometric not in {"MONOCHROME1", "MONOCHROME2"}:
        raise UndecodablePixels(
            f"{uid} has {samples} samples per pixel, {photometric or 'no PhotometricInterpretation'}: only greyscale "
            "images carry values to compute with"
        )
    allocated, stored = int(header.BitsAllocated), int(header.BitsStored)
    high_bit = header.get("HighBit", stored - 1)
    if allocated not in {8, 16, 32} or not 0 < stored <= min(allocated, _MAX_BITS_STORED):
        raise UndecodablePixels(f"{uid} stores {stored} bits of {allocated} allocated: not supported")
    if not stored - 1 <= high_bit < allocated:
        raise UndecodablePixels(f"{uid} has HighBit {high_bit} with {stored} bits stored of {allocated}: contradictory")
    rows, columns, frames = int(header.Rows), int(header.Columns), int(header.get("NumberOfFrames") or 1)
    if min(rows, columns, frames) < 1:
        raise UndecodablePixels(f"{uid} has {rows} rows, {columns} columns and {frames} frames: no image")
    return Encoding(
        rows=rows,
        columns=columns,
        frames=frames,
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=int(high_bit),
        signed=bool(header.PixelRepresentation),
        padding=_padding(header, allocated, signed=bool(header.PixelRepresentation)),
    )


def decode(dataset: Dataset, encoding: Encoding, uid: str, out: Stored, padding: Mask) -> str:
    """Decode all frames of ``dataset`` into ``out`` and mark their padding; both (frame, row, column).

    Returns
    -------
    str
        Note on surplus pixel data, or "".

    Raises
    ------
    UndecodablePixels
        Absent, truncated, corrupt, or in a transfer syntax without a decoder.
    """
    if _PIXEL_DATA not in dataset:
        raise UndecodablePixels(f"{uid} has no PixelData")
    syntax = UID(dataset.file_meta.get("TransferSyntaxUID", ""))
    native = not syntax.is_encapsulated
    if native:
        surplus = _check_length(dataset, encoding, uid)
    else:
        _require_ends(dataset, encoding, syntax, uid)
    frames = _native(dataset, encoding) if native and syntax.is_little_endian else _decoded(dataset, syntax, uid)
    count = 0
    for raw in frames:
        if count == encoding.frames:
            return "more frames in PixelData than NumberOfFrames: the first ones used"
        if raw.shape != (encoding.rows, encoding.columns) or raw.dtype.itemsize != encoding.dtype.itemsize:
            raise UndecodablePixels(f"a frame of {uid} decodes to {raw.shape} {raw.dtype}, not what its header says")
        _settle(np.ascontiguousarray(raw).view(encoding.dtype), encoding, out[count], padding[count], shift=native)
        count += 1
    if count < encoding.frames:
        raise UndecodablePixels(f"{uid} holds {count} of its {encoding.frames} frames; send the series again")
    return surplus if native else ""


def _padding(header: Dataset, allocated: int, *, signed: bool) -> tuple[int, int] | None:
    first, last = header.get("PixelPaddingValue"), header.get("PixelPaddingRangeLimit")
    if not isinstance(first, int):
        return None
    ends = [_wrapped(value, allocated, signed=signed) for value in (first, last) if isinstance(value, int)]
    return min(ends), max(ends)


def _wrapped(value: int, bits: int, *, signed: bool) -> int:
    """``value`` as its bit pattern in the container reads: scanners write 63536 for -2000 and the other way round."""
    value %= 1 << bits
    return value - (1 << bits) if signed and value >= 1 << (bits - 1) else value


def _check_length(dataset: Dataset, encoding: Encoding, uid: str) -> str:
    length = len(dataset.get_item(_PIXEL_DATA).value or b"")
    if length < encoding.size:
        raise UndecodablePixels(f"PixelData of {uid} is truncated: {length} of {encoding.size} bytes; send it again")
    surplus = length - encoding.size - encoding.size % 2
    return "PixelData longer than Rows x Columns: the leading bytes used" if surplus > 0 else ""


def _require_ends(dataset: Dataset, encoding: Encoding, syntax: UID, uid: str) -> None:
    """Refuse code streams without their end marker: decoders fill up a truncated frame without a word."""
    if syntax == RLELossless:
        return
    offsets = None
    if "ExtendedOffsetTable" in dataset and "ExtendedOffsetTableLengths" in dataset:
        offsets = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
    try:
        buffer = dataset.get_item(_PIXEL_DATA).value or b""
        streams = generate_frames(buffer, number_of_frames=encoding.frames, extended_offsets=offsets)
        for number, stream in enumerate(streams, 1):
            if _END_OF_IMAGE not in stream[-_MAX_PADDING:]:
                raise UndecodablePixels(
                    f"frame {number} of {uid} in {syntax.name} has no end: truncated; send it again"
                )
    except _DECODER_ERRORS as error:
        raise UndecodablePixels(f"PixelData of {uid} is not made of {encoding.frames} frames: {error}") from error


def _native(dataset: Dataset, encoding: Encoding) -> Iterator[Stored]:
    """Frames as views of the bytes read, little endian."""
    pixels = encoding.rows * encoding.columns
    raw = np.frombuffer(
        dataset.get_item(_PIXEL_DATA).value, f"<u{encoding.bits_allocated // 8}", count=encoding.frames * pixels
    )
    yield from raw.reshape(encoding.frames, encoding.rows, encoding.columns)


def _decoded(dataset: Dataset, syntax: UID, uid: str) -> Iterator[Stored]:
    """Frames through pydicom's decoders and their plug-ins, bits as in the code stream."""
    try:
        decoder = get_decoder(syntax)
        for frame, _ in decoder.iter_array(dataset, raw=True, correct_unused_bits=False):
            yield frame.astype(frame.dtype.newbyteorder("="), copy=False)
    except _DECODER_ERRORS as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UndecodablePixels(f"{uid} in {syntax.name} does not decode: {reason}") from error


def _settle(raw: Stored, encoding: Encoding, out: Stored, padding: Mask, *, shift: bool) -> None:
    """Write the stored values of ``raw`` to ``out`` (row, column) and mark padding, before and after masking.

    ``shift``: samples lie at HighBit (native pixel data); a codec delivers them at bit 0.
    """
    unused = encoding.bits_allocated - encoding.bits_stored
    if unused == 0:
        np.copyto(out, raw)
    else:
        above = encoding.bits_allocated - 1 - encoding.high_bit if shift else unused
        np.left_shift(raw, above, out=out)
        np.right_shift(out, unused, out=out)  # arithmetic for signed types: extends the sign
    if encoding.padding is None:
        return
    low, high = encoding.padding
    np.logical_and(out >= low, out <= high, out=padding)
    if unused:
        outside = (raw >= low) & (raw <= high) & ~padding
        np.copyto(out, raw, where=outside)
        padding |= outside
