"""MRD files and headers: what is read, and what is refused by name."""

from __future__ import annotations

import contextlib

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicomnode.errors import MissingAttribute, SeriesError, UnreadableRawData
from dicomnode.kspace import Calibration, Flag, Limit, Trajectory
from dicomnode.volumes import mrd
from tests.mrd_factory import Scan, acquisition

SUBJECT = (
    "<subjectInformation><patientName>Doe^Jane</patientName><patientWeight_kg>61.5</patientWeight_kg>"
    "<patientID>4711</patientID><patientBirthdate>1970-02-03</patientBirthdate><patientGender>F</patientGender>"
    "</subjectInformation><studyInformation><studyDate>2026-01-05</studyDate><studyTime>10:20:30.5</studyTime>"
    "<studyID>7</studyID><accessionNumber>815</accessionNumber><studyInstanceUID>1.2.3</studyInstanceUID>"
    "</studyInformation>"
)


@pytest.fixture
def scan():
    return Scan(slices=2, contrasts=2, acceleration=2, acs=8, noise_lines=2)


def test_the_header_is_what_was_measured(scan):
    header, wanted = mrd.header_of(scan.xml()), scan.header()
    assert header.encodings[0] == wanted.encodings[0]
    assert header.sequence == wanted.sequence and header.coils == wanted.coils
    assert header.acquisition == wanted.acquisition and header.noise_bandwidth == 1.0


def test_what_the_header_may_leave_out():
    xml = Scan().xml().decode()
    for part in ("acquisitionSystemInformation", "encodingLimits", "sequenceParameters", "measurementInformation"):
        start, end = xml.index(f"<{part}>"), xml.index(f"</{part}>") + len(f"</{part}>")
        xml = xml[:start] + xml[end:]
    header = mrd.header_of(xml.encode())
    assert header.noise_bandwidth == 0.793 and header.coils == 0 and not header.sequence
    assert not header.encodings[0].limits and "PatientPosition" not in header.acquisition


def test_parameters_limits_and_parallel_imaging():
    xml = Scan().xml().decode()
    xml = xml.replace("<trajectory>cartesian</trajectory>", (
        "<trajectory>epi</trajectory><trajectoryDescription><identifier>ConventionalEPI</identifier>"
        "<userParameterLong><name>rampUpTime</name><value>160</value></userParameterLong>"
        "<userParameterDouble><name>dwellTime</name><value>3.1</value></userParameterDouble></trajectoryDescription>"
        "<parallelImaging><accelerationFactor><kspace_encoding_step_1>3</kspace_encoding_step_1>"
        "<kspace_encoding_step_2>2</kspace_encoding_step_2></accelerationFactor><multiband><multiband_factor>4"
        "</multiband_factor></multiband></parallelImaging>"
    ))  # fmt: skip
    xml = xml.replace("</ismrmrdHeader>", (
        "<userParameters><userParameterString><name>note</name><value>x</value></userParameterString></userParameters>"
        "</ismrmrdHeader>"
    ))  # fmt: skip
    header = mrd.header_of(xml.encode() + b"\0")
    (encoding,) = header.encodings
    assert encoding.trajectory is Trajectory.EPI and encoding.parameters == {"rampUpTime": 160.0, "dwellTime": 3.1}
    assert encoding.acceleration == (3, 2) and encoding.multiband == 4
    assert encoding.calibration is Calibration.OTHER, "accelerated, and nobody says where the calibration is"
    assert header.user == {"note": "x"} and encoding.limits["slice"] == Limit(0, 0, 0)


def test_identity_in_dicoms_spelling():
    told = mrd.identity_of(Scan().xml(SUBJECT))
    assert told == {
        "PatientName": "Doe^Jane", "PatientWeight": "61.5", "PatientID": "4711", "PatientBirthDate": "19700203",
        "PatientSex": "F", "StudyDate": "20260105", "StudyTime": "102030.5", "StudyID": "7", "AccessionNumber": "815",
        "StudyInstanceUID": "1.2.3",
    }  # fmt: skip
    assert mrd.identity_of(Scan().xml()) == {}


@pytest.mark.parametrize("name", ["xxxxxx", "X", "anonymous", "Anonymized", "UNKNOWN", "n/a"])
def test_a_name_that_is_crossed_out_is_none(name):
    assert "PatientName" not in mrd.identity_of(Scan().xml(SUBJECT.replace("Doe^Jane", name)))


BOMB = b'<?xml version="1.0"?><!DOCTYPE b [<!ENTITY a "aaaaaaaa"><!ENTITY c "&a;&a;&a;&a;">]>'
REFUSED = {
    "entities": (lambda xml: BOMB + xml.partition(b"?>")[2], UnreadableRawData, "document type"),
    "utf-16 entities": (
        lambda xml: (BOMB + xml.partition(b"?>")[2]).decode().replace("?>", ' encoding="utf-16"?>', 1).encode("utf-16"),
        UnreadableRawData,
        "document type",
    ),
    "no namespace": (lambda xml: xml.replace(b" xmlns=", b" n="), UnreadableRawData, "namespace"),
    "another root": (lambda _: b"<a/>", UnreadableRawData, "ismrmrdHeader"),
    "no xml": (lambda _: b"\x89PNG", UnreadableRawData, "not XML"),
    "nothing": (lambda _: b"", UnreadableRawData, "not XML"),
    "cut off": (lambda xml: xml[:-200], UnreadableRawData, "not XML"),
    "unknown encoding": (lambda xml: xml.replace(b'"1.0"?>', b'"1.0" encoding="x-y"?>'), UnreadableRawData, "not XML"),
    "no encoding": (
        lambda xml: xml[: xml.index(b"<encoding>")] + xml[xml.index(b"</encoding>") + 11 :],
        MissingAttribute,
        "no encoding",
    ),
    "no matrix": (lambda xml: xml.replace(b"matrixSize", b"matrix"), MissingAttribute, "matrixSize"),
    "no field of view": (lambda xml: xml.replace(b"fieldOfView_mm", b"fov"), MissingAttribute, "fieldOfView_mm"),
    "matrix of 0": (lambda xml: xml.replace(b"<x>128</x>", b"<x>0</x>"), UnreadableRawData, "matrix 0 x"),
    "huge matrix": (lambda xml: xml.replace(b"<x>128</x>", b"<x>99999999</x>"), UnreadableRawData, "matrix 99999999"),
    "half a matrix": (lambda xml: xml.replace(b"<x>128</x>", b"<x>12.5</x>"), UnreadableRawData, "whole number"),
    "no number": (lambda xml: xml.replace(b"<TR>50.0</TR>", b"<TR>fast</TR>"), UnreadableRawData, "not a number"),
    "infinite": (lambda xml: xml.replace(b"<TR>50.0</TR>", b"<TR>1e999</TR>"), UnreadableRawData, "not a number"),
    "backward limits": (
        lambda xml: xml.replace(b"<minimum>0</minimum>", b"<minimum>70</minimum>"), UnreadableRawData, "run from 70"
    ),
    "too long": (lambda xml: xml + b" " * 2**24, UnreadableRawData, "more than"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_header_that_cannot_be_is_refused_with_its_reason(case):
    change, error, said = REFUSED[case]
    with pytest.raises(error, match=said):
        mrd.header_of(change(Scan().xml()))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400), st.integers(0, 1500), st.integers(0, 60))
def test_damaged_headers_raise_nothing_else(junk, at, length):
    xml = Scan().xml(SUBJECT)
    damaged = xml[:at] + junk + xml[at + length :]
    for read in (mrd.header_of, mrd.identity_of, mrd.equipment_of):
        with contextlib.suppress(SeriesError):
            read(damaged)


def test_readouts_of_a_file_are_those_of_the_wire(scan, tmp_path):
    wanted = scan.readouts()
    measured = mrd.open_mrd(scan.write(tmp_path / "scan.h5"))
    for _ in range(2):  # as often as they are asked for
        found = list(measured.readouts)
        assert len(found) == len(wanted) == len(measured.readouts)
        for one, other in zip(found, wanted, strict=True):
            same(one, other)
    for one, other in zip(wanted[:4], (mrd.readout_of(acquisition(line)) for line in wanted[:4]), strict=True):
        same(one, other)
    assert wanted[0].has(Flag.IS_NOISE_MEASUREMENT) and not wanted[2].has(Flag.IS_NOISE_MEASUREMENT)


def same(one, other):
    assert np.array_equal(one.data, other.data) and one.data.dtype == np.complex64
    for name in (
        "flags",
        "slice",
        "contrast",
        "step_1",
        "step_2",
        "center_sample",
        "counter",
        "time_stamp",
        "physiology",
    ):
        assert getattr(one, name) == getattr(other, name), name
    for name in ("position", "read_dir", "phase_dir", "slice_dir", "dwell_time"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-5), name


def test_a_trajectory_comes_along(tmp_path):
    from dataclasses import replace

    line = replace(Scan().readouts()[0], trajectory=np.random.default_rng(1).normal(size=(128, 2)).astype(np.float32))
    made = mrd.readout_of(acquisition(line))
    assert np.array_equal(made.trajectory, line.trajectory)


def damaged(folder, change):
    path = Scan().write(folder / "scan.h5")
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def swap(name, value=None):
    def change(file):
        del file[name]
        if value is not None:
            file[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (swap("dataset/xml"), "no MRD header"),
        (swap("dataset/data"), "holds no readouts"),
        (swap("dataset/data", np.zeros(5)), "no list of MRD readouts"),
        (swap("dataset"), "has no group"),
        (lambda file: file.move("dataset", "other") or file.create_group("third"), "has no group"),
    ],
)
def test_a_file_that_is_something_else_is_refused_by_name(tmp_path, change, said):
    with pytest.raises(UnreadableRawData, match=said):
        mrd.open_mrd(damaged(tmp_path, change))


def test_another_name_of_the_only_group_is_fine(tmp_path):
    path = damaged(tmp_path, lambda file: file.move("dataset", "run1"))
    assert len(list(mrd.open_mrd(path).readouts)) == 64


def test_a_readout_that_is_not_what_its_header_says_is_refused(tmp_path):
    def change(file):
        row = file["dataset/data"][3]
        row["head"]["number_of_samples"] = 999
        file["dataset/data"][3] = row

    measured = mrd.open_mrd(damaged(tmp_path, change))
    with pytest.raises(UnreadableRawData, match=r"readout 3 of .* says 4 x 999"):
        list(measured.readouts)


def test_files_cut_or_overwritten_anywhere_give_a_named_error_or_what_is_left(tmp_path):
    whole = Scan().write(tmp_path / "scan.h5").read_bytes()
    draw = np.random.default_rng(5)
    for number in range(40):
        raw = bytearray(whole)
        if number % 2:
            at = int(draw.integers(0, len(raw) - 64))
            raw[at : at + 64] = draw.bytes(64)
        else:
            raw = raw[: int(draw.integers(0, len(raw)))]
        path = tmp_path / f"{number}.h5"
        path.write_bytes(raw)
        with contextlib.suppress(SeriesError):
            list(mrd.open_mrd(path).readouts)
