"""Reports of TID 1500: values and findings on segments (TID 1411), or without a region (TID 1501), never mixed.

A validator picks one template for a whole report, so groups of both kinds go into two reports.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypedDict

from highdicom.sr import (
    CodeContentItem,
    ContentItem,
    MeasurementsAndQualitativeEvaluations,
    QualitativeEvaluation,
    ReferencedSegment,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    SourceImageForSegmentation,
    SourceSeriesForSegmentation,
    TimePointContext,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from pydicom import Dataset
from pydicom.sr.coding import Code

from dicomnode.encode import content, document
from dicomnode.encode.cine import at_phase
from dicomnode.encode.identity import EncodeContext
from dicomnode.encode.source import Source
from dicomnode.encode.tracking import tracking_id, tracking_uid
from dicomnode.errors import EncodingError
from dicomnode.pipeline import Finding, Measurement, Presence, Result, Segment, Segmentation, Urgency

#: Roles of the two reports; the first refers to segmentations.
REPORT: Final = "report"
VALUES: Final = "values"

_ABSENT: Final = Code("373572006", "SCT", "Clinical finding absent")
_URGENCY: Final = Code("urgency", content.OWN_SCHEME, "Actionable finding category")
#: CID 7035, the most urgent first.
_CATEGORIES: Final = {
    Urgency.MINUTES: Code("RID49480", "RADLEX", "ACR Category 1 Actionable Finding"),
    Urgency.HOURS: Code("RID49481", "RADLEX", "ACR Category 2 Actionable Finding"),
    Urgency.DAYS: Code("RID49482", "RADLEX", "ACR Category 3 Actionable Finding"),
}
_SUMMARY: Final = Code("111017", "DCM", "CAD Processing and Findings Summary")
#: CID 6047 by (something present, everything evaluated, nothing evaluated).
_ALL_WITHOUT: Final = Code("111241", "DCM", "All algorithms succeeded; without findings")
_ALL_WITH: Final = Code("111242", "DCM", "All algorithms succeeded; with findings")
_SOME_WITHOUT: Final = Code("111243", "DCM", "Not all algorithms succeeded; without findings")
_SOME_WITH: Final = Code("111244", "DCM", "Not all algorithms succeeded; with findings")
_NONE: Final = Code("111245", "DCM", "No algorithms succeeded; without findings")


class _Segmented(TypedDict, total=False):
    source_series: SourceSeriesForSegmentation
    source_images: list[SourceImageForSegmentation]


def encode_reports(
    source: Source,
    result: Result,
    context: EncodeContext,
    *,
    series_number: int,
    segs: Mapping[str, Dataset],
    replaces: Sequence[document.Document] = (),
) -> list[tuple[str, Dataset]]:
    """(role, Comprehensive 3D SR) of what ``result`` says: none, one or two.

    Parameters
    ----------
    series_number
        Of the first report; a second one has the next number.
    segs
        Segmentation objects by `Segmentation.role`. A segment without an object or without voxels is reported
        without a region.
    replaces
        Documents of the earlier result: the reports among them become predecessors.

    Raises
    ------
    EncodingError
        A number is not finite, or a segmentation object does not have a segment of the result.
    """
    return _Reports(source, result, context, series_number, segs, replaces).encoded()


class _Reports:
    """The reports of one result while they are written."""

    def __init__(
        self,
        source: Source,
        result: Result,
        context: EncodeContext,
        series_number: int,
        segs: Mapping[str, Dataset],
        replaces: Sequence[document.Document],
    ) -> None:
        self._source, self._result, self._context = source, result, context
        self._series_number, self._segs, self._replaces = series_number, segs, replaces
        self._segments = {one.key: one for segmentation in result.segmentations for one in segmentation.segments}
        self._shown = [
            (segmentation, segment)
            for segmentation in result.segmentations
            if segmentation.role in segs
            for number, segment in enumerate(segmentation.segments, start=1)
            if (segmentation.labels == number).any()
        ]

    def encoded(self) -> list[tuple[str, Dataset]]:
        shown = {segment.key for _, segment in self._shown}
        said: set[int] = set()  # findings that a segment's group states
        groups = [self._volumetric(*one, said) for one in self._shown]
        loose = [value for value in self._result.measurements if value.segment not in shown]
        findings = [one for index, one in enumerate(self._result.findings) if index not in said]
        comments = document.remarks(self._result, self._source, self._context)
        found: list[tuple[str, Dataset]] = []
        if groups:
            segs = [self._segs[one.role] for one in self._result.segmentations if one.role in self._segs]
            evaluations = [*self._evaluations(findings, whole=True), *comments]
            found.append((REPORT, self._report(groups, evaluations, REPORT, "AI report", segs)))
            findings = []
        if loose or findings:
            label = "AI measurements" if groups else "AI report"
            evaluations = [*([] if groups else self._evaluations(findings, whole=False)), *comments]
            values = self._values(findings, loose)
            number = self._series_number + len(found)
            found.append((VALUES, self._report(values, evaluations, VALUES, label, (), number)))
        return found

    def _report(
        self,
        groups: Sequence[document.Group],
        evaluations: Sequence[ContentItem],
        role: str,
        label: str,
        segs: Iterable[Dataset],
        series_number: int | None = None,
    ) -> Dataset:
        return document.report(
            self._source,
            self._context,
            groups,
            evaluations,
            role=role,
            series_number=self._series_number if series_number is None else series_number,
            label=f"{label}, {self._context.algorithm.name}",
            segs=segs,
            replaces=self._replaces,
        )

    def _volumetric(
        self, segmentation: Segmentation, segment: Segment, said: set[int]
    ) -> VolumetricROIMeasurementsAndQualitativeEvaluations:
        """Group of one segment (TID 1411), which refers to the segment; its frames name their planes."""
        uid = tracking_uid(self._context, segmentation.role, segment.key)
        seg = self._segs[segmentation.role]
        # The constructor: from_segmentation fails on a SEG with one segment. The series: naming every plane of every
        # segment again makes a report of hundreds of planes slow to write and to judge.
        reference = ReferencedSegment(
            str(seg.SOPClassUID),
            str(seg.SOPInstanceUID),
            _segment_number(seg, uid, segment),
            **_segmented(at_phase(self._source, segmentation.phase)),
        )
        finding, time = self._finding_of(segment, said), segmentation.time_point
        code, evaluations = content.statement(segment, finding)
        measured = [value for value in self._result.measurements if value.segment == segment.key]
        group = VolumetricROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=TrackingIdentifier(uid, tracking_id(self._context, segmentation.role, segment.key)),
            referenced_segment=reference,
            time_point_context=None if time is None else TimePointContext(time.label, time.type),
            finding_type=code,
            finding_sites=content.sites(segment.site or (finding.site if finding else None)),
            algorithm_id=content.algorithm(self._context),
            measurements=content.numbers(measured, finding),
            qualitative_evaluations=[*evaluations, *content.unmeasured(measured)],
        )
        if finding is not None and finding.reason:
            group[0].ContentSequence.append(content.comment(finding.reason))
        return group

    def _finding_of(self, segment: Segment, said: set[int]) -> Finding | None:
        """The first finding that names ``segment``; others are said for the whole examination."""
        for index, finding in enumerate(self._result.findings):
            if finding.segment == segment.key:
                said.add(index)
                return finding
        return None

    def _values(self, findings: Sequence[Finding], loose: Sequence[Measurement]) -> list[document.Group]:
        """Groups without a region (TID 1501): one per finding, then one per segment or site that was measured."""
        groups: list[document.Group] = []
        left = list(loose)
        for index, finding in enumerate(findings):
            measured = [value for value in left if finding.segment and value.segment == finding.segment]
            left = [value for value in left if value not in measured]
            groups.append(self._finding(index, finding, measured))
        named: dict[str, list[Measurement]] = {}
        for value in left:
            named.setdefault(self._place(value), []).append(value)
        for name, measured in named.items():
            groups.append(
                MeasurementsAndQualitativeEvaluations(
                    tracking_identifier=content.tracking(self._context, name, VALUES, "measured", name),
                    algorithm_id=content.algorithm(self._context),
                    measurements=content.numbers(measured, None),
                    qualitative_evaluations=content.unmeasured(measured),
                    source_images=self._images(),
                )
            )
        return groups

    def _place(self, value: Measurement) -> str:
        if value.segment:
            return self._segments[value.segment].label
        return value.site.code.meaning if value.site else "Whole examination"

    def _finding(self, index: int, finding: Finding, measured: Sequence[Measurement]) -> document.Group:
        segment = self._segments.get(finding.segment)
        site = finding.site or (segment.site if segment else None)
        evaluations = []
        if finding.presence is Presence.ABSENT:
            evaluations.append(QualitativeEvaluation(_ABSENT, finding.code))
        elif finding.presence is Presence.UNDETERMINED:
            evaluations.append(QualitativeEvaluation(finding.code, content.PRESENCE[finding.presence]))
        key = (VALUES, "finding", finding.code.scheme_designator, finding.code.value, str(index))
        group = MeasurementsAndQualitativeEvaluations(
            tracking_identifier=content.tracking(self._context, finding.code.meaning, *key),
            finding_type=finding.code if finding.presence is Presence.PRESENT else None,
            finding_sites=content.sites(site),
            algorithm_id=content.algorithm(self._context),
            measurements=content.numbers(measured, finding),
            qualitative_evaluations=[*evaluations, *content.unmeasured(measured)],
            source_images=self._images(),
        )
        if finding.reason:
            group[0].ContentSequence.append(content.comment(finding.reason))
        return group

    def _images(self) -> list[SourceImageForMeasurementGroup]:
        """Where to look: the key planes, else the middle one; the image library names all that were examined."""
        planes = sorted({key.plane for key in self._result.key_planes}) or [len(self._source.planes) // 2]
        return [
            SourceImageForMeasurementGroup(str(header.SOPClassUID), str(header.SOPInstanceUID), frames)
            for header, frames in content.frames(self._source, planes)
        ]

    def _evaluations(self, findings: Iterable[Finding], *, whole: bool) -> list[CodeContentItem]:
        """Statements on the examination, the summary of all (CID 6047), and how urgent it is (CID 7035).

        ``whole``: no group gives the site, the output and the reason of a statement.
        """
        contains = RelationshipTypeValues.CONTAINS
        items = [content.evaluation(finding, whole=whole) for finding in findings]
        everything = self._result.findings
        if everything:
            items.append(CodeContentItem(_SUMMARY, _summary(everything), contains))
        urgencies = {one.urgency for one in everything if one.presence is Presence.PRESENT}
        for urgency, category in _CATEGORIES.items():
            if urgency in urgencies:
                items.append(CodeContentItem(_URGENCY, category, contains))
                break
        return items


def _segmented(source: Source) -> _Segmented:
    """What was segmented: the series; where it was spread over several, their images."""
    series = {str(header.SeriesInstanceUID) for header in source.headers}
    if len(series) == 1:
        return {"source_series": SourceSeriesForSegmentation(series.pop())}
    images = content.frames(source, range(len(source.planes)))
    return {
        "source_images": [
            SourceImageForSegmentation(str(header.SOPClassUID), str(header.SOPInstanceUID), frames)
            for header, frames in images
        ]
    }


def _segment_number(seg: Dataset, uid: str, segment: Segment) -> int:
    for item in seg.SegmentSequence:
        if item.get("TrackingUID") == uid:
            return int(item.SegmentNumber)
    raise EncodingError(f"segmentation {seg.SOPInstanceUID} does not have the segment '{segment.key}' ({uid})")


def _summary(findings: Sequence[Finding]) -> Code:
    present = any(finding.presence is Presence.PRESENT for finding in findings)
    undetermined = [finding.presence is Presence.UNDETERMINED for finding in findings]
    if all(undetermined):
        return _NONE
    if any(undetermined):
        return _SOME_WITH if present else _SOME_WITHOUT
    return _ALL_WITH if present else _ALL_WITHOUT
