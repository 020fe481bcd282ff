"""``dicomnode wrap``: an MRD file of raw k-space gets a patient and a study, as DICOM Raw Data Storage."""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from dicomnode.cli.common import Commands, add_config, command, err, out
from dicomnode.cli.peers import peer_of
from dicomnode.dicom import derive_uid, valid_uid
from dicomnode.dispatch import send_files
from dicomnode.errors import ConfigError
from dicomnode.volumes.normalise import Normaliser

#: Options that name the patient or the study, by DICOM keyword.
_NAMED = {
    "PatientID": "--patient-id",
    "PatientName": "--patient-name",
    "IssuerOfPatientID": "--issuer-of-patient-id",
    "PatientBirthDate": "--patient-birth-date",
    "StudyInstanceUID": "--study-uid",
    "AccessionNumber": "--accession-number",
}
_POSITIONS = ("HFS", "HFP", "HFDR", "HFDL", "FFS", "FFP", "FFDR", "FFDL")
_SERIES_NUMBER = 900


def add(commands: Commands) -> None:
    """Add the command."""
    sub = command(
        commands, "wrap", "make DICOM raw data objects of an MRD file (raw k-space), with patient and study",
        """
        dicomnode wrap scan.h5 --like image.dcm --send AINODE@127.0.0.1:11112
        dicomnode wrap scan.h5 --patient-id 4711 --study-uid 1.2.840.1 --out raw
        dicomnode wrap scan.h5 --out raw          # where the MRD header names patient and study itself
        """, _wrap,
    )  # fmt: skip
    sub.add_argument("file", type=Path, metavar="FILE.h5")
    add_identity(sub)
    sub.add_argument("--out", type=Path, metavar="DIR", help="folder for the objects (default: raw, unless sent)")
    sub.add_argument(
        "--send", metavar="PEER", help="send them by C-STORE: destination of the configuration, AE@host:port"
    )
    sub.add_argument("--from", dest="calling", default="", metavar="AE", help="calling AE title (default: the node's)")
    sub.add_argument("--series-number", type=int, default=_SERIES_NUMBER, metavar="N")
    sub.add_argument(
        "--part-mb", type=int, default=256, metavar="MB", help="largest payload of one object (default: 256)"
    )
    add_config(sub)


def add_identity(sub: Any) -> None:  # noqa: ANN401 - a parser, or a group of one, whose class is private
    """Add the options that say whose a measurement is, and how the patient lay."""
    sub.add_argument("--like", type=Path, metavar="FILE", help="any DICOM object of the same examination")
    for keyword, option in _NAMED.items():
        sub.add_argument(option, dest=keyword, default="", metavar="TEXT", help=f"{keyword}; overrides --like")
    sub.add_argument("--patient-position", default="", choices=("", *_POSITIONS), help="where the MRD header has none")
    sub.add_argument(
        "--same-frame", action="store_true",
        help="the measurement shares the frame of reference of --like: compare positions before you say so",
    )  # fmt: skip


def objects_of(file: Path, arguments: argparse.Namespace, folder: Path) -> list[Path]:
    """Write the raw data objects of ``file`` into ``folder``; the same file and words make the same objects."""
    # Loading HDF5 takes longer than most commands.
    from dicomnode.encode.raw import wrap
    from dicomnode.volumes.mrd import identity_of, open_mrd, xml_of

    header, told = open_mrd(file).header, identity_of(xml_of(file))
    like = _like(arguments, told)
    if not header.acquisition.get("PatientPosition") and not arguments.patient_position:
        err.print("the MRD header does not say how the patient lay: no images can be made without --patient-position")
    frame = str(like.get("FrameOfReferenceUID") or "") if arguments.same_frame else ""
    if arguments.same_frame and not frame:
        raise ConfigError("--same-frame needs --like with a FrameOfReferenceUID")
    description = str(header.acquisition.get("SeriesDescription") or header.acquisition.get("ProtocolName") or "")
    folder.mkdir(parents=True, exist_ok=True)
    whose = (str(like.get(keyword) or "") for keyword in ("StudyInstanceUID", "PatientID", "IssuerOfPatientID"))
    digest = _sha256(file)
    objects = wrap(
        file, like,
        series_uid=derive_uid(digest, *whose, "raw-series"),
        series_number=getattr(arguments, "series_number", _SERIES_NUMBER),
        when=datetime.fromtimestamp(file.stat().st_mtime, UTC).astimezone(),
        part_bytes=getattr(arguments, "part_mb", 256) * 2**20,
        frame_of_reference=frame,
        patient_position=arguments.patient_position,
        description=description,
    )  # fmt: skip
    paths = []
    for ds in objects:
        path = folder / f"{ds.SOPInstanceUID}.dcm"
        ds.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def _wrap(arguments: argparse.Namespace) -> int:
    if not arguments.file.is_file():
        raise ConfigError(f"{arguments.file} is not a file")
    if arguments.part_mb < 1:
        raise ConfigError("--part-mb must be at least 1")
    with tempfile.TemporaryDirectory(prefix="dicomnode-wrap-") as temporary:
        folder = arguments.out or (Path(temporary) if arguments.send else Path("raw"))
        paths = objects_of(arguments.file, arguments, folder)
        series = dcmread(paths[0], specific_tags=["SeriesInstanceUID"]).SeriesInstanceUID
        out.print(f"series {series}: {len(paths)} raw data object{'s' if len(paths) > 1 else ''}")
        if arguments.out or not arguments.send:
            out.print(f"  in {folder}")
        if not arguments.send:
            return 0
        peer, calling = peer_of(arguments.send, arguments)
        outcomes = send_files(peer, calling, paths)
    for problem in sorted({one.problem for one in outcomes if one.problem}):
        err.print(problem)
    taken = sum(not one.problem for one in outcomes)
    out.print(f"  {taken} of {len(paths)} accepted by {peer.ae_title}")
    return 0 if taken == len(paths) else 1


def _like(arguments: argparse.Namespace, told: Mapping[str, str]) -> Dataset:
    """Whose it is: what was typed, then ``--like``, then what the MRD header itself says."""
    given = {keyword: getattr(arguments, keyword) for keyword in _NAMED if getattr(arguments, keyword)}
    if arguments.like is not None:
        like = _header(arguments.like)
    else:
        like = Dataset()
        for keyword, text in told.items():
            if keyword != "FrameOfReferenceUID":  # the measurement's own header says it where it is needed
                setattr(like, keyword, text)
    for keyword, text in given.items():
        setattr(like, keyword, text)
    study = str(like.get("StudyInstanceUID") or "")
    if not valid_uid(study, leading_zeros=True) or not like.get("PatientID"):
        raise ConfigError(
            "whose is it? The MRD header names no patient and study: give --like with any DICOM object of the "
            "examination, or --patient-id and --study-uid"
        )
    for keyword in ("PatientID", "StudyInstanceUID"):
        if keyword in told and told[keyword] != str(like.get(keyword)):
            err.print(f"{keyword} of the MRD header is another one: what was given counts")
    return like


def _header(path: Path) -> Dataset:
    try:
        return Normaliser().header(dcmread(path, stop_before_pixels=True, defer_size=65536), path.name)
    except (InvalidDicomError, OSError) as error:
        raise ConfigError(f"{path} does not read as DICOM: {error}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
