"""Siemens raw data (twix, ``.dat``) to MRD: Cartesian and echo-planar measurements, as the scanner acquired them.

Lines keep their order, their direction (what was read backwards stays so and is flagged, as MRD has it) and their
oversampling, which the header states. Geometry is that of the lines' own headers. Siemens' axes belong to a *forward*
Fourier transform from k-space to the image; MRD's readers, this node too, use the inverse, so the three directions are
negated here (PTB-MR/mrpro pull request 833 conjugates the data instead; twixtools `prs2sct_mdb` negates likewise).
The table's position is not added: positions are relative to the isocentre.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dicomnode.errors import NodeError, UnreadableRawData
from dicomnode.kspace import Flag

#: Flags of Siemens' lines -> MRD's.
_FLAGS: Final = {
    "NOISEADJSCAN": Flag.IS_NOISE_MEASUREMENT,
    "PATREFSCAN": Flag.IS_PARALLEL_CALIBRATION,
    "PATREFANDIMASCAN": Flag.IS_PARALLEL_CALIBRATION_AND_IMAGING,
    "REFLECT": Flag.IS_REVERSE,
    "PHASCOR": Flag.IS_PHASECORR_DATA,
    "REFPHASESTABSCAN": Flag.IS_NAVIGATION_DATA,
    "PHASESTABSCAN": Flag.IS_NAVIGATION_DATA,
    "RETRO_DUMMYSCAN": Flag.IS_DUMMYSCAN_DATA,
    "FIRSTSCANINSLICE": Flag.FIRST_IN_SLICE,
    "LASTSCANINSLICE": Flag.LAST_IN_SLICE,
    "LASTSCANINMEAS": Flag.LAST_IN_MEASUREMENT,
}
#: Of lines for the scanner's own feedback; a phase-correction line may be both, and is needed as such.
_FEEDBACK: Final = {"RTFEEDBACK": Flag.IS_RTFEEDBACK_DATA, "HPFEEDBACK": Flag.IS_HPFEEDBACK_DATA}
#: Lines that are not of the image.
_APART: Final = (
    Flag.IS_NOISE_MEASUREMENT,
    Flag.IS_PARALLEL_CALIBRATION,
    Flag.IS_PHASECORR_DATA,
    Flag.IS_NAVIGATION_DATA,
    Flag.IS_DUMMYSCAN_DATA,
    Flag.IS_RTFEEDBACK_DATA,
    Flag.IS_HPFEEDBACK_DATA,
)
#: MRD counter -> Siemens' name of it.
_COUNTERS: Final = {
    "kspace_encode_step_1": "Lin",
    "kspace_encode_step_2": "Par",
    "average": "Ave",
    "slice": "Sli",
    "contrast": "Eco",
    "phase": "Phs",
    "repetition": "Rep",
    "set": "Set",
    "segment": "Seg",
}
#: Rows written at a time.
_BLOCK: Final = 128


class TwixUnavailable(NodeError):
    """The reader of Siemens raw data is not installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line as Siemens' header has it, in MRD's terms."""

    mdb: Any
    flags: int
    counters: Mapping[str, int]
    samples: int
    channels: int

    def has(self, *flags: Flag) -> bool:
        """Whether any of ``flags`` is set."""
        return any(self.flags >> (flag - 1) & 1 for flag in flags)

    @property
    def imaging(self) -> bool:
        """Whether it is a line of the image."""
        return not self.has(*_APART)


@dataclass(slots=True, kw_only=True)
class Measurement:
    """The measurement of a file: header, lines, and what there is to say about them."""

    name: str
    header: Mapping[str, Any]
    lines: Sequence[Line]
    notes: list[str] = field(default_factory=list)

    @property
    def imaging(self) -> list[Line]:
        """Lines of the image."""
        return [line for line in self.lines if line.imaging]


def convert(source: Path, target: Path, *, trajectory: str = "", trust_axes: bool = False) -> tuple[str, ...]:
    """Write the measurement of ``source`` as an MRD file; return what a person should know about it.

    Parameters
    ----------
    trajectory
        ``cartesian`` or ``epi``, where the protocol does not say how k-space was travelled (Pulseq sequences): of an
        ``epi`` measurement without direction flags every other line is then taken as read backwards.
    trust_axes
        The axes of a Pulseq sequence are those of the protocol's slice: somebody has compared them. Else directions
        stay empty, and no image is placed in the patient: such sequences may turn or mirror them as they like.

    Raises
    ------
    TwixUnavailable
        The reader of twix files is not installed.
    UnreadableRawData
        It is no twix file, is damaged, or was not acquired along straight parallel lines.
    """
    from dicomnode.volumes import twix_header

    measurement = read(source)
    encoding = twix_header.encoding_of(measurement, trajectory)
    xml = twix_header.xml_of(measurement, encoding)
    placed = trust_axes or not twix_header.is_open(measurement)
    if not placed:
        measurement.notes.append("the axes of a Pulseq sequence are not in the file: directions are left empty")
    alternate = encoding.trajectory == "epi" and not any(line.has(Flag.IS_REVERSE) for line in measurement.imaging)
    if alternate:
        measurement.notes.append("no line says in which direction it was read: every other one is taken as backwards")
    _write(target, xml, _rows(measurement, alternate=alternate, placed=placed))
    return tuple(measurement.notes)


def read(source: Path) -> Measurement:
    """The last measurement of a twix file; noise scans of the adjustments before it come first."""
    try:
        import twixtools
    except ImportError as error:
        raise TwixUnavailable("reading Siemens raw data needs twixtools: pip install 'dicomnode[twix]'") from error
    try:
        scans = twixtools.read_twix(str(source), parse_geometry=False, verbose=False)
        last = scans[-1]
        lines = [line for mdb in last["mdb"] if (line := _line(mdb)) is not None]
        header = last["hdr"]
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
        raise UnreadableRawData(f"{source.name} is no Siemens raw data or is damaged ({error})") from error
    found = Measurement(name=source.name, header=header, lines=lines)
    if not found.imaging:
        raise UnreadableRawData(f"{source.name} holds no line of an image")
    _check_lines(found)
    noise = _noise(scans[:-1], found)
    if noise:
        found.lines = [*noise, *lines]
        found.notes.append(f"{len(noise)} noise lines taken from the adjustments in the file")
    return found


def _line(mdb: Any) -> Line | None:  # noqa: ANN401 - twixtools has no types
    """None for what is no line: the end mark, and packets of the physiological unit."""
    names = set(mdb.get_active_flags())
    if names & {"ACQEND", "SYNCDATA"}:
        return None
    flags = {_FLAGS[name] for name in names if name in _FLAGS}
    if not flags & {Flag.IS_PHASECORR_DATA, Flag.IS_PARALLEL_CALIBRATION_AND_IMAGING}:
        flags |= {_FEEDBACK[name] for name in names if name in _FEEDBACK and "ONLINE" not in names}
    counter = mdb.mdh.Counter
    return Line(
        mdb=mdb,
        flags=sum(1 << (flag - 1) for flag in flags),
        counters={name: int(getattr(counter, theirs)) for name, theirs in _COUNTERS.items()},
        samples=int(mdb.mdh.SamplesInScan),
        channels=int(mdb.mdh.UsedChannels),
    )


def _check_lines(measurement: Measurement) -> None:
    """Every line of the image must be as long as the others, or no grid can hold them."""
    sizes = {(line.channels, line.samples) for line in measurement.imaging}
    if len(sizes) > 1:
        raise UnreadableRawData(
            f"lines of the image in {measurement.name} have different numbers of channels and samples: {sorted(sizes)}"
        )


def _noise(scans: Sequence[Mapping[str, Any]], measurement: Measurement) -> list[Line]:
    """Noise lines of earlier measurements in the file, where they fit the receivers of this one."""
    channels = measurement.imaging[0].channels
    found = [_line(mdb) for scan in scans for mdb in scan.get("mdb", ()) if "NOISEADJSCAN" in mdb.get_active_flags()]
    return [line for line in found if line is not None and line.channels == channels]


def directions(line: Line) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Read, phase and slice direction of a line, LPS, for an inverse Fourier transform.

    The quaternion (scalar first) turns phase, read, slice into the patient's axes (Siemens: sagittal, coronal,
    transversal, which are L, P and S).
    """
    a, b, c, d = (float(value) for value in line.mdb.mdh.SliceData.Quaternion)
    norm = a * a + b * b + c * c + d * d
    if abs(norm - 1.0) > 1e-3:
        return np.zeros(3), np.zeros(3), np.zeros(3)  # no orientation: whoever places images must refuse
    turn = np.array(
        [
            [1 - 2 * (c * c + d * d), 2 * (b * c - d * a), 2 * (b * d + c * a)],
            [2 * (b * c + d * a), 1 - 2 * (b * b + d * d), 2 * (c * d - b * a)],
            [2 * (b * d - c * a), 2 * (c * d + b * a), 1 - 2 * (b * b + c * c)],
        ]
    )
    turn /= np.linalg.norm(turn, axis=0)
    return -turn[:, 1], -turn[:, 0], -turn[:, 2]


def _rows(measurement: Measurement, *, alternate: bool, placed: bool) -> Iterator[NDArray[Any]]:
    """Readouts as MRD files hold them, in blocks."""
    import ismrmrd

    dwell = _dwell_times(measurement.header)
    block: list[NDArray[Any]] = []
    number = 0
    for counter, line in enumerate(measurement.lines):
        flags = line.flags
        if alternate and line.imaging:
            flags |= (number % 2) << (Flag.IS_REVERSE - 1)
            number += 1
        row = _row(line, flags, counter, dwell, ismrmrd.hdf5.acquisition_dtype)
        if placed:
            row["head"]["read_dir"], row["head"]["phase_dir"], row["head"]["slice_dir"] = directions(line)
        block.append(row)
        if len(block) == _BLOCK:
            yield np.concatenate(block)
            block = []
    if block:
        yield np.concatenate(block)


def _row(line: Line, flags: int, counter: int, dwell: Sequence[float], dtype: np.dtype[Any]) -> NDArray[Any]:
    row = np.zeros(1, dtype)
    data, mdh = np.ascontiguousarray(line.mdb.data, np.complex64), line.mdb.mdh
    head = row["head"]
    head["version"], head["flags"], head["scan_counter"] = 1, flags, counter
    head["measurement_uid"] = int(mdh.MeasUID) & 0xFFFFFFFF
    head["acquisition_time_stamp"] = int(mdh.TimeStamp)
    head["physiology_time_stamp"][0, 0] = int(mdh.PMUTimeStamp)
    head["number_of_samples"] = data.shape[1]
    head["available_channels"] = head["active_channels"] = data.shape[0]
    reverse = flags >> (Flag.IS_REVERSE - 1) & 1
    center = int(mdh.CenterCol)
    head["center_sample"] = data.shape[1] - 1 - center if reverse and 2 * center == data.shape[1] else center
    echo = line.counters["contrast"]
    head["sample_time_us"] = dwell[echo] if echo < len(dwell) and dwell[echo] else (dwell[0] if dwell else 0.0)
    position = mdh.SliceData.SlicePos
    head["position"] = (position.Sag, position.Cor, position.Tra)
    for name, value in line.counters.items():
        head["idx"][name] = value
    row["data"][0] = data.view(np.float32).ravel()
    row["traj"][0] = np.zeros(0, np.float32)
    return row


def _dwell_times(header: Mapping[str, Any]) -> list[float]:
    """Time of one sample by echo [us]; Siemens has nanoseconds, of the oversampled line."""
    values = header.get("MeasYaps", {}).get("sRXSPEC", {}).get("alDwellTime") or []
    return [float(value) / 1000.0 for value in values]


def _write(target: Path, xml: bytes, blocks: Iterator[NDArray[Any]]) -> None:
    """Write aside, then rename: an interrupted conversion leaves nothing that looks like a measurement."""
    import h5py
    import ismrmrd

    part = target.with_name(f"{target.name}.part")
    try:
        with h5py.File(part, "w") as file:
            group = file.create_group("dataset")
            group.create_dataset("xml", data=[xml], dtype=h5py.special_dtype(vlen=bytes))
            rows = group.create_dataset(
                "data", (0,), maxshape=(None,), chunks=(_BLOCK,), dtype=ismrmrd.hdf5.acquisition_dtype
            )
            for block in blocks:
                start = rows.shape[0]
                rows.resize(start + len(block), axis=0)
                rows[start:] = block
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
