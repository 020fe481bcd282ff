"""What a reader of the reports finds, positive, negative and undetermined, and that nothing is silently left out."""

from __future__ import annotations

import dataclasses
import io
from types import SimpleNamespace

import pydicom
import pytest
from highdicom.sr import srread
from pydicom.sr.coding import Code

from dicomnode import pipeline as dn
from dicomnode.encode.report import encode_reports
from dicomnode.encode.seg import encode_segmentation
from dicomnode.encode.tracking import tracking_uid
from dicomnode.errors import EncodingError
from dicomnode.volumes.series import load
from tests import factories, phantoms, reports

SHIFT = Code("shift", "99TEST", "Midline shift")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return load(factories.write_series(tmp_path_factory.mktemp("ct"), factories.ct_series(6)))


def encoded(source, result, context=None, **options):
    context = context or phantoms.context()
    segs = options.pop("segs", None)
    segs = reports.segmentations(source, result, context) if segs is None else segs
    return dict(encode_reports(source, result, context, series_number=9050, segs=segs, **options))


def items(ds, path=()):
    """(path of concept meanings, item) of the whole tree."""
    for item in ds.get("ContentSequence") or ():
        name = item.ConceptNameCodeSequence[0].CodeMeaning
        yield (*path, name), item
        yield from items(item, (*path, name))


def groups(ds):
    (container,) = (i for i in ds.ContentSequence if i.ConceptNameCodeSequence[0].CodeValue == "126010")
    return list(container.ContentSequence)


def qualitative(ds):
    """Name -> value of the root's Qualitative Evaluations."""
    (container,) = (i for i in ds.ContentSequence if i.ConceptNameCodeSequence[0].CodeValue == "C0034375")
    return {
        i.ConceptNameCodeSequence[0].CodeMeaning: i.ConceptCodeSequence[0].CodeMeaning
        for i in container.ContentSequence
        if i.ValueType == "CODE"
    }


def comments(ds):
    return [item.TextValue for path, item in items(ds) if path[-1] == "Comment"]


def numbers(group):
    """Name -> (value, unit) of a group's own NUMs."""
    return {
        i.ConceptNameCodeSequence[0].CodeMeaning: (
            float(i.MeasuredValueSequence[0].NumericValue),
            i.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue,
        )
        for i in group.ContentSequence
        if i.ValueType == "NUM"
    }


def coded(group):
    return {
        i.ConceptNameCodeSequence[0].CodeMeaning: i.ConceptCodeSequence[0].CodeMeaning
        for i in group.ContentSequence
        if i.ValueType == "CODE"
    }


def test_positive_result_is_one_report_on_its_segments(source):
    found = encoded(source, phantoms.bleeding(source.images))
    assert list(found) == ["report"]
    ds = found["report"]
    first, second = groups(ds)
    assert {g.ContentTemplateSequence[0].TemplateIdentifier for g in (first, second)} == {"1411"}
    assert numbers(first) == {"Volume": (1.5, "ml"), "AI score, not calibrated": (0.95, "1")}
    assert numbers(second) == {"Volume": (3.0, "ml"), "AI score, not calibrated": (0.71, "1")}
    assert coded(first)["Finding"] == "Cerebral hemorrhage"
    assert qualitative(ds) == {
        "Intracranial hemorrhage": "Present",
        "CAD Processing and Findings Summary": "All algorithms succeeded; with findings",
        "Actionable finding category": "ACR Category 1 Actionable Finding",
    }


def test_group_refers_to_its_segment_and_to_the_source_series(source):
    result, context = phantoms.bleeding(source.images), phantoms.context()
    segs = reports.segmentations(source, result, context)
    group = groups(encoded(source, result)["report"])[1]
    (segment,) = (i for i in group.ContentSequence if i.ConceptNameCodeSequence[0].CodeValue == "121191")
    assert segment.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == segs["segmentation"].SOPInstanceUID
    assert segment.ReferencedSOPSequence[0].ReferencedSegmentNumber == 2
    uids = [i.UID for i in group.ContentSequence if i.ValueType == "UIDREF"]
    tracking = tracking_uid(context, "segmentation", phantoms.SDH.key)
    assert uids == [tracking, source.headers[0].SeriesInstanceUID]


def test_site_has_its_laterality(source):
    group = groups(encoded(source, phantoms.bleeding(source.images))["report"])[0]
    found = {path: item.ConceptCodeSequence[0].CodeMeaning for path, item in items(group) if item.ValueType == "CODE"}
    assert found["Finding Site",] == "Brain"
    assert found["Finding Site", "Laterality"] == "Left"


def test_interval_is_distances_from_the_value_in_its_unit(source):
    group = groups(encoded(source, phantoms.bleeding(source.images))["report"])[0]
    (volume,) = (i for i in group.ContentSequence if i.ConceptNameCodeSequence[0].CodeMeaning == "Volume")
    assert numbers(volume) == {
        "+, range of upper measurement uncertainty": (0.4, "ml"),
        "-, range of lower measurement uncertainty": (0.3, "ml"),
    }


def test_negative_result_says_absent_and_shows_what_was_looked_at(source):
    found = encoded(source, phantoms.not_bleeding(source.images))
    assert list(found) == ["values"]
    (group,) = groups(found["values"])
    assert group.ContentTemplateSequence[0].TemplateIdentifier == "1501"
    assert coded(group)["Clinical finding absent"] == "Intracranial hemorrhage"
    assert "Finding" not in coded(group)
    assert numbers(group) == {"AI score, not calibrated": (0.02, "1")}
    images = [i for i in group.ContentSequence if i.ValueType == "IMAGE"]
    assert [i.ConceptNameCodeSequence[0].CodeValue for i in images] == ["121112"]
    assert qualitative(found["values"])["Intracranial hemorrhage"] == "Absent"
    summary = qualitative(found["values"])["CAD Processing and Findings Summary"]
    assert summary == "All algorithms succeeded; without findings"
    assert "Actionable finding category" not in qualitative(found["values"])


def test_undetermined_result_is_neither_present_nor_absent_and_says_why(source):
    ds = encoded(source, phantoms.not_evaluated(source.images))["values"]
    (group,) = groups(ds)
    assert coded(group)["Intracranial hemorrhage"] == "Undetermined"
    assert {"Finding", "Clinical finding absent"}.isdisjoint(coded(group))
    assert "streaks of metal in 9 of 28 planes" in comments(ds)
    summary = qualitative(ds)["CAD Processing and Findings Summary"]
    assert summary == "No algorithms succeeded; without findings"


@pytest.mark.parametrize(
    ("presences", "summary"),
    [
        (("absent", "undetermined"), "Not all algorithms succeeded; without findings"),
        (("present", "undetermined"), "Not all algorithms succeeded; with findings"),
        (("present", "absent"), "All algorithms succeeded; with findings"),
    ],
)
def test_summary_says_what_was_not_evaluated(source, presences, summary):
    findings = tuple(dn.Finding(code=phantoms.HEMORRHAGE, presence=dn.Presence(one)) for one in presences)
    ds = encoded(source, dn.Result(findings=findings))["values"]
    assert qualitative(ds)["CAD Processing and Findings Summary"] == summary
    assert len({path_item[1].UID for path_item in items(ds) if path_item[0][-1] == "Tracking Unique Identifier"}) == 2


def test_calibrated_output_is_a_probability(source):
    finding = dn.Finding(code=phantoms.HEMORRHAGE, presence=dn.Presence.ABSENT, probability=0.02, calibrated=True)
    (group,) = groups(encoded(source, dn.Result(findings=(finding,)))["values"])
    assert numbers(group) == {"Probability": (0.02, "1")}


def test_the_most_urgent_of_what_is_present_counts(source):
    present, absent = dn.Presence.PRESENT, dn.Presence.ABSENT
    findings = (
        dn.Finding(code=phantoms.HEMORRHAGE, presence=present, urgency=dn.Urgency.DAYS),
        dn.Finding(code=phantoms.SDH.finding, presence=present, urgency=dn.Urgency.HOURS),
        dn.Finding(code=phantoms.IPH.finding, presence=absent, urgency=dn.Urgency.MINUTES),
    )
    ds = encoded(source, dn.Result(findings=findings))["values"]
    assert qualitative(ds)["Actionable finding category"] == "ACR Category 2 Actionable Finding"


def test_measurement_of_the_examination_beside_segments_goes_into_a_second_report(source):
    shift = dn.Measurement(name=SHIFT, value=4.2, unit=dn.MM, interval=(3, 5))
    result = phantoms.bleeding(source.images)
    found = encoded(source, dataclasses.replace(result, measurements=(*result.measurements, shift)))
    assert list(found) == ["report", "values"]
    templates = [{g.ContentTemplateSequence[0].TemplateIdentifier for g in groups(ds)} for ds in found.values()]
    assert templates == [{"1411"}, {"1501"}]
    assert numbers(groups(found["values"])[0]) == {"Midline shift": (4.2, "mm")}
    assert [int(ds.SeriesNumber) for ds in found.values()] == [9050, 9051]
    assert len({ds.SeriesInstanceUID for ds in found.values()}) == 2
    assert found["values"].SeriesDescription == "AI measurements, ct-denoising, RUO"
    assert qualitative(found["values"]) == {}  # said once, in the first


def test_values_are_grouped_by_site(source):
    left, right = (
        dn.Site(code=Code("87878005", "SCT", "Left ventricle")),
        dn.Site(code=Code("53085002", "SCT", "Right ventricle")),
    )
    fraction = Code("10230-1", "LN", "Ejection Fraction")
    percent = Code("%", "UCUM", "percent")
    measurements = tuple(
        dn.Measurement(name=fraction, value=value, unit=percent, site=site) for value, site in ((61, left), (55, right))
    )
    found = groups(encoded(source, dn.Result(measurements=measurements))["values"])
    assert [numbers(group) for group in found] == [{"Ejection Fraction": (61, "%")}, {"Ejection Fraction": (55, "%")}]
    assert [group.ContentSequence[0].TextValue for group in found] == ["Left ventricle", "Right ventricle"]


def test_value_that_could_not_be_measured_says_why(source):
    why = Code("114007", "DCM", "Measurement not attempted")
    result = dn.Result(measurements=(dn.Measurement(name=SHIFT, value=None, unit=dn.MM, qualifier=why),))
    (group,) = groups(encoded(source, result)["values"])
    assert numbers(group) == {}
    assert coded(group)["Midline shift"] == "Measurement not attempted"


def test_segment_without_voxels_keeps_its_values_and_its_absence(source):
    result = phantoms.bleeding(source.images)
    labels = result.segmentations[0].labels.copy()
    labels[labels == 2] = 0
    segmentation = dataclasses.replace(result.segmentations[0], labels=labels)
    absent = dataclasses.replace(result.findings[2], presence=dn.Presence.ABSENT, probability=0.1)
    volume = dataclasses.replace(result.measurements[1], value=0.0)
    result = dataclasses.replace(
        result,
        segmentations=(segmentation,),
        findings=(*result.findings[:2], absent),
        measurements=(result.measurements[0], volume),
    )
    found = encoded(source, result)
    assert len(groups(found["report"])) == 1
    assert qualitative(found["report"])["Subdural hemorrhage"] == "Absent"
    (group,) = groups(found["values"])
    assert group.ContentSequence[0].TextValue == "Subdural hemorrhage"
    assert numbers(group) == {"Volume": (0.0, "ml")}


def test_without_segmentation_objects_the_same_is_said_without_regions(source):
    found = encoded(source, phantoms.bleeding(source.images), segs={})
    assert list(found) == ["values"]
    assert [coded(group).get("Finding") for group in groups(found["values"])] == [
        "Intracranial hemorrhage",
        "Cerebral hemorrhage",
        "Subdural hemorrhage",
    ]
    assert numbers(groups(found["values"])[1])["Volume"] == (1.5, "ml")


def test_segment_that_its_finding_calls_absent_is_not_reported_as_found(source):
    result = phantoms.bleeding(source.images)
    findings = (*result.findings[:2], dataclasses.replace(result.findings[2], presence=dn.Presence.UNDETERMINED))
    group = groups(encoded(source, dataclasses.replace(result, findings=findings))["report"])[1]
    assert "Finding" not in coded(group)
    assert coded(group)["Subdural hemorrhage"] == "Undetermined"


def test_remarks_and_research_use_are_on_every_report(source):
    shift = dn.Measurement(name=SHIFT, value=4.2, unit=dn.MM)
    result = phantoms.bleeding(source.images)
    result = dataclasses.replace(result, measurements=(*result.measurements, shift), notes=("for the job's record",))
    for ds in encoded(source, result).values():
        assert any(text.startswith("Research use only") for text in comments(ds))
        assert result.remarks[0] in comments(ds)
        assert "for the job's record" not in str(ds)
        assert ds.ContentQualification == "RESEARCH"


def test_algorithm_is_named_with_version_and_weights(source):
    ds = encoded(source, phantoms.not_bleeding(source.images))["values"]
    found = {path[-1]: item.TextValue for path, item in items(ds) if item.ValueType == "TEXT"}
    assert found["Algorithm Name"] == "ct-denoising"
    assert found["Algorithm Version"] == "1.0.0"
    assert found["Algorithm Parameters"] == f"weights sha256 {'b2' * 32}"


def test_flags_and_evidence(source):
    result, context = phantoms.bleeding(source.images), phantoms.context()
    segs = reports.segmentations(source, result, context)
    ds = encoded(source, result, context, segs=segs)["report"]
    assert (ds.CompletionFlag, ds.VerificationFlag, ds.PreliminaryFlag) == ("COMPLETE", "UNVERIFIED", "PRELIMINARY")
    (study,) = ds.CurrentRequestedProcedureEvidenceSequence
    named = {
        one.ReferencedSOPInstanceUID
        for series in study.ReferencedSeriesSequence
        for one in series.ReferencedSOPSequence
    }
    assert named == {h.SOPInstanceUID for h in source.headers} | {segs["segmentation"].SOPInstanceUID}
    assert "PertinentOtherEvidenceSequence" not in ds


def test_incomplete_input_makes_a_partial_document(source):
    ds = encoded(source, phantoms.not_bleeding(source.images), phantoms.context(incomplete=True))["values"]
    assert ds.CompletionFlag == "PARTIAL"
    assert any("missing" in text for text in comments(ds))
    assert ds.SeriesDescription.endswith(", RUO, incomplete")


def test_revision_names_the_reports_it_replaces(source):
    context = phantoms.context(revision=2, predecessor="1.2.3")
    replaces = [
        ("1.2", "1.2.3", "1.2.840.10008.5.1.4.1.1.88.34", "1.2.3.1"),
        ("1.2", "1.2.4", "1.2.840.10008.5.1.4.1.1.88.59", "1.2.4.1"),  # key objects: no SR document
        ("1.2", "1.2.5", "1.2.840.10008.5.1.4.1.1.66.4", "1.2.5.1"),
    ]
    ds = encoded(source, phantoms.not_bleeding(source.images), context, replaces=replaces)["values"]
    (study,) = ds.PredecessorDocumentsSequence
    (series,) = study.ReferencedSeriesSequence
    assert (study.StudyInstanceUID, series.SeriesInstanceUID) == ("1.2", "1.2.3")
    assert [one.ReferencedSOPInstanceUID for one in series.ReferencedSOPSequence] == ["1.2.3.1"]
    assert any("result number 2" in text for text in comments(ds))
    assert "PredecessorDocumentsSequence" not in encoded(source, phantoms.not_bleeding(source.images))["values"]


def test_order_is_repeated(tmp_path):
    request = pydicom.Dataset()
    request.RequestedProcedureID, request.ScheduledProcedureStepID = "RP1", "SPS1"
    series = factories.ct_series(3, values={"RequestAttributesSequence": pydicom.Sequence([request])})
    source = load(factories.write_series(tmp_path, series))
    ds = encoded(source, phantoms.not_bleeding(source.images))["values"]
    assert [one.RequestedProcedureID for one in ds.ReferencedRequestSequence] == ["RP1"]


def test_equal_jobs_give_equal_bytes(source):
    def written():
        found = []
        for ds in encoded(source, phantoms.bleeding(source.images)).values():
            buffer = io.BytesIO()
            ds.save_as(buffer, enforce_file_format=True)
            found.append(buffer.getvalue())
        return found

    assert written() == written()
    other = encoded(source, phantoms.bleeding(source.images), phantoms.context(job_key="c3" * 32))["report"]
    assert other.SOPInstanceUID != encoded(source, phantoms.bleeding(source.images))["report"].SOPInstanceUID


def test_enhanced_source_is_named_with_its_frame(tmp_path):
    source = load(factories.write_series(tmp_path, [factories.enhanced_ct(5)]))
    (group,) = groups(encoded(source, phantoms.not_bleeding(source.images))["values"])
    (image,) = (i for i in group.ContentSequence if i.ValueType == "IMAGE")
    assert image.ReferencedSOPSequence[0].ReferencedFrameNumber == source.planes[2].frame
    assert len(groups(encoded(source, phantoms.bleeding(source.images))["report"])) == 2


def test_report_on_a_label_map_refers_to_its_segments(source):
    result, context = phantoms.bleeding(source.images), phantoms.context(variant="labelmap")
    (segmentation,) = result.segmentations
    seg = encode_segmentation(source, segmentation, context, series_number=9025, labelmap=True)
    ds = encoded(source, result, context, segs={segmentation.role: seg})["report"]
    referenced = [
        i.ReferencedSOPSequence[0]
        for group in groups(ds)
        for i in group.ContentSequence
        if i.ConceptNameCodeSequence[0].CodeValue == "121191"
    ]
    assert [one.ReferencedSegmentNumber for one in referenced] == [1, 2]
    assert {one.ReferencedSOPInstanceUID for one in referenced} == {seg.SOPInstanceUID}
    assert ds.SOPInstanceUID != encoded(source, result)["report"].SOPInstanceUID


def test_highdicom_reads_the_report(tmp_path, source):
    ds = encoded(source, phantoms.bleeding(source.images))["report"]
    ds.save_as(tmp_path / "sr.dcm", enforce_file_format=True)
    found = srread(tmp_path / "sr.dcm").content.get_volumetric_roi_measurement_groups()
    assert [group.get_measurements()[0].value for group in found] == [1.5, 3.0]


def test_other_modalities_are_refused(source):
    first = pydicom.Dataset()
    first.update(source.headers[0])
    first.Modality = "US"
    other = SimpleNamespace(headers=[first, *source.headers[1:]], images=source.images, planes=source.planes)
    with pytest.raises(EncodingError, match="CID 100"):
        encoded(other, phantoms.not_bleeding(source.images), segs={})


def test_segmentation_object_without_the_segment_is_refused(source):
    result = phantoms.bleeding(source.images)
    segs = reports.segmentations(source, result, phantoms.context(job_key="d4" * 32))
    with pytest.raises(EncodingError, match="intraparenchymal"):
        encoded(source, result, segs=segs)


def test_nothing_to_say_gives_nothing(source):
    assert encoded(source, phantoms.identity(source.images)) == {}


def test_number_that_is_not_finite_is_refused(source):
    result = dn.Result(measurements=(dn.Measurement(name=SHIFT, value=float("nan"), unit=dn.MM),))
    with pytest.raises(EncodingError, match="Midline shift"):
        encoded(source, result)
