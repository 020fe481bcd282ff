"""What is sent: Part 10 files, known by their heads until their turn comes."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pynetdicom.dsutils import split_dataset

from dicomnode.errors import DispatchError, StoreError
from dicomnode.store import part10

#: Head of nearly every file; the rest of a longer one is read when needed [bytes].
_FIRST_READ: Final = 2048
#: Larger data sets are mapped, not read, so that memory stays small [bytes].
_MAP_ABOVE: Final = 1 << 20

Body = memoryview | mmap.mmap


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One Part 10 file and what its head says."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    #: Where the data set begins [bytes].
    offset: int

    def body(self) -> memoryview:
        """The data set's bytes as they lie in the file."""
        try:
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size > _MAP_ABOVE:
                    whole = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
                else:
                    whole = memoryview(file.read())
        except OSError as error:
            raise _unreadable(self.path, error) from error
        if len(whole) <= self.offset:
            raise DispatchError(f"{self.path.name} holds no data set; nothing can be sent of it")
        return whole[self.offset :]


def read(path: Path) -> File:
    """Read a file's head; raises `DispatchError` that says why it cannot be sent."""
    try:
        with path.open("rb") as file:
            start = file.read(_FIRST_READ)
            try:
                head = part10.read_head(start)
            except StoreError:
                head = part10.read_head(start + file.read(part10.LONGEST_HEAD))
        found = File(
            path=path,
            sop_class_uid=head.sop_class_uid,
            sop_instance_uid=head.sop_instance_uid,
            transfer_syntax_uid=head.transfer_syntax_uid,
            offset=head.length,
        )
    except StoreError:
        found = _read_leniently(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    if not (found.sop_class_uid and found.sop_instance_uid and found.transfer_syntax_uid):
        raise DispatchError(f"{path.name} does not name its SOP class, SOP instance and transfer syntax in its head")
    return found


def _read_leniently(path: Path) -> File:
    """Files of others may lack the group length, or order their head freely; pydicom reads those."""
    try:
        meta, offset = split_dataset(path)
    except Exception as error:  # pydicom raises many kinds; this file is set aside with the reason
        raise _unreadable(path, error) from error
    return File(
        path=path,
        sop_class_uid=str(meta.get("MediaStorageSOPClassUID", "")),
        sop_instance_uid=str(meta.get("MediaStorageSOPInstanceUID", "")),
        transfer_syntax_uid=str(meta.get("TransferSyntaxUID", "")),
        offset=offset,
    )


def _unreadable(path: Path, error: Exception) -> DispatchError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return DispatchError(f"{path.name} cannot be read as a DICOM file: {reason or type(error).__name__}")
