"""Siemens raw data to MRD: real files of five scanners, and lines made up for what those lack."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ismrmrd.xsd
import numpy as np
import pytest

from dicomnode.errors import UnreadableRawData
from dicomnode.kspace import Calibration, Flag, KSpace, Trajectory
from dicomnode.volumes import mrd, twix, twix_header
from tests.conftest import EVALUATION_DATA
from tests.raw_scans import images_of

SIEMENS, PULSEQ = EVALUATION_DATA / "mr-twix-siemens", EVALUATION_DATA / "mr-twix-pulseq"
pytest.importorskip("twixtools")


def converted(folder: Path, source: Path, **options: Any) -> tuple[KSpace, tuple[str, ...], bytes]:
    if not source.is_file():
        pytest.skip(f"evaluation data {source.parent.name} is not beside the checkout")
    target = folder / "scan.h5"
    notes = twix.convert(source, target, **options)
    return mrd.open_mrd(target), notes, mrd.xml_of(target)


def image_of(kspace: KSpace) -> np.ndarray:
    (first, *_) = images_of(kspace).values()
    return first[0]


def body(image: np.ndarray) -> np.ndarray:
    return image > 0.3 * np.percentile(image, 98)


def test_a_gradient_echo_is_the_phantom_in_its_place(tmp_path):
    kspace, notes, xml = converted(tmp_path, SIEMENS / "gre.dat")
    encoding = kspace.header.encodings[0]
    assert (encoding.encoded_matrix, encoding.recon_matrix) == ((320, 160, 1), (160, 160, 1))
    assert (encoding.encoded_fov, encoding.recon_fov) == ((400.0, 200.0, 4.0), (200.0, 200.0, 4.0))
    assert encoding.trajectory is Trajectory.CARTESIAN and encoding.calibration is Calibration.NONE
    assert kspace.header.sequence == {"TR": (10.0,), "TE": (3.0,), "flipAngle_deg": (15.0,)}
    assert kspace.header.acquisition["PatientPosition"] == "HFS" and kspace.header.coils == 2
    assert kspace.header.acquisition["MagneticFieldStrength"] == pytest.approx(2.89362)
    assert notes == () and mrd.identity_of(xml).keys() == {"FrameOfReferenceUID"}, "the name is crossed out"
    first = next(iter(kspace.readouts))
    assert first.position == pytest.approx((-2.58970, 53.92243, -53.99947), abs=1e-4)
    axes = np.array([first.read_dir, first.phase_dir, first.slice_dir])
    assert np.abs(axes @ axes.T - np.eye(3)).max() < 1e-6 and np.linalg.det(axes) > 0.999, "a right-handed frame"
    assert abs(axes[2] @ [0.0, 0.0383878, 0.9992630]) > 0.99999, "along the protocol's normal"
    assert first.dwell_time == pytest.approx(11.6) and first.center_sample == 160
    image = image_of(kspace)
    mask = body(image)
    # The ACR-like phantom: 190 mm across, with dark inserts in it.
    assert 0.65 < mask.sum() * 1.25**2 / (np.pi * 95**2) < 1.0
    assert image[np.ix_(range(50, 60), range(60, 100))].mean() < 0.5 * np.median(image[mask])
    # Its air lies on top of the water, whose level is a straight edge: anterior, as HFS and the directions say.
    rows = np.flatnonzero(mask.sum(1) > 8)
    first_chord, last_chord = (np.ptp(np.flatnonzero(mask[row])) for row in (rows[0] + 1, rows[-1] - 1))
    assert first.phase_dir[1] < -0.99 and last_chord > 1.5 * first_chord, "rows run towards anterior"


def test_the_schemas_own_reader_takes_the_header(tmp_path):
    for name in ("gre.dat", "epi.dat"):
        _, _, xml = converted(tmp_path, SIEMENS / name)
        header = ismrmrd.xsd.CreateFromDocument(xml)
        assert header.encoding[0].reconSpace.matrixSize.y in (80, 160)


def test_repetitions_are_counted(tmp_path):
    kspace, _, _ = converted(tmp_path, SIEMENS / "gre_bodycoil.dat")
    images = images_of(kspace)
    assert [key[3] for key in images] == [0, 1]
    first, second = (volume[0] for volume in images.values())
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.95 and not np.array_equal(first, second)


def test_an_asymmetric_echo_says_where_its_centre_is(tmp_path):
    kspace, _, _ = converted(tmp_path, SIEMENS / "singlechannel_7t_localizer.dat")
    readout = next(iter(kspace.readouts))
    assert kspace.header.encodings[0].encoded_matrix == (512, 256, 1)
    assert readout.data.shape == (1, 428) and readout.center_sample == 172
    assert kspace.header.acquisition["MagneticFieldStrength"] == pytest.approx(6.980936)
    assert roundness(image_of(kspace)) == pytest.approx(1.0, abs=0.02)


def roundness(image: np.ndarray) -> float:
    """Ratio of the extents of the body along x and y."""
    mask = body(image)
    return float(np.ptp(np.flatnonzero(mask.any(0))) / np.ptp(np.flatnonzero(mask.any(1))))


def test_echo_planar_lines_keep_their_direction_and_their_navigators(tmp_path):
    kspace, _, _ = converted(tmp_path, SIEMENS / "epi.dat")
    encoding, lines = kspace.header.encodings[0], list(kspace.readouts)
    assert encoding.trajectory is Trajectory.EPI
    assert encoding.parameters["flatTopTime"] == 240.0 and encoding.parameters["rampUpTime"] == 160.0
    assert encoding.parameters["acqDelayTime"] == 32.0 and encoding.parameters["numSamples"] == 160.0
    navigators = [line for line in lines if line.has(Flag.IS_PHASECORR_DATA)]
    assert [line.has(Flag.IS_REVERSE) for line in navigators] == [True, False, True]
    assert not any(line.has(Flag.IS_RTFEEDBACK_DATA) for line in navigators), "they would be dropped with the feedback"
    image = [line for line in lines if not line.has(Flag.IS_PHASECORR_DATA)]
    assert len(image) == 80 and sum(line.has(Flag.IS_REVERSE) for line in image) == 40
    assert image[-1].has(Flag.LAST_IN_SLICE) and image[-1].has(Flag.LAST_IN_MEASUREMENT)
    forward, backward = (np.abs(line.data).sum(0) for line in sorted(image, key=lambda line: abs(line.step_1 - 40))[:2])
    straight = np.corrcoef(forward, backward)[0, 1]
    assert np.corrcoef(forward, backward[::-1])[0, 1] > straight, "the lines stay as they were read"


def test_a_pulseq_sequence_must_be_told_how_k_space_was_travelled(tmp_path):
    source = PULSEQ / "2024-02-06-160052.dat"
    with pytest.raises(UnreadableRawData, match="--trajectory cartesian"):
        converted(tmp_path, source)
    assert list(tmp_path.iterdir()) == []
    kspace, notes, xml = converted(tmp_path, source, trajectory="cartesian")
    assert kspace.header.encodings[0].recon_matrix == (128, 128, 1), "nothing is cropped that nobody said was more"
    assert any("Pulseq" in note for note in notes)
    assert next(iter(kspace.readouts)).read_dir == (0.0, 0.0, 0.0), "its axes are not in the file"
    assert mrd.identity_of(xml)["PatientName"] == "ISMRM^DS-Test"
    image = image_of(kspace)
    assert roundness(image) == pytest.approx(1.08, abs=0.08), "a sphere, less the air above the water"
    trusted, _, _ = converted(tmp_path, source, trajectory="cartesian", trust_axes=True)
    assert np.linalg.norm(next(iter(trusted.readouts)).read_dir) == pytest.approx(1.0)


def test_a_pulseq_train_without_flags_alternates_when_told_so(tmp_path):
    kspace, notes, _ = converted(tmp_path, PULSEQ / "04_03_basic_epi_96x96_pe+.dat", trajectory="epi")
    lines = list(kspace.readouts)
    assert [line.has(Flag.IS_REVERSE) for line in lines[:4]] == [False, True, False, True]
    assert any("every other one" in note for note in notes)


def test_what_is_no_twix_file_is_refused(tmp_path):
    (tmp_path / "no.dat").write_bytes(b"\0" * 5000)
    with pytest.raises(UnreadableRawData, match="no Siemens raw data"):
        twix.convert(tmp_path / "no.dat", tmp_path / "out.h5")
    assert not (tmp_path / "out.h5").exists()


def test_a_file_that_ends_early_is_refused_or_keeps_what_it_has(tmp_path):
    source = SIEMENS / "gre.dat"
    if not source.is_file():
        pytest.skip("evaluation data mr-twix-siemens is not beside the checkout")
    whole = source.read_bytes()
    for part in (0.05, 0.3, 0.9):
        cut = tmp_path / f"{part}.dat"
        cut.write_bytes(whole[: int(len(whole) * part)])
        try:
            twix.convert(cut, tmp_path / f"{part}.h5")
        except UnreadableRawData as error:
            assert cut.name in str(error)
        else:
            assert 0 < len(list(mrd.open_mrd(tmp_path / f"{part}.h5").readouts)) < 160


def test_without_its_reader_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "twixtools", None)
    with pytest.raises(twix.TwixUnavailable, match=r"pip install 'dicomnode\[twix\]'"):
        twix.convert(tmp_path / "any.dat", tmp_path / "out.h5")


# -- what the real files lack: parallel imaging, partitions, averages, oversampled phases, noise


def line(flags: tuple[str, ...] = ("ONLINE",), samples: int = 8, channels: int = 2, **counters: int) -> Any:
    names = {"Lin": 0, "Par": 0, "Ave": 0, "Sli": 0, "Eco": 0, "Phs": 0, "Rep": 0, "Set": 0, "Seg": 0}
    mdh = SimpleNamespace(
        Counter=SimpleNamespace(**(names | counters)), SamplesInScan=samples, UsedChannels=channels, MeasUID=1,
        TimeStamp=1, PMUTimeStamp=2, CenterCol=samples // 2, CenterLin=4, CenterPar=2,
        SliceData=SimpleNamespace(SlicePos=SimpleNamespace(Sag=1.0, Cor=2.0, Tra=3.0), Quaternion=(1.0, 0.0, 0.0, 0.0)),
    )  # fmt: skip
    data = np.arange(channels * samples, dtype=np.complex64).reshape(channels, samples)
    return SimpleNamespace(mdh=mdh, data=data, get_active_flags=lambda: list(flags))


def protocol(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "sKSpace": {"lBaseResolution": 4, "lPhaseEncodingLines": 6, "lPartitions": 4, "lImagesPerSlab": 3,
                    "ucDimension": 4, "ucTrajectory": 1, "dPhaseOversamplingForDialog": 0.5},
        "sSliceArray": {"asSlice": [{"dReadoutFOV": 200.0, "dPhaseFOV": 200.0, "dThickness": 30.0}]},
        "sPat": {"lAccelFactPE": 2, "lAccelFact3D": 1, "ucRefScanMode": 4, "lRefLinesPE": 2},
        "alTR": [10000], "alTE": [3000, 5000, 9000], "alTI": [900000], "adFlipAngleDegree": [15.0],
        "tSequenceFileName": "%SiemensSeq%\\gre", "sRXSPEC": {"alDwellTime": [5000, 6000]},
        "sPrepPulses": {"ucInversion": "0x2"},
    }  # fmt: skip
    return values | changes


def made(monkeypatch: pytest.MonkeyPatch, scans: list[list[Any]], **changes: Any) -> Any:
    header = {
        "MeasYaps": protocol(**changes),
        "Dicom": {"flReadoutOSFactor": 2.0, "lFrequency": 63_000_000},
        "Meas": {},
    }
    reader = SimpleNamespace(read_twix=lambda *_args, **_more: [{"mdb": mdbs, "hdr": header} for mdbs in scans])
    monkeypatch.setitem(sys.modules, "twixtools", reader)


def test_calibration_partitions_averages_echoes_and_noise(tmp_path, monkeypatch):
    noise = [line(("NOISEADJSCAN", "ONLINE"), samples=16) for _ in range(3)]
    other = [line(("NOISEADJSCAN", "ONLINE"), channels=5)]
    scan = [line(("PATREFSCAN", "ONLINE"), Lin=2), line(("PATREFANDIMASCAN", "ONLINE"), Lin=4)]
    scan += [
        line(Lin=lin, Par=par, Ave=ave, Eco=eco) for lin in (0, 2) for par in (0, 3) for ave in (0, 1) for eco in (0, 1)
    ]
    scan += [line(("RTFEEDBACK",)), line(("ACQEND",)), line(("SYNCDATA",))]
    made(monkeypatch, [noise + other, scan])
    notes = twix.convert(Path("made.dat"), tmp_path / "scan.h5")
    kspace = mrd.open_mrd(tmp_path / "scan.h5")
    encoding, lines = kspace.header.encodings[0], list(kspace.readouts)
    assert encoding.encoded_matrix == (8, 6, 4) and encoding.recon_matrix == (4, 4, 3)
    assert encoding.encoded_fov == pytest.approx((400.0, 300.0, 40.0)) and encoding.recon_fov == (200.0, 200.0, 30.0)
    assert encoding.acceleration == (2, 1) and encoding.calibration is Calibration.SEPARATE
    assert (encoding.limits["kspace_encoding_step_1"].center, encoding.limits["kspace_encoding_step_2"].center) == (
        4,
        2,
    )
    assert encoding.limits["contrast"].count == 2 and encoding.limits["average"].count == 2
    assert kspace.header.sequence == {"TR": (10.0,), "TE": (3.0, 5.0), "TI": (900.0,), "flipAngle_deg": (15.0,)}
    counted = [
        sum(one.has(flag) for one in lines) for flag in (Flag.IS_NOISE_MEASUREMENT, Flag.IS_PARALLEL_CALIBRATION)
    ]
    assert counted == [3, 1] and sum(one.has(Flag.IS_PARALLEL_CALIBRATION_AND_IMAGING) for one in lines) == 1
    assert sum(one.has(Flag.IS_RTFEEDBACK_DATA) for one in lines) == 1 and len(lines) == 3 + 2 + 16 + 1
    assert {one.dwell_time for one in lines if one.contrast == 1} == {6.0}
    assert any("3 noise lines" in note for note in notes)
    assert any("patient" in note for note in notes), "nobody said how the patient lay"


def test_bipolar_echoes_are_no_echo_planar_train(tmp_path, monkeypatch):
    scan = [line(("ONLINE", "REFLECT") if eco else ("ONLINE",), Lin=lin, Eco=eco) for lin in range(6) for eco in (0, 1)]
    made(monkeypatch, [scan])
    twix.convert(Path("made.dat"), tmp_path / "scan.h5")
    kspace = mrd.open_mrd(tmp_path / "scan.h5")
    assert kspace.header.encodings[0].trajectory is Trajectory.CARTESIAN
    assert {(one.contrast, one.has(Flag.IS_REVERSE)) for one in kspace.readouts} == {(0, False), (1, True)}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sKSpace": {"ucTrajectory": 2, "lBaseResolution": 4}}, "not acquired along parallel lines"),
        ({"sSliceArray": {"asSlice": [{}]}}, "no field of view"),
    ],
)
def test_what_no_grid_can_hold_is_refused(tmp_path, monkeypatch, changes, said):
    made(monkeypatch, [[line(Lin=n) for n in range(6)]], **changes)
    with pytest.raises(UnreadableRawData, match=said):
        twix.convert(Path("made.dat"), tmp_path / "scan.h5")


def test_lines_of_different_lengths_are_refused(tmp_path, monkeypatch):
    made(monkeypatch, [[line(Lin=0), line(Lin=1, samples=10)]])
    with pytest.raises(UnreadableRawData, match="different numbers"):
        twix.convert(Path("made.dat"), tmp_path / "scan.h5")


def test_multiband_is_stated(tmp_path, monkeypatch):
    made(monkeypatch, [[line(Lin=n) for n in range(6)]], sSliceAcceleration={"lMultiBandFactor": 3})
    twix.convert(Path("made.dat"), tmp_path / "scan.h5")
    assert mrd.open_mrd(tmp_path / "scan.h5").header.encodings[0].multiband == 3


def test_directions_of_a_turned_slice_are_orthonormal():
    half = np.radians(30.0) / 2
    turned = line()
    turned.mdh.SliceData.Quaternion = (np.cos(half), 0.0, np.sin(half), 0.0)
    read, phase, through = twix.directions(twix._line(turned))
    frame = np.array([read, phase, through])
    assert np.abs(frame @ frame.T - np.eye(3)).max() < 1e-6 and np.linalg.det(frame) == pytest.approx(1.0)
    turned.mdh.SliceData.Quaternion = (0.0, 0.0, 0.0, 0.0)
    assert not np.any(twix.directions(twix._line(turned))), "no orientation is no guess"
    assert twix_header._number("0x10") == 16.0
