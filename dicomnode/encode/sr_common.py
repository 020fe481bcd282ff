"""What every report is made of: the TID 1500 root, who observed, which images, numbers, sites and statements.

Written with highdicom's templates; what it leaves out, spells differently or cannot say is put right here, each with
the validator that noticed (`outputs.md` 1.3).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

from highdicom.sr import (
    AlgorithmIdentification,
    CodeContentItem,
    CodedConcept,
    Comprehensive3DSR,
    ContainerContentItem,
    ContentItem,
    ContentSequence,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    ImageContentItem,
    Measurement,
    MeasurementProperties,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    NumContentItem,
    ObservationContext,
    ObserverContext,
    PlanarROIMeasurementsAndQualitativeEvaluations,
    QualitativeEvaluation,
    RelationshipTypeValues,
    TextContentItem,
    TrackingIdentifier,
    UIDRefContentItem,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from dicomnode.dicom import MANUFACTURER, derive_uid
from dicomnode.encode.common import MAX_LO, cut
from dicomnode.encode.envelope import envelop
from dicomnode.encode.identity import EncodeContext, require_identity
from dicomnode.encode.order import referenced_requests
from dicomnode.encode.source import Source
from dicomnode.errors import EncodingError
from dicomnode.pipeline import Finding, Presence, Result, Segment, Site
from dicomnode.pipeline import Measurement as Value

#: Coding scheme of the few concepts that no standard scheme has.
OWN_SCHEME: Final = "99DICOMNODE"
NO_UNITS: Final = Code("1", "UCUM", "no units")
PROBABILITY: Final = Code("122157", "DCM", "Probability")
#: What an algorithm's output is called until somebody calibrated it on patients.
SCORE: Final = Code("score", OWN_SCHEME, "Score of the algorithm, not calibrated")
COMMENT: Final = Code("121106", "DCM", "Comment")
VALUE_UNKNOWN: Final = Code("114010", "DCM", "Value unknown")  # CID 42
#: CID 240.
PRESENCE: Final = {
    Presence.PRESENT: Code("52101004", "SCT", "Present"),
    Presence.ABSENT: Code("272519000", "SCT", "Absent"),
    Presence.UNDETERMINED: Code("373068000", "SCT", "Undetermined"),
}
#: On every report, in a text that every SR viewer shows.
RESEARCH: Final = "Research use only: not for diagnosis, not reviewed by a physician."

_QUALITATIVE: Final = Code("C0034375", "UMLS", "Qualitative Evaluations")
#: CID 100: the only procedures PixelMed accepts for TID 1500 without naming a body part.
_PROCEDURES: Final = {
    "CT": Code("25045-6", "LN", "CT unspecified body region"),
    "MR": Code("25056-3", "LN", "MRI unspecified body region"),
}
_UPPER: Final = Code("371886008", "SCT", "+, range of upper measurement uncertainty")
_LOWER: Final = Code("371885007", "SCT", "-, range of lower measurement uncertainty")
_UNCERTAINTIES: Final = frozenset({_UPPER.value, _LOWER.value})
_PIXELS: Final = Code("{pixels}", "UCUM", "Pixels")
_SOURCE: Final = Code("260753009", "SCT", "Source")
_SOURCE_FOR_SEGMENTATION: Final = Code("121233", "DCM", "Source image for segmentation")
#: Significant digits of a reported number: more than any measurement has, fewer than binary noise shows.
_DIGITS: Final = 7
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
    first = source.headers[0]
    require_identity(first)
    tree = MeasurementReport(_observer(context), _procedure(first), groups, title=codes.DCM.ImagingMeasurementReport)
    root = tree[0].ContentSequence
    root.insert(len(root) - 1, _image_library(source))
    qualitative = ContainerContentItem(_QUALITATIVE, relationship_type=RelationshipTypeValues.CONTAINS)
    qualitative.ContentSequence = ContentSequence(evaluations)
    root.append(qualitative)
    ds = Comprehensive3DSR(
        evidence=[_stand_in(header) for header in (*source.headers, *segs)],
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
    _correct(ds)
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


def comment(sentence: str, relationship: RelationshipTypeValues = RelationshipTypeValues.CONTAINS) -> TextContentItem:
    """A sentence for the reader."""
    return TextContentItem(COMMENT, sentence, relationship)


def algorithm(context: EncodeContext) -> AlgorithmIdentification:
    """Name, version and weights of the algorithm (TID 4019)."""
    weights = [f"weights sha256 {context.weights_digest}"] if context.weights_digest else None
    name, version = context.algorithm.name, context.algorithm.version
    family = Code("123110", "DCM", "Artificial Intelligence")  # CID 7162
    return AlgorithmIdentification(name, version, weights, family)


def tracking(context: EncodeContext, identifier: str, *key: str) -> TrackingIdentifier:
    """Tracking identifier and UID of a group (TID 4108): ``key`` says which inside the job."""
    return TrackingIdentifier(derive_uid(context.job_key, *key), identifier)


def numbers(values: Iterable[Value], finding: Finding | None) -> list[Measurement]:
    """NUMs of a group (TID 300): what was measured, then what the algorithm put out for its finding.

    Raises
    ------
    EncodingError
        A value is not finite, or lies outside its own interval.
    """
    output = score(finding) if finding else None
    return [
        *(_number(value, value.value) for value in values if value.value is not None),
        *([output] if output else []),
    ]


def unmeasured(values: Iterable[Value]) -> list[QualitativeEvaluation]:
    """What could not be measured and why (CID 42), as coded answers.

    A NUM without a value would be as valid (PS3.3 C.18.1), but PixelMed takes it for an error and highdicom cannot
    read it.
    """
    return [QualitativeEvaluation(one.name, one.qualifier or VALUE_UNKNOWN) for one in values if one.value is None]


def _number(value: Value, measured: float) -> Measurement:
    """NUM with its interval as distances from the value (TID 310)."""
    properties = None
    if value.interval is not None:
        low, high = value.interval
        properties = MeasurementProperties(
            upper_measurement_uncertainty=_rounded(high - measured, value.name),
            lower_measurement_uncertainty=_rounded(measured - low, value.name),
        )
    measurement = Measurement(
        name=value.name,
        value=_rounded(measured, value.name),
        unit=value.unit,
        qualifier=value.qualifier,
        finding_sites=sites(value.site),
        method=value.method,
        properties=properties,
    )
    for item in measurement[0].get("ContentSequence") or ():
        if item.name.value in _UNCERTAINTIES:
            # In the unit of the value: highdicom writes "no units". And as PixelMed wants it in TID 1419 (rows 13, 14).
            item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence = [CodedConcept.from_code(value.unit)]
            item.RelationshipType = RelationshipTypeValues.INFERRED_FROM.value
    return measurement


def score(finding: Finding) -> Measurement | None:
    """The algorithm's output as NUM (TID 300): a probability only if it was calibrated."""
    if finding.probability is None:
        return None
    name = PROBABILITY if finding.calibrated else SCORE
    return Measurement(name=name, value=_rounded(finding.probability, name), unit=NO_UNITS)


def statement(segment: Segment, finding: Finding | None) -> tuple[Code | None, list[QualitativeEvaluation]]:
    """Finding of a segment's group, and what else must be said so that its presence is not read wrongly."""
    code = segment.finding or segment.type
    if finding is None:
        return code, []
    if finding.presence is Presence.PRESENT:
        more = [] if finding.code == code else [QualitativeEvaluation(finding.code, PRESENCE[finding.presence])]
        return code, more
    return None, [QualitativeEvaluation(finding.code, PRESENCE[finding.presence])]


def evaluation(finding: Finding) -> CodeContentItem:
    """The finding and whether it is there (CID 240), with its site, output and reason below it."""
    item = CodeContentItem(finding.code, PRESENCE[finding.presence], RelationshipTypeValues.CONTAINS)
    below = ContentSequence(sites(finding.site) or ())
    output = score(finding)
    if output is not None:
        name, value = output[0].name, output[0].value
        below.append(NumContentItem(name, value, NO_UNITS, relationship_type=RelationshipTypeValues.HAS_PROPERTIES))
    if finding.reason:
        below.append(comment(finding.reason, RelationshipTypeValues.HAS_PROPERTIES))
    if below:
        item.ContentSequence = below
    return item


def sites(site: Site | None) -> list[FindingSite] | None:
    """Finding site with laterality, as highdicom's templates take it."""
    return None if site is None else [FindingSite(site.code, laterality=site.laterality)]


def frames(source: Source, planes: Iterable[int]) -> list[tuple[Dataset, list[int] | None]]:
    """Instances that hold ``planes``, each with the frame numbers if it has frames."""
    found: dict[int, list[int]] = {}
    for index in planes:
        plane = source.planes[index]
        found.setdefault(plane.header, []).append(plane.frame)
    return [
        (source.headers[header], sorted(numbers) if numbers[0] else None) for header, numbers in sorted(found.items())
    ]


def _rounded(value: float, name: Code) -> float:
    if not math.isfinite(value):
        raise EncodingError(f"{name.meaning} is not finite")
    return float(f"{value:.{_DIGITS}g}")


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


def _image_library(source: Source) -> ContainerContentItem:
    """The images that were examined (TID 1600), what they have in common said once (TID 1602)."""
    header = source.headers[0]
    acquired = RelationshipTypeValues.HAS_ACQ_CONTEXT
    modality = codes.cid29.ComputedTomography if header.Modality == "CT" else codes.cid29.MagneticResonance
    group = ContainerContentItem(codes.DCM.ImageLibraryGroup, relationship_type=RelationshipTypeValues.CONTAINS)
    group.ContentSequence = ContentSequence(
        [
            CodeContentItem(codes.DCM.Modality, modality, acquired),
            UIDRefContentItem(codes.DCM.FrameOfReferenceUID, str(header.FrameOfReferenceUID), acquired),
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


def _correct(item: Dataset) -> None:
    """What highdicom writes otherwise, put right in the whole tree."""
    for child in item.get("ContentSequence") or ():
        for name in child.get("ConceptNameCodeSequence") or ():
            # highdicom writes capitals, and PixelMed warns.
            if name.CodeValue == _SOURCE_FOR_SEGMENTATION.value and name.CodingSchemeDesignator == "DCM":
                name.CodeMeaning = _SOURCE_FOR_SEGMENTATION.meaning
        _correct(child)


def _stand_in(header: Dataset) -> Dataset:
    """What highdicom needs to refer to an instance; `envelop` writes patient and study."""
    item = Dataset()
    for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        setattr(item, keyword, str(header[keyword].value))
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex"):
        setattr(item, keyword, None)
    for keyword in ("AccessionNumber", "StudyID", "StudyDate", "StudyTime"):
        setattr(item, keyword, None)
    return item


def _predecessors(replaces: Sequence[Document]) -> list[Dataset]:
    found = []
    for study, series, sop_class, instance in replaces:
        if sop_class in _DOCUMENTS:
            item = Dataset()
            item.StudyInstanceUID, item.SeriesInstanceUID = study, series
            item.SOPClassUID, item.SOPInstanceUID = sop_class, instance
            found.append(item)
    return found
