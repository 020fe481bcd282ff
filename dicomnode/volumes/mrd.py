"""Raw k-space in MRD, the raw data format of the ISMRM: headers, readouts, and HDF5 files read as they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import h5py
import ismrmrd
import numpy as np
from numpy.typing import NDArray

from dicomnode.errors import UnreadableRawData
from dicomnode.kspace import KSpace, Readout
from dicomnode.volumes.mrd_header import Identity, equipment_of, header_of, identity_of

__all__ = ["Identity", "equipment_of", "header_of", "identity_of", "open_mrd", "readout_of", "xml_of"]

#: Name of the group that writers use unless told otherwise.
_GROUP: Final = "dataset"
#: Read from a file at a time [bytes].
_BLOCK: Final = 32 * 2**20
_MOST_ROWS: Final = 256
#: Least fields of a readout's header in a file; files of other versions may have more.
_NEEDED: Final = ("flags", "number_of_samples", "active_channels", "idx", "position", "read_dir", "phase_dir")


def readout_of(acquisition: ismrmrd.Acquisition) -> Readout:
    """A readout as it came over the wire. The samples are not copied."""
    head = acquisition.getHead()
    index = head.idx
    trajectory = np.asarray(acquisition.traj, dtype=np.float32) if head.trajectory_dimensions else None
    return Readout(
        data=np.asarray(acquisition.data, dtype=np.complex64),
        flags=int(head.flags),
        encoding=int(head.encoding_space_ref),
        step_1=int(index.kspace_encode_step_1),
        step_2=int(index.kspace_encode_step_2),
        average=int(index.average),
        slice=int(index.slice),
        contrast=int(index.contrast),
        phase=int(index.phase),
        repetition=int(index.repetition),
        set=int(index.set),
        segment=int(index.segment),
        center_sample=int(head.center_sample),
        discard_pre=int(head.discard_pre),
        discard_post=int(head.discard_post),
        dwell_time=float(head.sample_time_us),
        position=_vector(head.position),
        read_dir=_vector(head.read_dir),
        phase_dir=_vector(head.phase_dir),
        slice_dir=_vector(head.slice_dir),
        trajectory=trajectory,
        time_stamp=int(head.acquisition_time_stamp),
        physiology=_stamps(head.physiology_time_stamp),
        counter=int(head.scan_counter),
    )


def open_mrd(path: Path) -> KSpace:
    """The measurement in an MRD file; its readouts are read in blocks whenever they are iterated over.

    Raises
    ------
    UnreadableRawData
        The file is no MRD file, or is damaged. Readouts raise it too, where the damage is found only then.
    MissingAttribute
        The header lacks what no reconstruction can do without.
    """
    return KSpace(header=header_of(xml_of(path)), readouts=_Readouts(path))


def xml_of(path: Path) -> bytes:
    """The XML header of an MRD file, as it stands there."""
    with _opened(path) as group:
        if "xml" not in group:
            raise UnreadableRawData(f"{path.name} has no MRD header ({group.name}/xml)")
        value = group["xml"][()]
        if isinstance(value, np.ndarray):
            if not value.size:
                raise UnreadableRawData(f"{path.name} has an empty MRD header")
            value = value.ravel()[0]
        return value if isinstance(value, bytes) else str(value).encode()


class _Readouts:
    """The readouts of a file, as often as they are asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with _opened(path) as group:
            self._rows(group)

    def __len__(self) -> int:
        with _opened(self._path) as group:
            return int(self._rows(group).shape[0])

    def __iter__(self) -> Iterator[Readout]:
        with _opened(self._path) as group:
            rows = self._rows(group)
            number, at = int(rows.shape[0]), 0
            # One row says how long readouts are; noise and calibration lines may be longer, but not by orders.
            size = max(int(rows[0]["data"].nbytes), 1) if number else 1
            step = max(1, min(_MOST_ROWS, _BLOCK // size))
            while at < number:
                for offset, row in enumerate(rows[at : at + step]):
                    yield _readout(row, self._path.name, at + offset)
                at += step

    def _rows(self, group: h5py.Group) -> h5py.Dataset:
        rows = group.get("data")
        if not isinstance(rows, h5py.Dataset) or rows.ndim != 1:
            raise UnreadableRawData(f"{self._path.name} holds no readouts ({group.name}/data)")
        fields = set(rows.dtype.names or ())
        head = set(rows.dtype["head"].names or ()) if "head" in fields else set()
        if not {"head", "data"} <= fields or not set(_NEEDED) <= head:
            raise UnreadableRawData(f"{group.name}/data of {self._path.name} is no list of MRD readouts")
        return rows


@contextmanager
def _opened(path: Path) -> Iterator[h5py.Group]:
    """The one measurement of a file; what HDF5 says of a damaged one gets the file's name and a remedy."""
    try:
        with h5py.File(path, "r") as file:
            groups = [name for name, item in file.items() if isinstance(item, h5py.Group)]
            name = _GROUP if _GROUP in groups else groups[0] if len(groups) == 1 else ""
            if not name:
                raise UnreadableRawData(f"{path.name} is no MRD file: it has no group {_GROUP!r} (has: {groups[:5]})")
            yield file[name]
    except FileNotFoundError:
        raise
    except (OSError, KeyError, RuntimeError) as error:  # what h5py raises for damage
        raise UnreadableRawData(
            f"{path.name} is no MRD file or is damaged ({str(error)[:200]}); export it from the scanner again"
        ) from error


def _readout(row: np.void, name: str, number: int) -> Readout:
    head, index = row["head"], row["head"]["idx"]
    known = head.dtype.names or ()
    channels, samples = int(head["active_channels"]), int(head["number_of_samples"])
    values = np.asarray(row["data"], dtype=np.float32)
    if values.size != 2 * channels * samples:
        raise UnreadableRawData(
            f"readout {number} of {name} holds {values.size // 2} samples, its header says {channels} x {samples}"
        )
    return Readout(
        data=values.view(np.complex64).reshape(channels, samples),
        flags=int(head["flags"]),
        encoding=int(head["encoding_space_ref"]),
        step_1=int(index["kspace_encode_step_1"]),
        step_2=int(index["kspace_encode_step_2"]),
        average=int(index["average"]),
        slice=int(index["slice"]),
        contrast=int(index["contrast"]),
        phase=int(index["phase"]),
        repetition=int(index["repetition"]),
        set=int(index["set"]),
        segment=int(index["segment"]),
        center_sample=int(head["center_sample"]),
        discard_pre=int(head["discard_pre"]),
        discard_post=int(head["discard_post"]),
        dwell_time=float(head["sample_time_us"]),
        position=_vector(head["position"]),
        read_dir=_vector(head["read_dir"]),
        phase_dir=_vector(head["phase_dir"]),
        slice_dir=_vector(head["slice_dir"]) if "slice_dir" in known else (0.0, 0.0, 0.0),
        trajectory=_trajectory(row, samples, name, number),
        time_stamp=int(head["acquisition_time_stamp"]),
        physiology=_stamps(head["physiology_time_stamp"]),
        counter=int(head["scan_counter"]),
    )


def _trajectory(row: np.void, samples: int, name: str, number: int) -> NDArray[np.float32] | None:
    dimensions = int(row["head"]["trajectory_dimensions"])
    if not dimensions or "traj" not in (row.dtype.names or ()):
        return None
    values = np.asarray(row["traj"], dtype=np.float32)
    if values.size != samples * dimensions:
        raise UnreadableRawData(
            f"readout {number} of {name} has {values.size} trajectory values, its header says {samples} x {dimensions}"
        )
    return values.reshape(samples, dimensions)


def _vector(values: object) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in values)  # type: ignore[attr-defined]  # ctypes or numpy array of three
    return x, y, z


def _stamps(values: object) -> tuple[int, int, int]:
    first, second, third = (int(value) for value in list(values)[:3])  # type: ignore[call-overload]  # as above
    return first, second, third
