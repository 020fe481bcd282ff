"""The document around measurement groups: Comprehensive 3D SR of TID 1500, who observed, and which images.

Written with highdicom's templates; what they leave out is added here (`outputs.md` 1.1, 1.3).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from highdicom.sr import (
    CodeContentItem,
    Comprehensive3DSR,
    ContainerContentItem,
    ContentItem,
    ContentSequence,
    DeviceObserverIdentifyingAttributes,
    ImageContentItem,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    NumContentItem,
    ObservationContext,
    ObserverContext,
    PlanarROIMeasurementsAndQualitativeEvaluations,
    RelationshipTypeValues,
    TextContentItem,
    UIDRefContentItem,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from dicomnode.dicom import MANUFACTURER, derive_uid
from dicomnode.encode.common import MAX_LO, cut
from dicomnode.encode.content import comment
from dicomnode.encode.envelope import envelop
from dicomnode.encode.identity import EncodeContext, require_identity, unplaced
from dicomnode.encode.order import referenced_requests
from dicomnode.encode.source import Source
from dicomnode.encode.stand_ins import cited
from dicomnode.errors import EncodingError
from dicomnode.pipeline import Result

#: On every report, in a text that every SR viewer shows.
RESEARCH: Final = "Research use only: not for diagnosis, not reviewed by a physician."

_QUALITATIVE: Final = Code("C0034375", "UMLS", "Qualitative Evaluations")
#: CID 100: the only procedures PixelMed accepts for TID 1500 without naming a body part.
_PROCEDURES: Final = {
    "CT": Code("25045-6", "LN", "CT unspecified body region"),
    "MR": Code("25056-3", "LN", "MRI unspecified body region"),
}
_PIXELS: Final = Code("{pixels}", "UCUM", "Pixels")
_SOURCE: Final = Code("260753009", "SCT", "Source")
#: SR documents that a report can succeed (PS3.3 C.17.2: predecessors are SR documents); key objects are none.
_DOCUMENTS: Final = frozenset({f"1.2.840.10008.5.1.4.1.1.88.{number}" for number in (11, 22, 33, 34)})

#: A measurement group of TID 1500.
Group = (
    PlanarROIMeasurementsAndQualitativeEvaluations
    | VolumetricROIMeasurementsAndQualitativeEvaluations
    | MeasurementsAndQualitativeEvaluations
)
#: Study, series, SOP class and SOP instance UID of a document.
Document = tuple[str, str, str, str]


def report(
    source: Source,
    context: EncodeContext,
    groups: Sequence[Group],
    evaluations: Sequence[ContentItem],
    *,
    role: str,
    series_number: int,
    label: str,
    segs: Iterable[Dataset] = (),
    replaces: Sequence[Document] = (),
) -> Dataset:
    """Comprehensive 3D SR of TID 1500, in its own series.

    Parameters
    ----------
    evaluations
        Items of the root's Qualitative Evaluations (TID 1500 rows 12 to 14).
    segs
        Segmentations that ``groups`` refer to.
    replaces
        Reports of the earlier result that this one supersedes.
    """
    for header in source.headers:
        require_identity(header, context, spatial=False)
    first = source.headers[0]
    tree = MeasurementReport(_observer(context), _procedure(first), groups, title=codes.DCM.ImagingMeasurementReport)
    root = tree[0].ContentSequence
    root.insert(len(root) - 1, _image_library(source, context))
    qualitative = ContainerContentItem(_QUALITATIVE, relationship_type=RelationshipTypeValues.CONTAINS)
    qualitative.ContentSequence = ContentSequence(evaluations)
    root.append(qualitative)
    ds = Comprehensive3DSR(
        evidence=[cited(header) for header in (*source.headers, *segs)],
        content=tree,
        series_instance_uid=context.series_uid(role),
        series_number=series_number,
        sop_instance_uid=context.instance_uid(role, 0),
        instance_number=1,
        is_complete=not (context.incomplete or source.images.incomplete),
        is_final=False,  # never the definitive means of telling the findings
        requested_procedures=referenced_requests(first) or None,
        previous_versions=_predecessors(replaces) or None,
    )
    if ds.CompletionFlag == "PARTIAL":
        ds.CompletionFlagDescription = "Instances of the input are missing"
    return envelop(ds, source, context, role=role, series_number=series_number, description=label, image=False)


def remarks(result: Result, source: Source, context: EncodeContext) -> list[TextContentItem]:
    """What a reader must know, as comments (TID 1500 row 14)."""
    sentences = [RESEARCH, *result.remarks]
    if context.incomplete or source.images.incomplete:
        sentences.append("Instances of the input are missing: what was not received was not examined.")
    if context.revision > 1:
        replaced = f"; it replaces series {context.predecessor}" if context.predecessor else ""
        sentences.append(f"This is result number {context.revision} for this series{replaced}.")
    return [comment(sentence) for sentence in sentences]


def _observer(context: EncodeContext) -> ObservationContext:
    """The node as observing device (TID 1002, TID 1004)."""
    device = DeviceObserverIdentifyingAttributes(
        uid=derive_uid("device", context.device_serial),
        manufacturer_name=MANUFACTURER,
        model_name=cut(f"AI {context.algorithm.name}", MAX_LO),
        serial_number=context.device_serial,
    )
    return ObservationContext(observer_device_context=ObserverContext(codes.DCM.Device, device))


def _procedure(header: Dataset) -> Code:
    procedure = _PROCEDURES.get(str(header.get("Modality")))
    if procedure is None:
        raise EncodingError(f"a report on {header.get('Modality')} has no Procedure Reported in CID 100")
    return procedure


def _image_library(source: Source, context: EncodeContext) -> ContainerContentItem:
    """The images that were examined (TID 1600), what they have in common said once (TID 1602)."""
    header = source.headers[0]
    acquired = RelationshipTypeValues.HAS_ACQ_CONTEXT
    placed = not unplaced(source.headers, context)
    modality = codes.cid29.ComputedTomography if header.Modality == "CT" else codes.cid29.MagneticResonance
    group = ContainerContentItem(codes.DCM.ImageLibraryGroup, relationship_type=RelationshipTypeValues.CONTAINS)
    group.ContentSequence = ContentSequence(
        [
            CodeContentItem(codes.DCM.Modality, modality, acquired),
            *(
                [UIDRefContentItem(codes.DCM.FrameOfReferenceUID, str(header.FrameOfReferenceUID), acquired)]
                if placed
                else ()  # TID 1602: the row may be left out
            ),
            NumContentItem(codes.DCM.PixelDataRows, header.Rows, _PIXELS, relationship_type=acquired),
            NumContentItem(codes.DCM.PixelDataColumns, header.Columns, _PIXELS, relationship_type=acquired),
            *(
                ImageContentItem(
                    _SOURCE,
                    str(one.SOPClassUID),
                    str(one.SOPInstanceUID),
                    relationship_type=RelationshipTypeValues.CONTAINS,
                )
                for one in source.headers
            ),
        ]
    )
    library = ContainerContentItem(codes.DCM.ImageLibrary, relationship_type=RelationshipTypeValues.CONTAINS)
    library.ContentSequence = ContentSequence([group])
    return library


def _predecessors(replaces: Sequence[Document]) -> list[Dataset]:
    found = []
    for study, series, sop_class, instance in replaces:
        if sop_class in _DOCUMENTS:
            item = Dataset()
            item.StudyInstanceUID, item.SeriesInstanceUID = study, series
            item.SOPClassUID, item.SOPInstanceUID = sop_class, instance
            found.append(item)
    return found
