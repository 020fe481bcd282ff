"""The hemorrhage pipeline: what it refuses, what it will not call absent, and that its numbers are the mask's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydicom import dcmread

from dicomnode import pipeline as dn
from dicomnode.volumes.series import load
from models import hemorrhage
from models.hemorrhage import cases
from pipelines import blocks, head
from pipelines.hemorrhage import ANY, HEMORRHAGE, MIDLINE_SHIFT, SUBTYPES, HemorrhageDetection, laterality, thickness_mm
from tests.conftest import EVALUATION_DATA

ORIGINAL = {"Modality": "CT", "ImageType": ("ORIGINAL", "PRIMARY", "AXIAL"), "RescaleType": "HU"}
PIXEL = 2.0
SIZE = (110, 96)
#: Uneven steps along the table [mm], thin below: vertex to base 150 mm.
STEPS = (7.0,) * 10 + (4.0,) * 5 + (5.0,) * 12
TILT = np.deg2rad(15.0)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Many small operations: threads that wait for each other take most of the time on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def grid(steps: tuple[float, ...] = STEPS, tilt: float = TILT) -> tuple[np.ndarray, np.ndarray]:
    """Positions (slice, 3) and orientation (6,) of planes turned by ``tilt`` while the table moves straight."""
    orientation = np.array([1.0, 0.0, 0.0, 0.0, np.cos(tilt), -np.sin(tilt)])
    along = np.concatenate([[0.0], np.cumsum(steps)])
    positions = np.array([-PIXEL * SIZE[1] / 2, -PIXEL * SIZE[0] / 2, 75.0]) - along[:, None] * np.array([0, 0, 1.0])
    return positions, orientation


def points(positions: np.ndarray, orientation: np.ndarray) -> np.ndarray:
    """Patient coordinates of every voxel: (slice, row, column, 3) [mm]."""
    row, column = orientation[:3], orientation[3:]
    r, c = (PIXEL * np.arange(n) for n in SIZE)
    plane = r[:, None, None] * column + c[None, :, None] * row
    return positions[:, None, None] + plane


def ellipsoid(where: np.ndarray, centre: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
    return (((where - np.array(centre)) / np.array(radii)) ** 2).sum(-1) < 1.0


def anatomy(where: np.ndarray, seed: int = 0) -> np.ndarray:
    """A head of ellipsoids in air [HU]: scalp, skull, brain, fluid, noise."""
    hu = np.full(where.shape[:-1], -1000.0, np.float32)
    for radii, value in (((76, 93, 82), 40.0), ((72, 88, 77), 1200.0), ((65, 81, 70), 32.0), ((12, 30, 12), 8.0)):
        hu[ellipsoid(where, (0, 0, 0), radii)] = value
    hu += np.random.default_rng(seed).normal(0.0, 3.0, hu.shape)
    return hu.astype(np.float32)


def series(array: np.ndarray | None = None, **changes: object) -> dn.ImageSeries:
    """A tilted, uneven series of the head, or of ``array``."""
    positions, orientation = changes.pop("grid", None) or grid()  # type: ignore[misc]
    array = anatomy(points(positions, orientation)) if array is None else array
    given = {
        "array": np.ascontiguousarray(array, np.float32),
        "padding": np.zeros(array.shape, bool),
        "units": dn.HU,
        "positions": positions,
        "orientation": orientation,
        "pixel_spacing": (PIXEL, PIXEL),
        "geometry": dn.Geometry.TILTED,
        "geometry_note": "gantry tilt 15 degrees",
        "acquisition": {**ORIGINAL, **changes.pop("acquisition", {})},  # type: ignore[dict-item]
    }
    return dn.ImageSeries(**(given | changes))  # type: ignore[arg-type]


@dataclass
class Fake:
    """A detector that says what it is told to."""

    labels: np.ndarray
    study: dict[str, float]
    note: str = ""
    shift: float | None = None
    cavity: np.ndarray | None = None
    probability: np.ndarray | None = None
    seen: np.ndarray | None = None
    drawn_at: dict[str, float] = field(default_factory=dict)

    package = SimpleNamespace(
        operating_points={
            "triage": dict.fromkeys(("any", *hemorrhage.CLASSES), 0.3),
            "second-read": dict.fromkeys(("any", *hemorrhage.CLASSES), 0.8),
        },
        manifest={"reports_midline_shift": True},
    )

    def detect(self, values, pixel_spacing, positions, orientation, progress):
        self.seen = values
        progress(1.0)
        share = (self.labels > 0).astype(np.float16) * np.float16(0.9)
        return hemorrhage.Detection(
            labels=self.labels,
            probability=share if self.probability is None else self.probability,
            cavity=np.ones(self.labels.shape, bool) if self.cavity is None else self.cavity,
            study=dict.fromkeys(("any", *hemorrhage.CLASSES), 0.01) | self.study,
            slice_any=(self.labels > 0).mean(axis=(1, 2)).astype(np.float32),
            midline_shift_mm=self.shift,
            midline_note="",
            confidence_note=self.note,
            drawn_at=self.drawn_at,
        )


def detection(fake: Fake, **options: object) -> HemorrhageDetection:
    made = HemorrhageDetection(HemorrhageDetection.Options(**options))
    made.detector, made.progress = fake, lambda _phase, _share: None
    return made


HEAD = series()
WHERE = points(HEAD.positions, HEAD.orientation)
CAVITY = ellipsoid(WHERE, (0, 0, 0), (65, 81, 70))
NOTHING = np.zeros(HEAD.array.shape, np.uint8)


def run(given: dn.ImageSeries, fake: Fake | None = None, **options: object) -> dn.Result:
    return detection(fake or Fake(NOTHING[: len(given.array)], {}), **options).run(given)


def of(result: dn.Result, code: dn.Code) -> dn.Finding:
    return next(finding for finding in result.findings if finding.code == code)


# -- not an input


@pytest.mark.parametrize(
    ("acquisition", "reason"),
    [
        ({"Modality": "MR"}, "Modality is MR"),
        ({"ImageType": ("ORIGINAL", "PRIMARY", "LOCALIZER")}, "LOCALIZER"),
        ({"ImageType": ("DERIVED", "SECONDARY", "AXIAL")}, "derived already"),
        ({"ImageType": ("ORIGINAL", "PRIMARY", "AXIAL", "VNC")}, "spectral"),
        ({"SeriesDescription": "Head 5mm [AI denoised, RUO]"}, "denoised already"),
        ({"SeriesDescription": "Head 5mm [AI denoised, RUO, incomplete]"}, "denoised already"),
        ({"ContrastBolusAgent": "Omnipaque 350"}, "ContrastBolusAgent is 'Omnipaque 350'"),
        ({"SeriesDescription": "CTA HEAD 1.0"}, "without contrast"),
        ({"SeriesDescription": "Brain Perfusion 5.0"}, "without contrast"),
        ({"SeriesDescription": "Schaedel mit KM"}, "without contrast"),
        ({"SeriesDescription": "HEAD C+"}, "without contrast"),
        ({"SliceThickness": "25"}, "SliceThickness is 25"),
        ({"MultienergyCTAcquisition": "YES"}, "MultienergyCTAcquisition"),
    ],
)
def test_a_header_that_speaks_of_another_kind_of_series_is_unsuitable(acquisition, reason):
    with pytest.raises(dn.Unsuitable, match=re.escape(reason)):
        run(series(HEAD.array, acquisition=acquisition))


@pytest.mark.parametrize(
    "acquisition",
    [
        {"SeriesDescription": "HEAD W/O CONTRAST 5.0"},
        {"SeriesDescription": "Non-contrast head"},
        {"SeriesDescription": "Schädel nativ"},
        {"SeriesDescription": "Cerebrum 5.0"},
        {"ContrastBolusAgent": "NONE"},
        {"ProtocolName": "Head + CTA carotids"},
        {"BodyPartExamined": "CHEST"},
        {"SeriesDescription": "Brain 5.0 TrueFidelity", "ConvolutionKernel": "Stnd\\DLIR-H"},
        {},
    ],
)
def test_words_that_deny_contrast_and_wrong_body_parts_are_no_reason_to_refuse(acquisition):
    assert of(run(series(HEAD.array, acquisition=acquisition)), ANY).presence is dn.Presence.ABSENT


def body() -> np.ndarray:
    hu = np.where(ellipsoid(WHERE, (0, 0, 0), (90, 100, 400)), 50.0, -1000.0)
    hu[ellipsoid(WHERE, (0, 60, 0), (18, 15, 400))] = 700.0
    hu[ellipsoid(WHERE, (0, 60, 0), (8, 7, 400))] = 30.0
    return hu + np.random.default_rng(0).normal(0.0, 8.0, hu.shape)


def dyed() -> np.ndarray:
    return np.where(ellipsoid(WHERE, (20, 0, 0), (9, 14, 12)), 250.0, HEAD.array)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (body(), "largest closed ring of bone"),
        (np.where(CAVITY, HEAD.array - 900.0, HEAD.array), "largest closed ring of bone"),
        (np.where(CAVITY, HEAD.array + 65.0, HEAD.array), "no brain in the skull"),
        (np.where(CAVITY, HEAD.array - 30.0, HEAD.array), "no brain in the skull"),
        (dyed(), "contrast medium"),
        (np.maximum(HEAD.array, 0.0), "clipped at 0"),
        (HEAD.array - 100.0, "air lies at"),
    ],
)
def test_pixels_decide_what_is_a_plain_head(array, reason):
    with pytest.raises(dn.Unsuitable, match=reason):
        run(series(array, acquisition={"BodyPartExamined": "HEAD", "StudyDescription": "CT HEAD"}))


def test_a_calcified_plexus_is_no_contrast_medium():
    specks = [ellipsoid(WHERE, (side * 22, 20, 0), (4.5, 4.5, 4.5)) for side in (-1, 1)]
    assert of(run(series(np.where(specks[0] | specks[1], 250.0, HEAD.array))), ANY).presence is dn.Presence.ABSENT


def test_sagittal_planes_are_unsuitable():
    with pytest.raises(dn.Unsuitable, match="needs axial slices"):
        run(replace(HEAD, orientation=np.array([0.0, 1.0, 0.0, 0.0, 0.0, -1.0])))


# -- a head that cannot be read: never absent


def clipped() -> np.ndarray:
    """An aneurysm clip that shines."""
    hu = dyed()
    hu[ellipsoid(WHERE, (20, 0, 0), (5, 5, 5))] = 3000.0
    return hu


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (series(HEAD.array, acquisition={"PatientAge": "009Y"}), "children (PatientAge 009Y)"),
        (series(HEAD.array, acquisition={"PatientAge": "011M"}), "children"),
        (series(HEAD.array[:7], grid=(HEAD.positions[:7], HEAD.orientation)), "incomplete: about"),
        (series(HEAD.array[::2], grid=(HEAD.positions[::2], HEAD.orientation)), "mm apart"),
        (series(clipped()), "metal"),
    ],
)
def test_a_head_that_cannot_be_read_is_undetermined_with_its_reason(given, reason):
    result = run(given, Fake(NOTHING, {"any": 0.99}))
    (finding,) = result.findings
    assert (finding.code, finding.presence) == (ANY, dn.Presence.UNDETERMINED)
    assert finding.reason.startswith("not evaluated: ") and reason in finding.reason
    assert not result.segmentations and not result.measurements and result.remarks


def streaked() -> np.ndarray:
    hu = HEAD.array.copy()
    hu[4:12, 50:54] += np.where(CAVITY[4:12, 50:54], -120.0, 0.0)
    hu[4:12, 58:62] += np.where(CAVITY[4:12, 58:62], 75.0, 0.0)
    return hu


def without(first: int, last: int) -> dn.ImageSeries:
    """The tilted stack with planes missing, as the node describes it."""
    kept = [index for index in range(len(HEAD.array)) if not first <= index < last]
    return series(HEAD.array[kept], grid=(HEAD.positions[kept], HEAD.orientation))


def trepanned(width: float) -> np.ndarray:
    """A head without the bone of its left side, ``width`` wide [mm], from above the ears upwards."""
    hole = (np.abs(WHERE[..., 1]) < width / 2) & (np.abs(WHERE[..., 2] - 25.0) < width / 2) & (WHERE[..., 0] > 0)
    return np.where(hole & (HEAD.array > 300.0), 40.0, HEAD.array)


GRAIN = np.random.default_rng(3).normal(0.0, 1.0, HEAD.array.shape).astype(np.float32)


@pytest.mark.parametrize(
    ("given", "fake", "reason"),
    [
        (series(streaked()), Fake(NOTHING, {}), "limited quality: streaks, metal or air"),
        (series(HEAD.array, incomplete=True), Fake(NOTHING, {}), "slices are missing"),
        (series(HEAD.array, geometry=dn.Geometry.GAPS, geometry_note="1 of 28"), Fake(NOTHING, {}), "missing: 1 of 28"),
        (HEAD, Fake(NOTHING, {}, note="the brain's median is 12 HU"), "median is 12 HU"),
        (without(8, 13), Fake(NOTHING[5:], {}), "mm between planes 8 and 9"),
        (without(13, 28), Fake(NOTHING[15:], {}), "of the intracranial cavity lies within the series"),
        (series(HEAD.array + GRAIN * 40.0), Fake(NOTHING, {}), "limited quality: noise of"),
        (series(trepanned(70.0)), Fake(NOTHING, {}), "the vault is open in"),
    ],
)
def test_with_limited_quality_nothing_is_called_absent(given, fake, reason):
    result = run(given, fake)
    assert {finding.presence for finding in result.findings} == {dn.Presence.UNDETERMINED}
    assert all(reason in finding.reason for finding in result.findings)


def test_a_burr_hole_hides_nothing():
    assert of(run(series(trepanned(12.0)), Fake(NOTHING, {"any": 0.02})), ANY).presence is dn.Presence.ABSENT


def test_blood_seen_in_spite_of_limited_quality_is_said():
    result = run(series(HEAD.array, incomplete=True), Fake(bleed(), {"any": 0.9, "intraparenchymal": 0.9}))
    assert of(result, ANY).presence is dn.Presence.PRESENT
    assert "slices are missing" in of(result, ANY).reason


def test_a_detector_that_finds_no_brain_evaluates_nothing():
    fake = Fake(NOTHING, {"any": 0.0}, note="no head found", cavity=np.zeros(NOTHING.shape, bool))
    (finding,) = run(HEAD, fake).findings
    assert finding.presence is dn.Presence.UNDETERMINED
    assert "no head found" in finding.reason


# -- what is said of a head that was read


def bleed(radius: float = 15.0, centre: tuple[float, ...] = (30.0, 0.0, 10.0)) -> np.ndarray:
    return np.where(ellipsoid(WHERE, centre, (radius,) * 3), np.uint8(4), np.uint8(0))


POSITIVE = Fake(bleed(), {"any": 0.95, "intraparenchymal": 0.9}, shift=4.26)


def test_a_negative_says_absent_of_every_type_with_its_score():
    result = run(HEAD, Fake(NOTHING, {"any": 0.02}))
    assert [finding.presence for finding in result.findings] == [dn.Presence.ABSENT] * 6
    assert of(result, ANY).probability == 0.02
    assert not any(finding.calibrated or finding.urgency for finding in result.findings)
    assert not result.segmentations and not result.measurements and not result.key_planes
    assert any("Not flagged does not mean no hemorrhage" in remark for remark in result.remarks)
    assert any("age is not in the images" in remark for remark in result.remarks)
    aged = run(series(HEAD.array, acquisition={"PatientAge": "061Y"}), Fake(NOTHING, {"any": 0.02}))
    assert not any("age is not in the images" in remark for remark in aged.remarks)


def test_a_positive_is_urgent_and_outlined():
    result = run(HEAD, POSITIVE)
    finding = of(result, ANY)
    assert (finding.presence, finding.urgency) == (dn.Presence.PRESENT, dn.Urgency.MINUTES)
    (segmentation,) = result.segmentations
    (segment,) = segmentation.segments
    assert (segment.key, segment.type) == ("intraparenchymal", HEMORRHAGE)
    assert set(np.unique(segmentation.labels)) == {0, 1}
    assert (segmentation.labels > 0).sum() == (POSITIVE.labels == 4).sum()
    (score,) = result.parametric_maps
    assert score.values.shape == HEAD.array.shape and score.values.dtype == np.float32
    assert score.values[segmentation.labels > 0].min() > score.values[segmentation.labels == 0].max() >= 0.0
    assert result.window == (40.0, 80.0)


def test_the_volume_of_a_sphere_is_right_on_uneven_tilted_planes():
    result = run(HEAD, POSITIVE)
    (volume,) = [m for m in result.measurements if m.unit == dn.ML]
    truth = 4.0 / 3.0 * np.pi * 1.5**3
    shell = 4.0 * np.pi * 1.5**2 * 0.2  # a voxel's width round it
    assert abs(volume.value - truth) < shell
    assert volume.interval[0] <= volume.value <= volume.interval[1]


def test_the_interval_of_a_volume_comes_from_the_probabilities():
    fuzzy = np.exp(-((np.linalg.norm(WHERE - np.array([30.0, 0.0, 10.0]), axis=-1) / 18.0) ** 4)).astype(np.float16)
    labels = np.where(fuzzy > 0.5, np.uint8(4), np.uint8(0))
    (volume, *_) = run(HEAD, replace(POSITIVE, labels=labels, probability=fuzzy)).measurements
    low, high = volume.interval
    assert low < 0.9 * volume.value < volume.value < high


def test_the_interval_lies_around_an_outline_that_is_drawn_early():
    fuzzy = np.exp(-((np.linalg.norm(WHERE - np.array([30.0, 0.0, 10.0]), axis=-1) / 18.0) ** 4)).astype(np.float16)
    for drawn_at in (0.05, 0.3, 0.5):
        fake = replace(POSITIVE, labels=np.where(fuzzy > drawn_at, np.uint8(4), np.uint8(0)), probability=fuzzy)
        (volume, *_) = run(HEAD, replace(fake, drawn_at={"intraparenchymal": drawn_at})).measurements
        low, high = volume.interval
        assert low < 0.98 * volume.value and high > 1.02 * volume.value, drawn_at


def test_every_outlined_type_has_key_plane_volume_and_a_colour_of_its_own():
    labels = bleed()
    labels[ellipsoid(WHERE, (-62, 0, 0), (9, 40, 25)) & CAVITY] = 2
    result = run(HEAD, Fake(labels, {"any": 0.9, "intraparenchymal": 0.9, "subdural": 0.9}))
    keys = {segment.key for segment in result.segmentations[0].segments}
    assert keys == {"subdural", "intraparenchymal"}
    assert {m.segment for m in result.measurements} == keys
    assert {key for plane in result.key_planes for key in plane.segments} == keys
    for plane in result.key_planes:
        for key in plane.segments:
            value = [s.key for s in result.segmentations[0].segments].index(key) + 1
            areas = (result.segmentations[0].labels == value).sum(axis=(1, 2))
            assert areas[plane.plane] == areas.max()
    assert len({segment.colour for segment in result.segmentations[0].segments}) == 2
    assert result.segmentations[0].labels.max() == len(result.segmentations[0].segments)


def test_ventricular_blood_is_hemorrhage_at_the_ventricles():
    labels = np.where(ellipsoid(WHERE, (0, 0, 0), (12, 30, 12)), np.uint8(5), np.uint8(0))
    result = run(HEAD, Fake(labels, {"any": 0.9, "intraventricular": 0.9}))
    finding = of(result, HEMORRHAGE)
    assert finding.site is not None and finding.site.code.value == "35764002"
    assert "23276006" not in str(result.findings)


def test_an_outlined_type_below_its_threshold_is_undetermined_and_a_type_that_is_neither_is_absent():
    labels = bleed()
    labels[ellipsoid(WHERE, (-40, 0, 0), (8, 8, 8))] = 3
    result = run(HEAD, Fake(labels, {"any": 0.9, "intraparenchymal": 0.9, "subarachnoid": 0.1}))
    by_segment = {finding.segment: finding for finding in result.findings if finding.segment}
    assert by_segment["subarachnoid"].presence is dn.Presence.UNDETERMINED
    assert "uncertain" in by_segment["subarachnoid"].reason
    absent = [finding for finding in result.findings if finding.presence is dn.Presence.ABSENT]
    assert len(absent) == 3


def test_a_type_that_is_scored_but_not_outlined_is_undetermined():
    result = run(HEAD, Fake(bleed(), {"any": 0.9, "intraparenchymal": 0.9, "epidural": 0.5}))
    finding = of(result, SUBTYPES["epidural"][1])
    assert finding.presence is dn.Presence.UNDETERMINED and "no voxels outlined" in finding.reason
    assert finding.urgency is None


def test_flagged_without_an_outline_is_said_and_shows_the_highest_plane():
    result = run(HEAD, Fake(NOTHING, {"any": 0.9}))
    assert "no voxels outlined" in of(result, ANY).reason
    assert not result.segmentations and len(result.key_planes) == 1


def test_what_is_outlined_below_the_operating_point_is_shown_and_never_called_absent():
    result = run(HEAD, Fake(bleed(), {"any": 0.1}))
    for finding in (of(result, ANY), of(result, SUBTYPES["intraparenchymal"][1])):
        assert finding.presence is dn.Presence.UNDETERMINED and finding.urgency is None
        assert "mL outlined, but the head was scored below the operating point" in finding.reason
    assert result.segmentations and result.key_planes
    assert not [finding for finding in result.findings if finding.presence is not dn.Presence.UNDETERMINED]


def test_a_speck_below_the_operating_point_is_noted_and_not_spoken_of():
    result = run(HEAD, Fake(bleed(4.0), {"any": 0.1}))
    assert {finding.presence for finding in result.findings} == {dn.Presence.ABSENT}
    assert 0.0 < result.quality["outlined_ml"] < 1.0 and not result.segmentations


def test_a_type_over_the_operating_point_keeps_the_head_from_being_called_clear():
    result = run(HEAD, Fake(NOTHING, {"any": 0.29, "intraparenchymal": 0.95}))
    for finding in (of(result, ANY), of(result, SUBTYPES["intraparenchymal"][1])):
        assert finding.presence is dn.Presence.UNDETERMINED and "scored as intraparenchymal" in finding.reason


def test_the_operating_point_is_the_rule_s_choice():
    fake = replace(POSITIVE, study={"any": 0.5, "intraparenchymal": 0.5})
    assert of(run(HEAD, fake, operating_point="triage"), ANY).presence is dn.Presence.PRESENT
    assert of(run(HEAD, fake, operating_point="second-read"), ANY).presence is dn.Presence.UNDETERMINED
    speck = replace(fake, labels=bleed(4.0))
    assert of(run(HEAD, speck, operating_point="second-read"), ANY).presence is dn.Presence.ABSENT
    with pytest.raises(ValueError, match="operating_point must be"):
        HemorrhageDetection.Options(operating_point="always")


def test_midline_shift_is_reported_only_where_it_could_be_measured():
    (shift,) = [m for m in run(HEAD, POSITIVE).measurements if m.name == MIDLINE_SHIFT]
    assert (shift.value, shift.unit) == (4.3, dn.MM)
    assert not [m for m in run(HEAD, replace(POSITIVE, shift=None)).measurements if m.name == MIDLINE_SHIFT]


def test_a_package_whose_midline_shift_missed_its_bar_reports_none():
    poor = replace(POSITIVE)
    poor.package = SimpleNamespace(operating_points=POSITIVE.package.operating_points, manifest={})
    assert not [m for m in run(HEAD, poor).measurements if m.name == MIDLINE_SHIFT]


@pytest.mark.parametrize(("x", "side"), [(40.0, "7771000"), (-40.0, "24028007")])
def test_the_side_is_the_patient_s(x, side):
    result = run(HEAD, replace(POSITIVE, labels=bleed(12.0, (x, 0.0, 0.0)), cavity=CAVITY))
    segment = result.segmentations[0].segments[0]
    assert segment.site.laterality.value == side
    finding = next(f for f in result.findings if f.segment)
    assert finding.site.laterality == segment.site.laterality


def test_a_mirrored_stack_keeps_the_patient_s_side():
    columns = HEAD.positions + np.array([PIXEL * (SIZE[1] - 1), 0.0, 0.0])
    orientation = HEAD.orientation * np.array([-1.0, 1, 1, 1, 1, 1])
    turned = replace(HEAD, positions=columns, orientation=orientation)
    mask, cavity = (np.ascontiguousarray(a[:, :, ::-1]) for a in (bleed(12.0, (40.0, 0, 0)) > 0, CAVITY))
    found = laterality(turned, cavity, mask, np.ones(len(mask)))
    assert found is not None and found.value == "7771000"


def test_both_sides_and_the_middle():
    both = (bleed(12.0, (40.0, 0, 0)) | bleed(12.0, (-40.0, 0, 0))) > 0
    assert laterality(HEAD, CAVITY, both, np.ones(len(both))).value == "51440002"
    skewed = (bleed(14.0, (40.0, 0, 0)) | bleed(8.0, (-40.0, 0, 0))) > 0
    assert laterality(HEAD, CAVITY, skewed, np.ones(len(both))) is None


def rolled(degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """Points of a head lying turned on the table, in its own coordinates, and its cavity."""
    turn = np.deg2rad(degrees)
    matrix = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    own = WHERE @ matrix
    return own, ellipsoid(own, (0, 0, 0), (65, 81, 70))


@pytest.mark.parametrize("degrees", [-30.0, -20.0, 0.0, 15.0, 25.0, 30.0])
def test_the_side_of_a_rolled_head_is_the_head_s(degrees):
    own, cavity = rolled(degrees)
    frontal = ellipsoid(own, (-12, -60, 0), (6, 8, 10))  # right of the falx, far in front
    assert laterality(HEAD, cavity, frontal, np.ones(len(cavity))).value == "24028007"


def test_blood_in_the_falx_has_no_side():
    assert laterality(HEAD, CAVITY, ellipsoid(WHERE, (1, -30, 0), (3, 20, 20)), np.ones(len(CAVITY))) is None


def test_thickness_of_a_crescent_is_across_and_not_along():
    y, x = np.mgrid[-60:60, -60:60] * 0.5
    ring = (np.hypot(x, y) < 28.0) & (np.hypot(x, y) > 20.0) & (x > 0)
    assert thickness_mm(ring, (0.5, 0.5)) == pytest.approx(8.0, abs=0.6)
    result = run(HEAD, Fake(np.where(ellipsoid(WHERE, (-62, 0, 0), (9, 40, 25)) & CAVITY, np.uint8(2), NOTHING),
                            {"any": 0.9, "subdural": 0.9}))  # fmt: skip
    (across,) = [m for m in result.measurements if m.unit == dn.MM]
    assert 4.0 < across.value < 18.0


# -- what the network is given


def test_a_sharp_kernel_is_softened_and_said():
    noisy = HEAD.array + np.random.default_rng(1).normal(0.0, 18.0, HEAD.array.shape).astype(np.float32)
    fake = Fake(NOTHING, {})
    result = run(series(noisy, acquisition={"ConvolutionKernel": "H70h"}), fake)
    inner = ellipsoid(WHERE, (0, 45, 0), (30, 20, 30))
    assert fake.seen[inner].std() < 0.6 * noisy[inner].std()
    assert any("sharp kernel: smoothed by" in note for note in result.notes)
    soft = Fake(NOTHING, {})
    run(HEAD, soft)
    assert np.array_equal(soft.seen, HEAD.array)


def test_padding_becomes_air_for_the_network():
    padding = np.zeros(HEAD.array.shape, bool)
    padding[:, :4] = True
    fake = Fake(NOTHING, {})
    run(series(np.where(padding, -2000.0, HEAD.array), padding=padding), fake)
    assert (fake.seen[padding] == -1000.0).all()


def test_weights_of_planes_add_up_to_the_height():
    weights = blocks.plane_weights_mm(HEAD)
    along = HEAD.slice_positions
    assert weights.sum() == pytest.approx(along[-1] + (along[1] + along[-1] - along[-2]) / 2.0)
    assert weights[0] == pytest.approx(7.0 * np.cos(TILT))


@pytest.mark.parametrize(
    ("age", "years"), [("045Y", 45.0), ("006M", 0.5), ("", None), ("Y", None), ("12", None), ("010D", 10 / 365.25)]
)
def test_ages_are_read_in_every_unit(age, years):
    found = blocks.age_years(series(HEAD.array, acquisition={"PatientAge": age}))
    assert found == pytest.approx(years) if years is not None else found is None


@pytest.mark.parametrize(
    ("kernels", "sharp"),
    [
        (("BONE", "BONEPLUS", "H70h", "Hr68", "YA", "FC30", "FC81"), True),
        (("STD+", "SOFT", "H31s", "Hr38f", "UB", "FC21"), False),
    ],
)
def test_sharp_kernels_are_known_by_name(kernels, sharp):
    for kernel in kernels:
        assert blocks.is_sharp(series(HEAD.array, acquisition={"ConvolutionKernel": kernel})) is sharp, kernel


def test_coverage_is_estimated_from_what_is_cut_off():
    heights = np.linspace(-70.0, 70.0, 29)
    areas = np.maximum(0.0, 160.0 * (1.0 - (heights / 72.0) ** 2))
    weights = np.full(len(heights), 5.0)
    assert head.covered(areas, weights) > 0.98
    assert head.covered(areas[:15], weights[:15]) == pytest.approx(0.5, abs=0.05)
    assert head.covered(areas[:10], weights[:10]) < 0.4


# -- real series, where they are at hand


def real(name: str, tmp_path) -> dn.ImageSeries:
    path = cases.find(EVALUATION_DATA, name)
    if path is None:
        pytest.skip("no evaluation data")
    files = []
    for index, content in enumerate(cases.members(path)):
        files.append(tmp_path / f"{index}.dcm")
        dataset = dcmread(BytesIO(content), force=True)
        for keyword in ("SOPInstanceUID", "SOPClassUID"):  # blanked by who de-identified the abdomen
            if not dataset.get(keyword):
                setattr(dataset, keyword, dataset.file_meta[f"MediaStorage{keyword}"].value)
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID"):
            if not dataset.get(keyword):
                setattr(dataset, keyword, "1.2.3")
        dataset.save_as(files[-1])
    return load(files).images


def test_the_real_head_passes_the_gate_with_its_tilt_and_uneven_steps(tmp_path):
    given = real("ct-head-ge", tmp_path)
    seen = head.require_head(given)
    assert 1300.0 < seen.volume_ml(seen.inside) < 1700.0
    assert seen.coverage > 0.95
    assert seen.limits == () and seen.notes == ()
    assert seen.weights_mm[3] == pytest.approx(7.0, abs=0.01) and seen.weights_mm[-3] == pytest.approx(4.0, abs=0.01)


@pytest.mark.parametrize("name", ["std-brain-5mm", "ct-body-siemens"])
def test_phantom_and_abdomen_are_no_heads(name, tmp_path):
    given = real(name, tmp_path)
    with pytest.raises(dn.Unsuitable, match=r"no head|no brain|contrast"):
        run(given, Fake(np.zeros(given.array.shape, np.uint8), {"any": 0.99}))
