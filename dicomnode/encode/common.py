"""What every emitted object does alike: copy strictly, drop what must not be copied, write codes and references."""

from __future__ import annotations

import logging
from typing import Final

from pydicom import Dataset, config
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence as DicomSequence
from pydicom.sr.coding import Code
from pydicom.tag import BaseTag
from pydicom.valuerep import VR, validate_value

logger = logging.getLogger(__name__)

#: Longest LO, which is also the longest text of a description.
MAX_LO: Final = 64

#: Never copied into an object with other pixels: claims about the source's own pixels, bytes, signatures, storage and
#: equipment, and what is written anew. Curves and overlays (0x50xx, 0x60xx) and private elements go by their group.
_DROPPED: Final = (
    "SpecificCharacterSet",
    "IconImageSequence",
    "DigitalSignaturesSequence",
    "MACParametersSequence",
    "EncryptedAttributesSequence",
    "PixelDataProviderURL",
    "SmallestImagePixelValue",
    "LargestImagePixelValue",
    "SmallestPixelValueInSeries",
    "LargestPixelValueInSeries",
    "SmallestImagePixelValueInPlane",
    "LargestImagePixelValueInPlane",
    "PerformedProcedureStepStartDate",
    "PerformedProcedureStepStartTime",
    "PerformedProcedureStepEndDate",
    "PerformedProcedureStepEndTime",
    "PerformedProcedureStepID",
    "PerformedProcedureStepDescription",
    "PerformedProtocolCodeSequence",
    "CommentsOnThePerformedProcedureStep",
    "ReferencedPerformedProcedureStepSequence",
    "SOPInstanceStatus",
    "SOPAuthorizationDateTime",
    "SOPAuthorizationComment",
    "AuthorizationEquipmentCertificationNumber",
    "OriginalAttributesSequence",
    "InstanceCreatorUID",
    "RelatedGeneralSOPClassUID",
    "OriginalSpecializedSOPClassUID",
    "InstanceOriginStatus",
    "RetrieveAETitle",
    "RetrieveURL",
    "RetrieveURI",
    "InstanceAvailability",
    "StorageMediaFileSetID",
    "StorageMediaFileSetUID",
    "StationName",
    "StationAETitle",
    "DeviceUID",
    "ManufacturerDeviceClassUID",
    "UDISequence",
    "SpatialResolution",
    "DateOfLastCalibration",
    "TimeOfLastCalibration",
    "DateOfManufacture",
    "DateOfInstallation",
    "GantryID",
    "SeriesDescriptionCodeSequence",
    "SourceImageSequence",
    "SourceImageEvidenceSequence",
    "ReferencedSeriesSequence",
    "StudiesContainingOtherReferencedInstancesSequence",
    "DerivationDescription",
)
DROPPED: Final = frozenset(tag for keyword in _DROPPED if (tag := tag_for_keyword(keyword)) is not None)

#: Type 2 in one of the image IODs: may be empty. Any other empty element at the top breaks its type or says nothing.
_MAY_BE_EMPTY: Final = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
    "SeriesNumber",
    "PositionReferenceIndicator",
    "Manufacturer",
    "InstanceNumber",
    "AcquisitionNumber",
    "SliceThickness",
    "KVP",
    "PatientPosition",
    "ScanOptions",
    "MRAcquisitionType",
    "EchoTime",
    "EchoTrainLength",
    "RepetitionTime",
    "InversionTime",
    "TriggerTime",
    "ContrastBolusAgent",
    "AcquisitionContextSequence",
)
MAY_BE_EMPTY: Final = frozenset(tag for keyword in _MAY_BE_EMPTY if (tag := tag_for_keyword(keyword)) is not None)

#: Copied exactly or not at all: another spelling would be another patient, study or order.
_VERBATIM: Final = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "StudyInstanceUID",
    "AccessionNumber",
    "StudyID",
    "FrameOfReferenceUID",
)
VERBATIM: Final = frozenset(tag for keyword in _VERBATIM if (tag := tag_for_keyword(keyword)) is not None)


#: VRs whose values are text with a syntax; the original string of a DS or IS is what is checked.
_CHECKED: Final = frozenset({"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UI", "UR"})


class Copier:
    """Copies headers of one series strictly; elements that headers share are judged once."""

    def __init__(self) -> None:
        # Keeping the element beside the verdict keeps its id from being given to another object.
        self._judged: dict[int, tuple[DataElement, DataElement | None]] = {}

    def copy(self, header: Dataset) -> Dataset:
        """New data set with everything of ``header`` that may be said about other pixels, and that its VR allows."""
        copy = Dataset()
        for element in header:
            if dropped(element.tag):
                continue
            if id(element) not in self._judged:
                self._judged[id(element)] = element, strict(element)
            allowed = self._judged[id(element)][1]
            if allowed is not None:
                copy._dict[allowed.tag] = _twin(
                    allowed
                )  # add() would look each tag up again: half the time of an object
        return copy


def dropped(tag: BaseTag) -> bool:
    """Whether an element of the source never goes into a derived object."""
    overlay_or_curve = tag.group & 0xFF00 in {0x5000, 0x6000}
    return tag in DROPPED or tag.is_private or tag.group <= 0x0002 or tag.element == 0 or overlay_or_curve


def _twin(element: DataElement) -> DataElement:
    """Another element with the same value, so that changing one object changes no other."""
    if element.VR == VR.SQ:
        items = [_twins(item) for item in element.value]
        return DataElement(element.tag, element.VR, DicomSequence(items))
    return DataElement(element.tag, element.VR, element.value, already_converted=True)


def _twins(item: Dataset) -> Dataset:
    copy = Dataset()
    for element in item:
        copy.add(_twin(element))
    return copy


def strict(element: DataElement) -> DataElement | None:
    """The element as its VR allows it to be written; None if nothing of it may."""
    if element.VR == VR.SQ:
        return _strict_sequence(element)
    if element.is_empty:
        return element if element.tag in MAY_BE_EMPTY else None
    if element.tag in VERBATIM:
        return element
    values = list(element.value) if isinstance(element.value, MultiValue) else [element.value]
    shortened = [_shortened(str(element.VR), value) for value in values]
    try:
        for value in shortened if element.VR in _CHECKED else ():
            validate_value(str(element.VR), str(value), config.RAISE)
    except ValueError:
        logger.info("value not copied", extra={"action": "value_not_copied", "keyword": element.keyword})
        return DataElement(element.tag, element.VR, None) if element.tag in MAY_BE_EMPTY else None
    if shortened == values:
        return element
    return DataElement(element.tag, element.VR, shortened if len(shortened) > 1 else shortened[0])


def _strict_sequence(element: DataElement) -> DataElement | None:
    items = []
    for item in element.value:
        copy = Dataset()
        for child in item:
            # An empty element of an item may be of type 2 there: the dictionary of items is too wide to judge.
            allowed = child if child.is_empty else None if child.tag.is_private else strict(child)
            if allowed is not None:
                copy.add(allowed)
        items.append(copy)
    if not items and element.tag not in MAY_BE_EMPTY:
        return None
    return DataElement(element.tag, VR.SQ, DicomSequence(items))


def _shortened(vr: str, value: object) -> object:
    """Free text cut to what its VR holds; anything else as it is."""
    return value[:MAX_LO] if vr == "LO" and isinstance(value, str) else value


def code_item(code: Code) -> Dataset:
    """Item of a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return item


def reference(header: Dataset) -> Dataset:
    """Item that references an instance."""
    item = Dataset()
    item.ReferencedSOPClassUID = str(header.SOPClassUID)
    item.ReferencedSOPInstanceUID = str(header.SOPInstanceUID)
    return item


def cut(text: str, length: int) -> str:
    """``text`` in at most ``length`` characters, without a trailing space."""
    return text[:length].rstrip()
