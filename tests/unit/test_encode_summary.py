"""The summary page: valid everywhere, the same every time, nothing over anything else, and nobody's name on it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pydicom.uid import SecondaryCaptureImageStorage

from dicomnode import pipeline as dn
from dicomnode.encode import page, planes, sheet
from dicomnode.encode.gate import check_objects
from dicomnode.encode.summary import encode_summary
from dicomnode.errors import EncodingError
from dicomnode.volumes.series import load
from tests import factories, phantoms
from tests.conftest import REPOSITORY, missing_peer


def loaded(folder, series=None):
    return load(factories.write_series(folder, series or factories.ct_series(8, rows=32, columns=32)))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return loaded(tmp_path_factory.mktemp("source"))


def encode(source, result, **changes):
    return encode_summary(source, result, phantoms.context(**changes), series_number=9040)


def pixels(ds):
    return np.frombuffer(ds.PixelData, np.uint8).reshape(ds.Rows, ds.Columns, 3)


class Seen:
    """What was written where, instead of on the page."""

    def __init__(self, monkeypatch):
        self.texts, self.boxes, self.pictures = [], [], []
        real = sheet.Sheet.text, sheet.Sheet.picture

        def text(this, x, y, text, size, *, bold=False, align="left", outlined=False, **rest):
            width = this.measure(text, size, bold=bold)
            left = x - {"left": 0, "center": width / 2, "right": width}[align]
            self.texts.append((text, outlined))
            if text and not outlined:
                self.boxes.append((text, left, y - 0.75 * size, left + width, y + 0.2 * size))
            return real[0](this, x, y, text, size, bold=bold, align=align, outlined=outlined, **rest)

        def picture(this, x, y, width, height):
            self.pictures.append(("(picture)", x, y, x + width, y + height))
            return real[1](this, x, y, width, height)

        monkeypatch.setattr(sheet.Sheet, "text", text)
        monkeypatch.setattr(sheet.Sheet, "picture", picture)

    @property
    def words(self):
        return " ".join(text for text, _ in self.texts)

    def overlaps(self):
        found = []
        for a, b in combinations([*self.boxes, *self.pictures], 2):
            if a[1] < b[3] - 0.5 and b[1] < a[3] - 0.5 and a[2] < b[4] - 0.5 and b[2] < a[4] - 0.5:
                found.append((a, b))
        return found


@pytest.fixture
def seen(monkeypatch):
    return Seen(monkeypatch)


# -- the object


CASES = {
    "positive": phantoms.bleeding,
    "negative": phantoms.not_bleeding,
    "undetermined": phantoms.not_evaluated,
}


@pytest.mark.parametrize("case", CASES)
def test_a_page_is_a_secondary_capture_that_the_gate_lets_pass(source, case):
    result = CASES[case](source.images)
    ds = encode(source, result)
    check_objects([ds], source, result)
    assert ds.SOPClassUID == SecondaryCaptureImageStorage
    assert list(ds.ImageType) == ["DERIVED", "SECONDARY"]
    assert (ds.BurnedInAnnotation, ds.ConversionType, ds.ContentQualification) == ("NO", "WSD", "RESEARCH")
    assert ds.SeriesDescription == "AI summary, RUO" and "Research use only" in ds.ImageComments
    assert pixels(ds).shape == (960, 1280, 3)


def test_a_page_refers_to_the_planes_it_shows(source):
    ds = encode(source, phantoms.bleeding(source.images))
    shown = [item.ReferencedSOPInstanceUID for item in ds.SourceImageSequence]
    assert shown == [source.headers[4].SOPInstanceUID, source.headers[3].SOPInstanceUID]
    assert all(item.PurposeOfReferenceCodeSequence[0].CodeValue == "121322" for item in ds.SourceImageSequence)


def test_frames_of_an_enhanced_instance_are_named(tmp_path):
    source = loaded(tmp_path, [factories.enhanced_ct(6)])
    ds = encode(source, phantoms.bleeding(source.images))
    assert [int(item.ReferencedFrameNumber) for item in ds.SourceImageSequence] == [
        source.planes[3].frame,
        source.planes[2].frame,
    ]


def test_images_alone_make_no_page(source):
    assert encode(source, phantoms.identity(source.images)) is None


def test_a_key_plane_that_does_not_exist_is_refused(source):
    result = replace(phantoms.bleeding(source.images), key_planes=(dn.KeyPlane(plane=8, reason=""),))
    with pytest.raises(EncodingError, match="key plane 8"):
        encode(source, result)


def test_once_lossy_always_lossy(tmp_path):
    source = loaded(tmp_path, factories.ct_series(3, values={"LossyImageCompression": "01"}))
    assert encode(source, phantoms.bleeding(source.images)).LossyImageCompression == "01"


def test_the_same_input_gives_the_same_pixels_whatever_the_machine_prefers(source, tmp_path):
    import matplotlib as mpl

    result = phantoms.bleeding(source.images)
    first = encode(source, result)
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "lines.antialiased": False, "text.color": "red"}):
        second = encode(source, result)
    assert first.PixelData == second.PixelData
    assert first == second
    assert encode(source, phantoms.not_bleeding(source.images)).PixelData != first.PixelData


# -- validators

SOURCES = {
    "ct": lambda: factories.ct_series(5),
    "ct japanese": lambda: factories.ct_series(3, charset="\\ISO 2022 IR 87"),
    "ct without body part": lambda: factories.ct_series(
        3, missing=["BodyPartExamined", "SeriesDescription", "ProtocolName", "StudyDescription"]
    ),
    "ct with an issuer": lambda: factories.ct_series(3, values={"IssuerOfPatientID": "HOSPITAL"}),
    "ct lossy": lambda: factories.ct_series(3, values={"LossyImageCompression": "01"}),
    "mr": lambda: factories.mr_series(4),
    "enhanced ct": lambda: [factories.enhanced_ct(5)],
}


@pytest.mark.parametrize("case", SOURCES)
def test_a_page_is_valid_and_agrees_with_its_source(tmp_path, case):
    if shutil.which("dciodvfy") is None:
        missing_peer("dciodvfy (Debian package dicom3tools)")
    sources = factories.write_series(tmp_path / "source", SOURCES[case]())
    source = load(sources)
    ds = encode(source, phantoms.bleeding(source.images))
    path = tmp_path / "page.dcm"
    ds.save_as(path, enforce_file_format=True)
    run = subprocess.run(["dciodvfy", path], capture_output=True, check=False, timeout=60)
    assert [line for line in run.stderr.decode().splitlines() if line.startswith("Error")] == []
    run = subprocess.run(["dcentvfy", *sources, path], capture_output=True, check=False, timeout=60)
    lines = run.stderr.decode(errors="replace").splitlines()
    if case == "ct japanese":  # dcentvfy compares bytes, and the same name has others in Unicode
        lines = [line for line in lines if "Element=<PatientName>" not in line]
    assert [line for line in lines if line.startswith("Error")] == []


# -- what stands on it


def test_nothing_of_the_patient_or_the_order_is_drawn(tmp_path, seen):
    secret = {
        "PatientID": "SECRET-1", "AccessionNumber": "SECRET-2", "StudyID": "SECRET-3", "PatientBirthDate": "19510203",
        "StudyDescription": "SECRET-4", "SeriesDescription": "SECRET-5", "InstitutionName": "SECRET-6",
        "ReferringPhysicianName": "SECRET^7", "StudyDate": "20250607",
    }  # fmt: skip
    source = loaded(tmp_path, factories.ct_series(4, values=secret))
    ds = encode(source, phantoms.bleeding(source.images))
    assert ds.PatientID == "SECRET-1", "it stands in the header"
    family = str(source.headers[0].PatientName).partition("^")[0]
    for word in ("SECRET", "1951", "2025", family, str(ds.StudyInstanceUID)):
        assert word not in seen.words


def test_presence_is_said_in_words_and_signs_and_uncalibrated_outputs_are_scores(source, seen):
    result = phantoms.bleeding(source.images)
    calibrated = replace(result.findings[2], calibrated=True, presence=dn.Presence.ABSENT)
    encode(source, replace(result, findings=(*result.findings[:2], calibrated)))
    assert "RESEARCH USE ONLY" in seen.words
    for said in (
        "Intracranial hemorrhage",
        "Present",
        "Absent",
        "score 0.97",
        "probability 71 %",
        "1.50 mL",
        "ct-denois",
    ):
        assert said in seen.words, said
    assert "[1.20 – 1.90]" in seen.words and "Trained on computer-generated heads" in seen.words


def test_what_is_present_is_never_among_the_findings_left_out(source, seen):
    absent = dn.Finding(code=phantoms.HEMORRHAGE, presence=dn.Presence.ABSENT)
    unclear = dn.Finding(code=dn.Code("1", "99X", "Unclear"), presence=dn.Presence.UNDETERMINED)
    found = dn.Finding(code=dn.Code("2", "99X", "Fracture"), presence=dn.Presence.PRESENT)
    urgent = replace(found, code=dn.Code("3", "99X", "Dissection"), urgency=dn.Urgency.MINUTES)
    encode(source, dn.Result(findings=(*[absent] * 9, unclear, found, urgent)))
    order = [seen.words.index(word) for word in ("Dissection", "Fracture", "Unclear", "Intracranial")]
    assert order == sorted(order) and "4 more in the report" in seen.words


def test_an_incomplete_input_and_a_revision_are_named(source, seen):
    encode(source, phantoms.bleeding(source.images), incomplete=True, revision=2)
    assert "INPUT INCOMPLETE" in seen.words and "revision 2" in seen.words


def test_outlines_have_the_colours_of_their_segments(source):
    outlined = pixels(encode(source, phantoms.bleeding(source.images))).reshape(-1, 3).astype(int)
    for segment in (phantoms.IPH, phantoms.SDH):
        near = np.abs(outlined - segment.colour).max(axis=1) < 12
        assert near.sum() > 100, segment.key


def test_the_window_of_the_result_decides_the_greys(source):
    dark, bright = (
        pixels(encode(source, replace(phantoms.not_bleeding(source.images), window=(center, 80.0)))).mean()
        for center in (200.0, -200.0)
    )
    assert bright > dark + 20


def test_inverse_images_are_shown_as_viewers_show_them(tmp_path):
    """MONOCHROME1: the least value is white (PS3.3 C.7.6.3.1.2); padding stays black."""
    made = factories.ct_series(4, rows=32, columns=32, padding=-2000)
    straight = loaded(tmp_path / "straight", made)
    for ds in made:
        ds.PhotometricInterpretation = "MONOCHROME1"
    inverse = loaded(tmp_path / "inverse", made)
    shown = []
    for source in (straight, inverse):
        axes = Figure().add_subplot()
        planes.Planes(None, source, phantoms.bleeding(source.images)).plane(axes, dn.KeyPlane(plane=1, reason=""))
        shown.append(np.asarray(axes.images[0].get_array()))
    padding = straight.images.padding[1]
    assert padding.any() and np.ptp(shown[0][~padding]) > 0.5
    np.testing.assert_allclose(shown[1][~padding], 1 - shown[0][~padding], atol=1e-6)
    assert (shown[0][padding] == 0).all() and (shown[1][padding] == 0).all()


def test_control_characters_and_unknown_scripts_are_boxes_not_failures(source, seen):
    result = replace(phantoms.bleeding(source.images), remarks=("Größe µ ≥ 3 α 山田 $x_1$ \n\t\x00 ende",))
    encode(source, result)
    assert sheet.drawable("µα≥$\x00山") == "µα≥$\u25a1"


@pytest.mark.parametrize(
    ("orientation", "wanted"),
    [
        (factories.AXIAL, ("R", "L", "A", "P")),
        (factories.SAGITTAL, ("A", "P", "H", "F")),
        (factories.CORONAL, ("R", "L", "H", "F")),
        ((-1, 0, 0, 0, 1, 0), ("L", "R", "A", "P")),
        ((0.866, 0.5, 0, -0.5, 0.866, 0), ("RA", "LP", "AL", "PR")),
        ((0.9962, 0.0872, 0, -0.0872, 0.9962, 0), ("R", "L", "A", "P")),
    ],
)
def test_orientation_letters(orientation, wanted):
    assert planes.edges(np.asarray(orientation, float)) == wanted


def test_a_plane_is_named_as_viewers_number_it(source):
    header = source.headers[4]
    said = planes.where(source, 4)
    assert said.startswith(f"Image {header.InstanceNumber} (5 of 8)")
    assert f"{abs(float(header.ImagePositionPatient[2])):.1f} mm" in said


# -- layout


def crowd(images, n_planes, n_findings, n_measurements, words, n_remarks):
    base = phantoms.bleeding(images)
    name = " ".join(["hemorrhage"] * words)
    findings = tuple(
        dn.Finding(
            code=dn.Code(str(i), "99X", f"{name} {i}"), presence=list(dn.Presence)[i % 3], probability=0.5,
            site=phantoms.BRAIN, urgency=dn.Urgency.MINUTES, reason=f"because {name}",
        )
        for i in range(n_findings)
    )  # fmt: skip
    measurements = tuple(
        dn.Measurement(
            name=dn.Code("118565006", "SCT", name.capitalize()), value=10.0 ** (i % 9 - 4), unit=dn.ML,
            segment=("", "subdural")[i % 2], interval=(0.1, 10.0 ** (i % 8)),
        )
        for i in range(n_measurements)
    )  # fmt: skip
    keys = tuple(dn.KeyPlane(plane=i, reason=f"extent of {name}") for i in range(n_planes))
    remarks = (f"Remark on {name}, at length. " * words,) * n_remarks
    return replace(base, findings=findings, measurements=measurements, key_planes=keys, remarks=remarks)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 8), st.integers(1, 10), st.integers(0, 20), st.sampled_from([1, 2, 5, 12]), st.integers(0, 6))
def test_nothing_lies_over_anything_else_and_nothing_leaves_the_page(
    source, monkeypatch, n_planes, n_findings, n_measurements, words, n_remarks
):
    with monkeypatch.context() as patch:
        seen = Seen(patch)
        result = crowd(source.images, n_planes, n_findings, n_measurements, words, n_remarks)
        page.draw(source, result, phantoms.context(incomplete=True, revision=12))
    assert seen.overlaps() == []
    for text, left, top, right, bottom in [*seen.boxes, *seen.pictures]:
        assert left >= 0 and right <= 1280 and top >= 0 and bottom <= 960, text


@pytest.mark.parametrize("shape", [(24, 96), (96, 24)])
def test_wide_and_tall_planes_stay_in_their_place(tmp_path, seen, shape):
    source = loaded(tmp_path, factories.ct_series(4, rows=shape[0], columns=shape[1]))
    encode(source, phantoms.bleeding(source.images))
    assert seen.overlaps() == []
    for _, left, top, right, bottom in seen.pictures:
        assert (right - left) / (bottom - top) == pytest.approx(shape[1] / shape[0], rel=0.02)


@pytest.mark.parametrize("text", ["Intracranial hemorrhage", "WAVA To. fi ffl", "1.50 mL [1.20 – 1.90]", "µ≥αβγ"])
@pytest.mark.parametrize("bold", [False, True])
def test_lines_are_no_wider_than_measured(text, bold):
    with sheet.defaults():
        paper = sheet.Sheet()
        for size in (10.0, 13.5, 28.0):
            paper.text(0, 100, text, size, bold=bold)
            drawn = paper._figure.texts[-1].get_window_extent(FigureCanvasAgg(paper._figure).get_renderer())
            assert drawn.width <= paper.measure(text, size, bold=bold) + 1.5


# -- who pays for it


@pytest.mark.parametrize("module", ["dicomnode.receive", "dicomnode.receive.receiver", "dicomnode.node"])
def test_only_who_draws_loads_matplotlib(module):
    code = f"import sys, {module}; print('matplotlib' in sys.modules)"
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, env=env)
    assert done.stdout.strip() == "False", done.stderr
