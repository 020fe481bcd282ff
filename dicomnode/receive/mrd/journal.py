"""What a session sends, kept as it comes: message by message in a journal, and in the MRD file made of it.

The journal is what a killed process leaves: appended messages survive the process at any byte, a half-written HDF5 file
does not. The file is written alongside, a piece at a time, so that little is left to do when the session ends.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import h5py
import numpy as np
from ismrmrd.hdf5 import (
    acquisition_dtype,
    acquisition_header_dtype,
    image_header_dtype,
    waveform_dtype,
    waveform_header_dtype,
)
from ismrmrd.hdf5 import get_hdf5type as value_type
from numpy.typing import NDArray

from dicomnode.kspace import Flag
from dicomnode.volumes import wire
from dicomnode.volumes.wire import Kind, Message

#: Read from a journal at a time [bytes].
_PIECE: Final = 1 << 20
#: Readouts written to the file at a time: one HDF5 write costs as much as a hundred readouts.
_BATCH: Final = 256
_BATCH_BYTES: Final = 16 * 2**20
_GROUP: Final = "dataset"
_LAST: Final = 1 << (Flag.LAST_IN_MEASUREMENT - 1)
_TEXT = h5py.string_dtype()


class Journal:
    """The journal of one session while it is written.

    Parameters
    ----------
    path
        A new file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o640)
        #: Bytes of whole messages that a reader of the file finds.
        self.size = 0
        #: Readouts, and whether one of them said that it is the last.
        self.readouts, self.last_seen = 0, False
        self.images = self.waveforms = 0
        self._waiting: list[bytes] = []

    def add(self, message: Message) -> None:
        """Take a message; `flush` writes it."""
        self._waiting.append(message.packed())
        if message.kind is Kind.ACQUISITION:
            self.readouts += 1
            self.last_seen = self.last_seen or bool(message.flags & _LAST)
        self.images += message.kind is Kind.IMAGE
        self.waveforms += message.kind is Kind.WAVEFORM

    def flush(self) -> int:
        """Append what waits and return how long the journal is."""
        if self._waiting:
            joined, self._waiting = b"".join(self._waiting), []
            view = memoryview(joined)
            while view:
                view = view[os.write(self._fd, view) :]
            self.size += len(joined)
        return self.size

    def close(self) -> None:
        """Let go of the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Converter:
    """Makes an MRD file of a journal, as far as that has come.

    Parameters
    ----------
    journal
        May still be growing.
    target
        The MRD file, to be made.
    """

    def __init__(self, journal: Path, target: Path) -> None:
        self.target = target
        self._in = journal.open("rb")
        self._cutter = wire.Cutter(2**63)  # what is in a journal was held against the limit when it came
        self._at = 0
        self._file = h5py.File(target, "w", libver=("earliest", "v108"))
        self._group = self._file.create_group(_GROUP)
        self._rows: list[Message] = []
        self._bytes = 0
        #: What was found.
        self.readouts, self.last_seen, self.closed, self.has_header = 0, False, False, False

    def advance(self, size: int) -> None:
        """Take over what the journal has up to ``size`` bytes."""
        while self._at < size:
            piece = self._in.read(min(_PIECE, size - self._at))
            if not piece:
                return
            self._at += len(piece)
            self._cutter.feed(piece)
            while (message := self._cutter.next()) is not None:
                self._take(message)

    def recover(self) -> None:
        """Take over a journal of a dead process: to its last whole message."""
        try:
            self.advance(2**63)
        except wire.ProtocolError:  # the tail of a write that was cut short
            return

    def finish(self) -> None:
        """Write what waits and close the file; it is then as durable as the caller makes it."""
        self._write_rows()
        self._in.close()
        self._file.close()

    def discard(self) -> None:
        """Close and delete the file."""
        self._in.close()
        self._file.close()
        self.target.unlink(missing_ok=True)

    def _take(self, message: Message) -> None:
        kind = message.kind
        if kind is Kind.ACQUISITION:
            self._rows.append(message)
            self._bytes += len(message.body)
            self.readouts += 1
            self.last_seen = self.last_seen or bool(message.flags & _LAST)
            if len(self._rows) >= _BATCH or self._bytes >= _BATCH_BYTES:
                self._write_rows()
        elif kind is Kind.HEADER:
            self.has_header = True
            self._group.create_dataset("xml", data=[message.raw_text], dtype=h5py.string_dtype())
        elif kind is Kind.WAVEFORM:
            self._waveform(message.body)
        elif kind is Kind.IMAGE:
            self._image(message.body)
        elif kind is Kind.TEXT:
            _append(self._group, "text", message.text, _TEXT)
        elif kind is Kind.CLOSE:
            self.closed = True
        else:
            _append(self._group, "config", message.text, _TEXT)

    def _write_rows(self) -> None:
        if not self._rows:
            return
        rows: NDArray[np.void] = np.empty(len(self._rows), dtype=acquisition_dtype)
        for number, message in enumerate(self._rows):
            head = np.frombuffer(message.body, acquisition_header_dtype, 1)
            rows["head"][number] = head[0]
            values = np.frombuffer(message.body, np.float32, offset=wire.ACQUISITION_HEAD)
            cut = int(head["number_of_samples"][0]) * int(head["trajectory_dimensions"][0])
            rows["traj"][number], rows["data"][number] = values[:cut], values[cut:]
        if "data" not in self._group:
            self._group.create_dataset("data", (0,), maxshape=(None,), dtype=acquisition_dtype, chunks=(64,))
        table = self._group["data"]
        table.resize(len(table) + len(rows), axis=0)
        table[-len(rows) :] = rows
        self._rows, self._bytes = [], 0

    def _waveform(self, body: bytes) -> None:
        row: NDArray[np.void] = np.empty(1, dtype=waveform_dtype)
        row["head"][0] = np.frombuffer(body, waveform_header_dtype, 1)[0]
        row["data"][0] = np.frombuffer(body, np.uint32, offset=wire.WAVEFORM_HEAD)
        _append(self._group, "waveforms", row[0], waveform_dtype)

    def _image(self, body: bytes) -> None:
        """Images of one size and series share a group, as in every MRD file."""
        head = np.frombuffer(body, image_header_dtype, 1)[0]
        attributes = int.from_bytes(body[wire.IMAGE_HEAD : wire.IMAGE_HEAD + 8], "little")
        start = wire.IMAGE_HEAD + 8
        shape = (int(head["channels"]), *(int(n) for n in head["matrix_size"][::-1]))
        dtype = value_type(int(head["data_type"]))
        if not all(shape):
            return  # a header without an image: in the journal alone
        data = np.frombuffer(body, dtype, offset=start + attributes).reshape(shape)
        number = 0
        while True:
            name = f"image_{int(head['image_series_index'])}" + (f"_{number}" if number else "")
            group = self._group.require_group(name)
            if "data" not in group:
                group.create_dataset("data", (0, *shape), maxshape=(None, *shape), dtype=dtype)
            if group["data"].shape[1:] == shape and group["data"].dtype == dtype:
                break
            number += 1
        table = group["data"]
        table.resize(len(table) + 1, axis=0)
        table[-1] = data
        _append(group, "header", head, image_header_dtype)
        words = body[start : start + attributes].decode("utf-8", "replace").replace("\0", "")
        _append(group, "attributes", words, _TEXT)


def _append(group: h5py.Group, name: str, value: object, dtype: object) -> None:
    if name not in group:
        group.create_dataset(name, (0,), maxshape=(None,), dtype=dtype)
    table = group[name]
    table.resize(len(table) + 1, axis=0)
    table[-1] = value
