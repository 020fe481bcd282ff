"""The XML header of a measurement in MRD (ismrmrd.xsd): what a reconstruction needs of it, and whose it is, apart.

Read with a parser that refuses document types, and so entities, before anything of them is expanded; without the
schema's own classes, which name no reason that a person could act on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Final
from xml.etree import ElementTree

from dicomnode.errors import MissingAttribute, UnreadableRawData
from dicomnode.inputs import Attribute
from dicomnode.kspace import Calibration, Encoding, KSpaceHeader, Limit, Trajectory

#: Namespace of the schema.
_NAMESPACE: Final = "http://www.ismrm.org/ISMRMRD"
#: A header is some kilobytes, one with embedded protocols some hundred: more is an attack or an accident [bytes].
_LONGEST: Final = 16 * 2**20
#: Counters and matrices are 16 bits in MRD.
_MOST: Final = 65535
#: Receiver noise bandwidth where the header does not say it (ISMRMRD documentation, "relativeReceiverNoiseBandwidth").
_NOISE_BANDWIDTH: Final = 0.793
_LIMITS: Final = (
    "kspace_encoding_step_0",
    "kspace_encoding_step_1",
    "kspace_encoding_step_2",
    "average",
    "slice",
    "contrast",
    "phase",
    "repetition",
    "set",
    "segment",
)
_SEQUENCE: Final = ("TR", "TE", "TI", "flipAngle_deg", "echo_spacing")
#: Patient positions of PS3.3 C.7.3.1.1.2 for a lying patient.
_POSITIONS: Final = frozenset({"HFP", "HFS", "HFDR", "HFDL", "FFP", "FFS", "FFDR", "FFDL"})
#: Where texts stand, by DICOM keyword.
_ACQUISITION: Final = {
    "ProtocolName": "measurementInformation/protocolName",
    "SeriesDescription": "measurementInformation/seriesDescription",
    "SequenceName": "measurementInformation/sequenceName",
    "PulseSequenceName": "sequenceParameters/sequence_type",
    "BodyPartExamined": "studyInformation/bodyPartExamined",
    "Manufacturer": "acquisitionSystemInformation/systemVendor",
    "ManufacturerModelName": "acquisitionSystemInformation/systemModel",
}
_IDENTITY: Final = {
    "PatientName": "subjectInformation/patientName",
    "PatientID": "subjectInformation/patientID",
    "PatientBirthDate": "subjectInformation/patientBirthdate",
    "PatientSex": "subjectInformation/patientGender",
    "PatientWeight": "subjectInformation/patientWeight_kg",
    "PatientSize": "subjectInformation/patientHeight_m",
    "StudyInstanceUID": "studyInformation/studyInstanceUID",
    "StudyDate": "studyInformation/studyDate",
    "StudyTime": "studyInformation/studyTime",
    "StudyID": "studyInformation/studyID",
    "StudyDescription": "studyInformation/studyDescription",
    "AccessionNumber": "studyInformation/accessionNumber",
    "ReferringPhysicianName": "studyInformation/referringPhysicianName",
    "FrameOfReferenceUID": "measurementInformation/frameOfReferenceUID",
}
_EQUIPMENT: Final = {
    "Manufacturer": "acquisitionSystemInformation/systemVendor",
    "ManufacturerModelName": "acquisitionSystemInformation/systemModel",
    "DeviceSerialNumber": "acquisitionSystemInformation/deviceSerialNumber",
    "InstitutionName": "acquisitionSystemInformation/institutionName",
    "StationName": "acquisitionSystemInformation/stationName",
}
_DATE: Final = re.compile(r"(\d{4})-(\d\d)-(\d\d)")
_TIME: Final = re.compile(r"(\d\d):(\d\d):(\d\d)(\.\d{1,6})?")
#: What anonymisers leave where a name or number was.
_CROSSED_OUT: Final = re.compile(r"(?i)x+|anonym\w*|unknown|none|n/?a")

#: Patient and study by DICOM keyword, values in DICOM's spelling.
Identity = Mapping[str, str]


class _Builder(ElementTree.TreeBuilder):
    def doctype(self, _name: str, _public: str | None, _system: str | None) -> None:
        raise UnreadableRawData("the MRD header declares a document type: such headers are refused (entities)")


class _Node:
    """One element, its children found by their names in the schema."""

    def __init__(self, element: ElementTree.Element) -> None:
        self._element = element

    def all(self, path: str) -> Iterator[_Node]:
        qualified = "/".join(f"{{{_NAMESPACE}}}{part}" for part in path.split("/"))
        return (_Node(found) for found in self._element.findall(qualified))

    def one(self, path: str) -> _Node | None:
        return next(self.all(path), None)

    def text(self, path: str = "") -> str:
        found = self.one(path) if path else self
        return "" if found is None else (found._element.text or "").strip()

    def number(self, path: str = "") -> float | None:
        """A finite number; None where there is none, `UnreadableRawData` where it is something else."""
        text = self.text(path)
        if not text:
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise UnreadableRawData(f"the MRD header's {path or 'number'} is {text[:40]!r}, not a number")
        return value

    def whole(self, path: str) -> int | None:
        value = self.number(path)
        if value is not None and (value != int(value) or abs(value) > 2**31):
            raise UnreadableRawData(f"the MRD header's {path} is {value:g}, not a whole number")
        return None if value is None else int(value)


def header_of(xml: bytes) -> KSpaceHeader:
    """Header of a measurement, less the patient.

    Raises
    ------
    MissingAttribute
        It lacks an encoding, or an encoding its matrix or field of view.
    UnreadableRawData
        It is not XML, declares a document type, is not in the namespace of MRD, or a number is none.
    """
    root = _root(xml)
    encodings = tuple(_encoding(node, number) for number, node in enumerate(root.all("encoding")))
    if not encodings:
        raise MissingAttribute("the MRD header has no encoding: nothing says how k-space was travelled")
    bandwidth = root.number("acquisitionSystemInformation/relativeReceiverNoiseBandwidth")
    sequence = {
        name: tuple(value for node in root.all(f"sequenceParameters/{name}") if (value := node.number()) is not None)
        for name in _SEQUENCE
    }
    return KSpaceHeader(
        encodings=encodings,
        coils=root.whole("acquisitionSystemInformation/receiverChannels") or 0,
        noise_bandwidth=bandwidth if bandwidth is not None and bandwidth > 0 else _NOISE_BANDWIDTH,
        sequence={name: values for name, values in sequence.items() if values},
        acquisition=_acquisition(root),
        user=_parameters(root.one("userParameters")),
    )


def identity_of(xml: bytes) -> Identity:
    """Patient and study as far as the header carries them; what is crossed out counts as absent. Possibly empty."""
    root = _root(xml)
    found = {keyword: root.text(path) for keyword, path in _IDENTITY.items()}
    kept = {keyword: text for keyword, text in found.items() if text and not _CROSSED_OUT.fullmatch(text)}
    for keyword in ("PatientBirthDate", "StudyDate"):
        matched = _DATE.match(kept.pop(keyword, ""))
        if matched:
            kept[keyword] = "".join(matched.groups())
    time = _TIME.match(kept.pop("StudyTime", ""))
    if time:
        kept["StudyTime"] = "".join(time.groups(default=""))
    return kept


def equipment_of(xml: bytes) -> Mapping[str, str]:
    """The scanner by DICOM keyword, as far as the header names it."""
    root = _root(xml)
    return {keyword: text for keyword, path in _EQUIPMENT.items() if (text := root.text(path))}


def _root(xml: bytes) -> _Node:
    if len(xml) > _LONGEST:
        raise UnreadableRawData(f"the MRD header has {len(xml)} bytes, more than {_LONGEST}")
    parser = ElementTree.XMLParser(target=_Builder())  # noqa: S314 - see `_Builder`
    try:
        parser.feed(xml.rstrip(b"\0 \r\n"))  # some writers count the terminating zero of C
        root = parser.close()
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise UnreadableRawData(f"the MRD header is not XML: {error}") from error
    if root.tag != f"{{{_NAMESPACE}}}ismrmrdHeader":
        raise UnreadableRawData(
            f"the MRD header's root is {str(root.tag)[:80]!r}, not ismrmrdHeader in the namespace {_NAMESPACE}"
        )
    return _Node(root)


def _encoding(node: _Node, number: int) -> Encoding:
    trajectory, description = node.text("trajectory").lower(), node.one("trajectoryDescription")
    acceleration = tuple(
        max(node.whole(f"parallelImaging/accelerationFactor/kspace_encoding_step_{axis}") or 1, 1) for axis in (1, 2)
    )
    return Encoding(
        trajectory=Trajectory(trajectory) if trajectory in set(Trajectory) else Trajectory.OTHER,
        encoded_matrix=_matrix(node, "encodedSpace", number),
        encoded_fov=_field_of_view(node, "encodedSpace", number),
        recon_matrix=_matrix(node, "reconSpace", number),
        recon_fov=_field_of_view(node, "reconSpace", number),
        limits={name: limit for name in _LIMITS if (limit := _limit(node, name)) is not None},
        acceleration=(acceleration[0], acceleration[1]),
        calibration=_calibration(node, acceleration),
        multiband=max(node.whole("parallelImaging/multiband/multiband_factor") or 1, 1),
        parameters=_parameters(description),
    )


def _matrix(node: _Node, space: str, number: int) -> tuple[int, int, int]:
    x, y, z = (node.whole(f"{space}/matrixSize/{axis}") for axis in "xyz")
    if x is None or y is None or z is None:
        raise MissingAttribute(f"encoding {number} of the MRD header has no {space}/matrixSize with x, y and z")
    if not all(1 <= size <= _MOST for size in (x, y, z)):
        raise UnreadableRawData(f"encoding {number} of the MRD header has the {space} matrix {x} x {y} x {z}")
    return x, y, z


def _field_of_view(node: _Node, space: str, number: int) -> tuple[float, float, float]:
    x, y, z = (node.number(f"{space}/fieldOfView_mm/{axis}") for axis in "xyz")
    if x is None or y is None or z is None:
        raise MissingAttribute(f"encoding {number} of the MRD header has no {space}/fieldOfView_mm with x, y and z")
    if not all(size > 0 for size in (x, y, z)):
        raise UnreadableRawData(f"encoding {number} of the MRD header has the {space} field {x:g} x {y:g} x {z:g} mm")
    return x, y, z


def _limit(node: _Node, name: str) -> Limit | None:
    bounds = [node.whole(f"encodingLimits/{name}/{bound}") for bound in ("minimum", "maximum", "center")]
    low, high, center = bounds
    if low is None or high is None:
        return None
    if not 0 <= low <= high <= _MOST:
        raise UnreadableRawData(f"the MRD header's encodingLimits/{name} run from {low} to {high}")
    return Limit(low, high, center if center is not None else (low + high + 1) // 2)


def _calibration(node: _Node, acceleration: tuple[int, ...]) -> Calibration:
    said = node.text("parallelImaging/calibrationMode").lower()
    if said in set(Calibration):
        return Calibration(said)
    return Calibration.OTHER if said or max(acceleration) > 1 else Calibration.NONE


def _acquisition(root: _Node) -> dict[str, Attribute]:
    found: dict[str, Attribute] = {key: text for key, path in _ACQUISITION.items() if (text := root.text(path))}
    field = root.number("acquisitionSystemInformation/systemFieldStrength_T")
    if field is not None and field > 0:
        found["MagneticFieldStrength"] = field
    frequency = root.number("experimentalConditions/H1resonanceFrequency_Hz")
    if frequency is not None and frequency > 0:
        found["ImagingFrequency"] = frequency / 1e6
    position = root.text("measurementInformation/patientPosition").upper()
    if position in _POSITIONS:
        found["PatientPosition"] = position
    train = root.whole("encoding/echoTrainLength")
    if train is not None and train > 0:
        found["EchoTrainLength"] = float(train)
    return found


def _parameters(node: _Node | None) -> dict[str, float | str]:
    """userParameterLong, -Double and -String by name."""
    found: dict[str, float | str] = {}
    for kind in ("userParameterLong", "userParameterDouble") if node is not None else ():
        for item in node.all(kind) if node is not None else ():
            value = item.number("value")
            if value is not None:
                found[item.text("name")] = value
    for item in node.all("userParameterString") if node is not None else ():
        found[item.text("name")] = item.text("value")
    return found
