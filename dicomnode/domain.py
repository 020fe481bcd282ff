"""The nouns that rooms exchange through the store, and which moves their states may make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Final


class SeriesState(StrEnum):
    """Where a series stands."""

    RECEIVING = "receiving"
    ASSEMBLING = "assembling"
    COMPLETE = "complete"
    ROUTED = "routed"
    UNROUTED = "unrouted"
    REJECTED = "rejected"


class JobState(StrEnum):
    """Where a job stands.

    In UPS terms (PS3.4 CC.1.1): queued = SCHEDULED, running = IN PROGRESS, stored, held and closed = COMPLETED, the
    rest CANCELED.
    """

    QUEUED = "queued"
    RUNNING = "running"
    STORED = "stored"
    #: Its objects are stored, and a person must look before any of them is sent.
    HELD = "held"
    CLOSED = "closed"
    DEAD = "dead"
    CANCELLED = "cancelled"
    #: A person looked, and none of its objects is ever sent.
    REJECTED = "rejected"
    SUPERSEDED = "superseded"
    UNSUITABLE = "unsuitable"


class DeliveryState(StrEnum):
    """Where one object stands on its way to one destination."""

    #: Its job is held for review.
    HELD = "held"
    PENDING = "pending"
    SENDING = "sending"
    SENT = "sent"
    COMMIT_REQUESTED = "commit_requested"
    COMMITTED = "committed"
    DELIVERED = "delivered"
    DEAD = "dead"
    CANCELLED = "cancelled"


#: Legal arrows of each machine (architecture, "State machines").
SERIES_MOVES: Final[Mapping[SeriesState, frozenset[SeriesState]]] = {
    SeriesState.RECEIVING: frozenset({SeriesState.ASSEMBLING, SeriesState.REJECTED}),
    SeriesState.ASSEMBLING: frozenset({SeriesState.RECEIVING, SeriesState.COMPLETE, SeriesState.REJECTED}),
    SeriesState.COMPLETE: frozenset(
        {SeriesState.ROUTED, SeriesState.UNROUTED, SeriesState.REJECTED, SeriesState.RECEIVING}
    ),
    SeriesState.ROUTED: frozenset({SeriesState.RECEIVING, SeriesState.COMPLETE}),
    SeriesState.UNROUTED: frozenset({SeriesState.RECEIVING, SeriesState.COMPLETE}),
    SeriesState.REJECTED: frozenset({SeriesState.RECEIVING, SeriesState.COMPLETE}),
}
JOB_MOVES: Final[Mapping[JobState, frozenset[JobState]]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELLED, JobState.SUPERSEDED, JobState.DEAD}),
    JobState.RUNNING: frozenset(
        {
            JobState.QUEUED,
            JobState.STORED,
            JobState.HELD,
            JobState.CLOSED,
            JobState.DEAD,
            JobState.CANCELLED,
            JobState.SUPERSEDED,
            JobState.UNSUITABLE,
        }
    ),
    JobState.STORED: frozenset({JobState.CLOSED, JobState.SUPERSEDED}),
    JobState.HELD: frozenset({JobState.STORED, JobState.CLOSED, JobState.REJECTED, JobState.SUPERSEDED}),
    JobState.CLOSED: frozenset({JobState.SUPERSEDED}),
    JobState.DEAD: frozenset({JobState.QUEUED, JobState.SUPERSEDED}),
    JobState.CANCELLED: frozenset({JobState.QUEUED, JobState.SUPERSEDED}),
    JobState.REJECTED: frozenset(),  # its objects exist under their UIDs: it never runs again, and nothing is sent
    JobState.SUPERSEDED: frozenset(),
    JobState.UNSUITABLE: frozenset({JobState.QUEUED, JobState.SUPERSEDED}),
}
DELIVERY_MOVES: Final[Mapping[DeliveryState, frozenset[DeliveryState]]] = {
    DeliveryState.HELD: frozenset({DeliveryState.PENDING, DeliveryState.CANCELLED}),
    DeliveryState.PENDING: frozenset({DeliveryState.SENDING, DeliveryState.CANCELLED, DeliveryState.DEAD}),
    DeliveryState.SENDING: frozenset(
        {
            DeliveryState.PENDING,
            DeliveryState.SENT,
            DeliveryState.DELIVERED,
            DeliveryState.DEAD,
            DeliveryState.CANCELLED,  # not taken, and not needed: another flavour goes instead, or the kind is skipped
        }
    ),
    DeliveryState.SENT: frozenset({DeliveryState.COMMIT_REQUESTED, DeliveryState.DELIVERED}),
    DeliveryState.COMMIT_REQUESTED: frozenset({DeliveryState.COMMITTED, DeliveryState.PENDING}),
    DeliveryState.COMMITTED: frozenset(),
    DeliveryState.DELIVERED: frozenset(),
    DeliveryState.DEAD: frozenset({DeliveryState.PENDING}),
    DeliveryState.CANCELLED: frozenset(),
}


class Completion(StrEnum):
    """Which signal proved that a series is complete (architecture, "When is a series complete?")."""

    COUNTED = "counted"
    REGULAR = "regular"
    QUIET = "quiet"
    CAP = "cap"


class Band(IntEnum):
    """Priority bands; ageing never crosses one."""

    BATCH = 0
    ROUTINE = 1
    URGENT = 2
    STAT = 3


class AssociationEnd(StrEnum):
    """How an association that brought instances ended."""

    RELEASED = "released"
    ABORTED = "aborted"


#: Per-instance attributes the receiver reads off every object on its way in, by tag. Whatever else a rule asks is read
#: from one representative file later. Keep this list short: each entry costs the receive path.
INDEX_TAGS: Final[Mapping[int, str]] = {
    0x00080008: "ImageType",
    0x00080016: "SOPClassUID",
    0x00080018: "SOPInstanceUID",
    0x00080060: "Modality",
    0x00080070: "Manufacturer",
    0x00100020: "PatientID",  # hashed by the receiver before it is written anywhere: see Instance.patient_key
    0x00100021: "IssuerOfPatientID",
    0x00180050: "SliceThickness",
    0x00181060: "TriggerTime",
    0x0020000D: "StudyInstanceUID",
    0x0020000E: "SeriesInstanceUID",
    0x00200012: "AcquisitionNumber",
    0x00200013: "InstanceNumber",
    0x00200032: "ImagePositionPatient",
    0x00200037: "ImageOrientationPatient",
    0x00200052: "FrameOfReferenceUID",
    0x00200100: "TemporalPositionIdentifier",
    0x00201002: "ImagesInAcquisition",
    0x00280008: "NumberOfFrames",
    0x00280010: "Rows",
    0x00280011: "Columns",
    0x00280030: "PixelSpacing",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One stored SOP Instance: what is in the spool, and what the receiver saw in its header."""

    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    study_uid: str
    series_uid: str
    #: Relative to the spool folder.
    path: str
    #: Bytes on disk.
    size: int
    received_at: datetime
    #: Identifier of the association that carried it (0: found on disk at start-up).
    association_id: int
    calling_ae: str
    #: Digest of PatientID and its issuer, so that a conflict shows without the identity being in the table.
    patient_key: str
    #: INDEX_TAGS by keyword, as text; multi-valued joined by backslash. Without PatientID and IssuerOfPatientID.
    header: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Association:
    """One association that was opened towards the receiver."""

    id: int
    calling_ae: str
    called_ae: str
    address: str
    opened_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantined:
    """An object that was kept but will not be processed, and why."""

    #: File name in the quarantine folder.
    name: str
    #: Short reason, for example ``uid-mismatch``.
    code: str
    #: One sentence for the operator: what, which UID, what to do.
    reason: str
    sop_instance_uid: str
    series_uid: str
    calling_ae: str
    at: datetime
    #: DIMSE status that was answered.
    status: int


class ObjectKind(StrEnum):
    """What an object is for; each destination takes the kinds its profile names."""

    #: A derived series.
    IMAGE = "image"
    #: SEG.
    SEGMENTATION = "segmentation"
    #: TID 1500 with findings and measurements.
    REPORT = "report"
    #: TID 1500 whose every group is an outline on a source image: what viewers draw.
    MARKS = "marks"
    #: Key Object Selection.
    KEY_IMAGES = "key_images"
    #: Secondary capture page: readable everywhere.
    SUMMARY = "summary"
    #: Grayscale Softcopy Presentation State: window and outlines over the source images.
    PRESENTATION = "presentation"
    #: Parametric Map: a number for every voxel.
    PARAMETRIC_MAP = "parametric_map"
    #: The segmented phases of a cine as series of their own, with segmentations and marks on them.
    PHASES = "phases"


#: Made where a destination's profile names them.
_UNUSUAL: Final = (ObjectKind.PRESENTATION, ObjectKind.PARAMETRIC_MAP, ObjectKind.PHASES)
#: What a destination takes unless its profile says otherwise.
USUAL_KINDS: Final = tuple(kind for kind in ObjectKind if kind not in _UNUSUAL)


class Flavour(StrEnum):
    """What a job renders twice, because some archives refuse the one and some viewers want the other."""

    #: The same for every destination.
    ANY = ""
    #: BINARY segmentation, and the objects that refer to it.
    BINARY = "binary"
    #: LABELMAP segmentation, and the objects that refer to it.
    LABELMAP = "labelmap"
    #: Images from k-space, one object a plane.
    SINGLE = "single"
    #: The same as one multi-frame object a series.
    ENHANCED = "enhanced"


#: What a destination is sent that refuses a flavour.
FALLS_BACK_TO: Final = {Flavour.LABELMAP: Flavour.BINARY, Flavour.ENHANCED: Flavour.SINGLE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One DICOM object a job produced, on disk."""

    #: Stable role inside the job, for example ``denoised``.
    role: str
    index: int
    sop_class_uid: str
    sop_instance_uid: str
    series_uid: str
    study_uid: str
    #: Relative to the results folder, so that the data folder may be moved or restored elsewhere.
    path: Path
    size: int
    sha256: str
    kind: ObjectKind = ObjectKind.IMAGE
    flavour: Flavour = Flavour.ANY
