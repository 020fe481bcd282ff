"""Content items of reports: numbers, statements, sites, algorithm and tracking, in highdicom's templates."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from highdicom.sr import (
    AlgorithmIdentification,
    CodeContentItem,
    CodedConcept,
    ContentSequence,
    FindingSite,
    Measurement,
    MeasurementProperties,
    NumContentItem,
    QualitativeEvaluation,
    RelationshipTypeValues,
    TextContentItem,
    TrackingIdentifier,
)
from pydicom import Dataset
from pydicom.sr.coding import Code

from dicomnode.dicom import derive_uid
from dicomnode.encode.identity import EncodeContext
from dicomnode.encode.source import Source
from dicomnode.errors import EncodingError
from dicomnode.pipeline import Finding, Presence, Segment, Site
from dicomnode.pipeline import Measurement as Value

#: Coding scheme of the few concepts that no standard scheme has.
OWN_SCHEME: Final = "99DICOMNODE"
NO_UNITS: Final = Code("1", "UCUM", "no units")
PROBABILITY: Final = Code("122157", "DCM", "Probability")
#: What an algorithm's output is called until somebody calibrated it on patients.
SCORE: Final = Code("score", OWN_SCHEME, "AI score, not calibrated")
COMMENT: Final = Code("121106", "DCM", "Comment")
VALUE_UNKNOWN: Final = Code("114010", "DCM", "Value unknown")  # CID 42
#: CID 240.
PRESENCE: Final = {
    Presence.PRESENT: Code("52101004", "SCT", "Present"),
    Presence.ABSENT: Code("272519000", "SCT", "Absent"),
    Presence.UNDETERMINED: Code("373068000", "SCT", "Undetermined"),
}
_UPPER: Final = Code("371886008", "SCT", "+, range of upper measurement uncertainty")
_LOWER: Final = Code("371885007", "SCT", "-, range of lower measurement uncertainty")
_UNCERTAINTIES: Final = frozenset({_UPPER.value, _LOWER.value})
#: Significant digits of a reported number: more than any measurement has, fewer than binary noise shows.
_DIGITS: Final = 7


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
        A value is not finite.
    """
    found = [_number(value, value.value) for value in values if value.value is not None]
    output = score(finding) if finding else None
    return found if output is None else [*found, output]


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


def evaluation(finding: Finding, *, whole: bool) -> CodeContentItem:
    """The finding and whether it is there (CID 240); ``whole``: with its site, output and reason below it."""
    item = CodeContentItem(finding.code, PRESENCE[finding.presence], RelationshipTypeValues.CONTAINS)
    if not whole:
        return item
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
