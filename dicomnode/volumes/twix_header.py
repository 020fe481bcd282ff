"""The MRD header of a Siemens measurement: matrices, fields of view, limits, timing, scanner, and patient if named."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from xml.etree import ElementTree

from dicomnode.dicom import valid_uid
from dicomnode.errors import UnreadableRawData
from dicomnode.kspace import Flag
from dicomnode.volumes.twix import Measurement

_NAMESPACE: Final = "http://www.ismrm.org/ISMRMRD"
#: ucTrajectory: 1 is Cartesian; 2 radial, 4 spiral, 8 blades.
_CARTESIAN: Final = 1
#: ucRefScanMode -> calibrationMode, as siemens_to_ismrmrd's parameter maps have it.
_CALIBRATION: Final = {2: "embedded", 4: "separate", 8: "separate", 16: "interleaved", 32: "interleaved"}
_POSITIONS: Final = frozenset({"HFP", "HFS", "HFDR", "HFDL", "FFP", "FFS", "FFDR", "FFDL"})
#: Sequences whose protocol says nothing of what they do.
_OPEN_SEQUENCES: Final = re.compile(r"(?i)pulseq")
_CROSSED_OUT: Final = re.compile(r"(?i)x*")
_SEX: Final = {1: "F", 2: "M", 3: "O"}
_ORDER: Final = ("average", "slice", "contrast", "phase", "repetition", "set", "segment")


@dataclass(slots=True, kw_only=True)
class TwixEncoding:
    """One encoding space as the lines and the protocol have it: x, y, z, [mm]."""

    trajectory: str
    encoded_matrix: tuple[int, int, int]
    encoded_fov: tuple[float, float, float]
    recon_matrix: tuple[int, int, int]
    recon_fov: tuple[float, float, float]
    limits: Mapping[str, tuple[int, int, int]]
    acceleration: tuple[int, int] = (1, 1)
    calibration: str = ""
    multiband: int = 1
    #: trajectoryDescription of echo-planar lines [us], as MRD's "ConventionalEPI" has it.
    epi: Mapping[str, float] = field(default_factory=dict)


def encoding_of(measurement: Measurement, trajectory: str) -> TwixEncoding:
    """What was encoded; raises `UnreadableRawData` with the reason if it is not parallel straight lines."""
    protocol, lines = _protocol(measurement), measurement.imaging
    space, opened = protocol.get("sKSpace", {}), is_open(measurement)
    kind = _trajectory(measurement, space, trajectory, opened=opened)
    samples = lines[0].samples
    rows = max(line.counters["kspace_encode_step_1"] for line in lines) + 1
    parts = max(line.counters["kspace_encode_step_2"] for line in lines) + 1
    base, over = _whole(space.get("lBaseResolution"), samples), _oversampling(measurement)
    fov_x, fov_y, thickness = _fields_of_view(measurement, protocol)
    deep = _whole(space.get("lPartitions"), 1) if int(space.get("ucDimension") or 2) == 4 else 1
    if opened:
        # The protocol holds defaults: only what was measured says anything.
        measurement.notes.append(
            "the sequence is Pulseq's: the matrix is that of the data, and the field of view is the protocol's, which "
            "the sequence need not have used; readout oversampling is not known and none is assumed"
        )
        base, over, deep = samples, 1.0, parts
        full_rows = rows
    else:
        full_rows = max(_whole(space.get("lPhaseEncodingLines"), rows), rows)
        deep = max(deep, parts)
    stretch = 1.0 + _number(space.get("dPhaseOversamplingForDialog")) if not opened else 1.0
    images = _whole(space.get("lImagesPerSlab"), deep) if deep > 1 and not opened else deep
    wide = round(base * over)
    return TwixEncoding(
        trajectory=kind,
        encoded_matrix=(max(wide, samples), full_rows, deep),
        encoded_fov=(fov_x * max(wide, samples) / base, fov_y * stretch, thickness * deep / images),
        recon_matrix=(base, max(round(base * fov_y / fov_x), 1) if not opened else rows, images),
        recon_fov=(fov_x, fov_y, thickness),
        limits=_limits(measurement, full_rows, deep, opened=opened),
        epi=_epi(measurement) if kind == "epi" else {},
        multiband=_whole(protocol.get("sSliceAcceleration", {}).get("lMultiBandFactor"), 1),
        **_parallel(protocol),
    )


def _protocol(measurement: Measurement) -> Mapping[str, Any]:
    found = measurement.header.get("MeasYaps") or measurement.header.get("Phoenix")
    if not found:
        raise UnreadableRawData(f"{measurement.name} has no protocol (MeasYaps): it cannot be placed")
    return found if isinstance(found, Mapping) else {}


def is_open(measurement: Measurement) -> bool:
    """Whether the protocol holds defaults only, because the sequence is made elsewhere (Pulseq)."""
    return bool(_OPEN_SEQUENCES.search(str(_protocol(measurement).get("tSequenceFileName") or "")))


def _trajectory(measurement: Measurement, space: Mapping[str, Any], said: str, *, opened: bool) -> str:
    kind = int(_number(space.get("ucTrajectory")) or _CARTESIAN)
    if kind != _CARTESIAN:
        raise UnreadableRawData(
            f"{measurement.name} was not acquired along parallel lines (ucTrajectory {kind}): only Cartesian and "
            "echo-planar measurements are converted"
        )
    lines = measurement.imaging
    # Bipolar echoes alternate from echo to echo; of an echo-planar train, within one.
    mixed = any(
        len({line.has(Flag.IS_REVERSE) for line in lines if line.counters["contrast"] == echo}) > 1
        for echo in {line.counters["contrast"] for line in lines}
    )
    if said:
        return said
    if opened and not mixed:
        raise UnreadableRawData(
            f"{measurement.name} is of a Pulseq sequence, whose protocol does not say how k-space was travelled: say "
            "--trajectory cartesian or --trajectory epi"
        )
    return "epi" if mixed else "cartesian"


def _oversampling(measurement: Measurement) -> float:
    """Readout oversampling that the header states; 2 is what Siemens' own sequences do."""
    for part in ("Dicom", "Meas"):
        value = _number(measurement.header.get(part, {}).get("flReadoutOSFactor"))
        if value >= 1.0:
            return value
    return 2.0


def _fields_of_view(measurement: Measurement, protocol: Mapping[str, Any]) -> tuple[float, float, float]:
    slices = protocol.get("sSliceArray", {}).get("asSlice") or [{}]
    first = slices[0]
    sizes = tuple(_number(first.get(key)) for key in ("dReadoutFOV", "dPhaseFOV", "dThickness"))
    if not all(size > 0 for size in sizes):
        raise UnreadableRawData(f"the protocol of {measurement.name} gives no field of view or thickness")
    return sizes[0], sizes[1], sizes[2]


def _limits(measurement: Measurement, rows: int, deep: int, *, opened: bool) -> dict[str, tuple[int, int, int]]:
    lines = measurement.imaging
    found = {}
    for counter in ("kspace_encode_step_1", "kspace_encode_step_2", *_ORDER):
        values = [line.counters[counter] for line in lines]
        name = counter.replace("encode", "encoding")
        found[name] = (min(values), max(values), 0)
    mdh = lines[0].mdb.mdh
    centers = (rows // 2, deep // 2) if opened else (int(mdh.CenterLin), int(mdh.CenterPar))
    for name, center in zip(("kspace_encoding_step_1", "kspace_encoding_step_2"), centers, strict=True):
        found[name] = (found[name][0], found[name][1], center)
    return found


def _parallel(protocol: Mapping[str, Any]) -> dict[str, Any]:
    pat = protocol.get("sPat", {})
    factors = _whole(pat.get("lAccelFactPE"), 1), _whole(pat.get("lAccelFact3D"), 1)
    if max(factors) <= 1:
        return {}
    return {"acceleration": factors, "calibration": _CALIBRATION.get(_whole(pat.get("ucRefScanMode"), 0), "other")}


def _epi(measurement: Measurement) -> dict[str, float]:
    """Timing of one echo [us], for the regridding of samples taken on the ramps."""
    meas = measurement.header.get("Meas", {})
    names = {
        "rampUpTime": "alRegridRampupTime",
        "rampDownTime": "alRegridRampdownTime",
        "flatTopTime": "alRegridFlattopTime",
        "acqDelayTime": "alRegridDelaySamplesTime",
    }
    found = {name: _first(meas.get(theirs)) for name, theirs in names.items()}
    if not found["flatTopTime"] or not found["rampUpTime"]:
        return {}
    return {
        **found,
        "numSamples": float(measurement.imaging[0].samples),
        "echoSpacing": _first(meas.get("lEchoSpacing")),
    }


def xml_of(measurement: Measurement, encoding: TwixEncoding) -> bytes:
    """The header, in the order the schema wants."""
    root = ElementTree.Element("ismrmrdHeader", {"xmlns": _NAMESPACE})
    protocol, dicom = _protocol(measurement), measurement.header.get("Dicom", {})
    _add_subject(root, measurement)
    _add_measurement(root, measurement, dicom)
    system = _sub(root, "acquisitionSystemInformation")
    for name, key in (("systemVendor", "Manufacturer"), ("systemModel", "ManufacturersModelName")):
        _text(system, name, dicom.get(key))
    _text(system, "systemFieldStrength_T", _positive(dicom.get("flMagneticFieldStrength")))
    _text(system, "relativeReceiverNoiseBandwidth", 0.793)  # Siemens receivers, as siemens_to_ismrmrd writes it
    _text(system, "receiverChannels", measurement.imaging[0].channels)
    _text(system, "institutionName", dicom.get("InstitutionName"))
    serial = dicom.get("DeviceSerialNumber")
    _text(system, "deviceSerialNumber", f"{serial:.0f}" if isinstance(serial, float) else serial)
    _text(_sub(root, "experimentalConditions"), "H1resonanceFrequency_Hz", _whole(dicom.get("lFrequency"), 0))
    _add_encoding(root, encoding)
    sequence = _sub(root, "sequenceParameters")
    for name, values in _times(protocol, encoding):
        for value in values:
            _text(sequence, name, value)
    _text(sequence, "sequence_type", str(protocol.get("tSequenceFileName") or "").rpartition("\\")[2])
    text: str = ElementTree.tostring(root, "unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}'.encode()


def _add_subject(root: ElementTree.Element, measurement: Measurement) -> None:
    """The patient, unless the scanner's export crossed the name out: then everything about the person stays away."""
    dicom, meas = measurement.header.get("Dicom", {}), measurement.header.get("Meas", {})
    name = str(dicom.get("tPatientName") or meas.get("tPatientName") or "").strip()
    if _CROSSED_OUT.fullmatch(name):
        return
    subject = _sub(root, "subjectInformation")
    _text(subject, "patientName", name.replace(", ", "^"))
    _text(subject, "patientWeight_kg", _positive(dicom.get("flUsedPatientWeight")))
    height = _positive(dicom.get("flPatientHeight"))
    _text(subject, "patientHeight_m", height / 1000.0 if height else None)
    patient_id = str(meas.get("PatientID") or "").strip()
    _text(subject, "patientID", None if _CROSSED_OUT.fullmatch(patient_id) else patient_id)
    _text(subject, "patientGender", _SEX.get(_whole(dicom.get("lPatientSex"), 0)))


def _add_measurement(root: ElementTree.Element, measurement: Measurement, dicom: Mapping[str, Any]) -> None:
    study = _sub(root, "studyInformation")
    _text(study, "bodyPartExamined", dicom.get("tBodyPartExamined"))
    if not len(study):
        root.remove(study)
    node, meas = _sub(root, "measurementInformation"), measurement.header.get("Meas", {})
    position = str(dicom.get("tPatientPosition") or meas.get("tPatientPosition") or meas.get("sPatPosition") or "")
    if position in _POSITIONS:
        _text(node, "patientPosition", position)
    else:
        measurement.notes.append("how the patient lay is not in the file: images need --patient-position")
    _text(node, "protocolName", dicom.get("tProtocolName") or meas.get("tProtocolName"))
    frame = str(meas.get("tFrameOfReference") or "")
    _text(node, "frameOfReferenceUID", frame if valid_uid(frame) else None)
    if not len(node):
        root.remove(node)


def _add_encoding(root: ElementTree.Element, encoding: TwixEncoding) -> None:
    node = _sub(root, "encoding")
    for name, matrix, fov in (
        ("encodedSpace", encoding.encoded_matrix, encoding.encoded_fov),
        ("reconSpace", encoding.recon_matrix, encoding.recon_fov),
    ):
        space = _sub(node, name)
        size, reach = _sub(space, "matrixSize"), _sub(space, "fieldOfView_mm")
        for axis, number, length in zip("xyz", matrix, fov, strict=True):
            _text(size, axis, number)
            _text(reach, axis, length)
    limits = _sub(node, "encodingLimits")
    for name, bounds in encoding.limits.items():
        one = _sub(limits, name)
        for key, value in zip(("minimum", "maximum", "center"), bounds, strict=True):
            _text(one, key, value)
    _text(node, "trajectory", encoding.trajectory)
    if encoding.epi:
        description = _sub(node, "trajectoryDescription")
        _text(description, "identifier", "ConventionalEPI")
        for key, time in encoding.epi.items():
            item = _sub(description, "userParameterLong")
            _text(item, "name", key)
            _text(item, "value", round(time))
    if encoding.calibration or encoding.multiband > 1:
        parallel = _sub(node, "parallelImaging")
        factors = _sub(parallel, "accelerationFactor")
        _text(factors, "kspace_encoding_step_1", encoding.acceleration[0])
        _text(factors, "kspace_encoding_step_2", encoding.acceleration[1])
        _text(parallel, "calibrationMode", encoding.calibration or "other")
        if encoding.multiband > 1:
            _text(_sub(parallel, "multiband"), "multiband_factor", encoding.multiband)


def _times(protocol: Mapping[str, Any], encoding: TwixEncoding) -> Iterator[tuple[str, list[float]]]:
    """Lists of sequenceParameters; of the echo times (Siemens lists defaults too) those that were measured."""
    echoes = encoding.limits["contrast"][1] + 1
    for name, key, most in (("TR", "alTR", 1), ("TE", "alTE", echoes)):
        yield name, [float(value) / 1000.0 for value in (protocol.get(key) or [])[:most] if _number(value) > 0]
    prepared = protocol.get("sPrepPulses", {})
    if int(_number(prepared.get("ucInversion")) or 0) in (1, 2):  # 4: none
        yield "TI", [float(value) / 1000.0 for value in (protocol.get("alTI") or [])[:1] if _number(value) > 0]
    yield "flipAngle_deg", [float(value) for value in (protocol.get("adFlipAngleDegree") or [])[:1]]


def _sub(parent: ElementTree.Element, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(parent, name)


def _text(parent: ElementTree.Element, name: str, value: object) -> None:
    """Add a child, if there is something to say."""
    if value not in (None, ""):
        _sub(parent, name).text = f"{value:.10g}" if isinstance(value, float) else str(value)


def _number(value: object) -> float:
    """A protocol value as a number; 0 if it is none. Siemens writes some as hexadecimal text."""
    try:
        return float(int(value, 16)) if isinstance(value, str) and value.startswith("0x") else float(str(value))
    except ValueError:
        return 0.0


def _whole(value: object, default: int) -> int:
    return int(_number(value)) or default


def _positive(value: object) -> float | None:
    found = _number(value)
    return found if found > 0 else None


def _first(value: object) -> float:
    return _number(value[0] if isinstance(value, list | tuple) and value else value)
