"""Every error this node raises, in one tree.

NodeError
├── ConfigError                  the configuration file; names file, key and the nearest known key
├── StoreError
│   ├── IllegalMove              a state machine was asked for an arrow it does not have
│   ├── StaleEpoch               another leader took over; nothing was written
│   ├── InstanceConflict         same SOP Instance UID, other bytes
│   └── DiskFull †               below the watermark; nothing was accepted
├── ReceiveError                 an object that cannot be filed; carries the DIMSE status to answer
├── SeriesError                  a series that cannot become a pipeline's input
│   ├── MissingAttribute         an attribute the computation needs is absent
│   ├── MixedGeometry            rows, columns, orientation or frame of reference differ
│   ├── DuplicatePositions       several instances at one position
│   ├── NotCine                  no stack of planes with phases of the heartbeat
│   ├── UnequalPhases            some planes of a cine have other phases than the rest
│   ├── UnsupportedSOPClass      not an image class this node can read
│   ├── UndecodablePixels        the pixel data does not decode
│   ├── UnreadableRawData        raw k-space is damaged, or parts of it are missing
│   └── UndecodableText          the patient's identity is in no known character set
├── PipelineError
│   ├── Unsuitable               said by the pipeline's author: an outcome, not a fault
│   ├── PipelineNotLoadable      "module:Class" or its options are wrong
│   ├── ResultInvalid            the result breaks the contract (shape, finite values, grid)
│   ├── PipelineFailed           the pipeline raised
│   ├── OutOfMemory †            device or host memory ran out
│   ├── DeviceFailed †           the accelerator or its driver failed; the process is replaced
│   ├── PipelineTimeout †        ran longer than its limit
│   └── WorkerLost †             the worker process died
├── EncodingError                the result cannot be said in DICOM; names the attribute
└── DispatchError
    ├── PeerUnreachable †        no TCP connection, or no answer in time
    ├── AssociationRejected †    A-ASSOCIATE-RJ
    ├── AssociationAborted †     lost in the middle
    ├── ContextNotAccepted       the peer refused this SOP class
    ├── StoreRefused             a failure status; transient when PS3.4 B.2.3 says so
    ├── IdentityUnreadable       no file is left that says whose study a notification is about
    └── NotificationRefused      who should be told of a finding answered that it does not take the message

† transient: trying again can help. Retry policy reads the class attribute and nothing else. An exception's message says
what happened, to which UID, and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class NodeError(Exception):
    """Anything this node raises on purpose."""

    transient: ClassVar[bool] = False


class ConfigError(NodeError):
    """The configuration is wrong; the message lists every problem at once."""


class StoreError(NodeError):
    """The database or the spool refused."""


class IllegalMove(StoreError):
    """A state machine was asked for an arrow it does not have."""


class StaleEpoch(StoreError):
    """Another leader took over; what this one wanted to write was dropped."""


class InstanceConflict(StoreError):
    """An object with this SOP Instance UID and other bytes is already kept."""


class DiskFull(StoreError):
    """Free space is below the watermark."""

    transient = True


class ReceiveError(NodeError):
    """An object that cannot be filed.

    Parameters
    ----------
    status
        DIMSE status to answer (PS3.4 B.2.3).
    code
        Short reason for tables and logs, for example ``truncated``.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class SeriesError(NodeError):
    """A series that cannot become a pipeline's input."""


class MissingAttribute(SeriesError):
    """An attribute the computation needs is absent."""


class MixedGeometry(SeriesError):
    """Rows, columns, orientation or frame of reference differ inside the series."""


class DuplicatePositions(SeriesError):
    """Several instances stand at one position."""


class NotCine(SeriesError):
    """No stack of planes that each show the phases of a heartbeat: the message names what was seen instead."""


class UnequalPhases(SeriesError):
    """The planes of a cine do not have the same number of phases: images are missing, or two stacks are mixed."""


class UnsupportedSOPClass(SeriesError):
    """Not an image class this node can read."""


class UndecodablePixels(SeriesError):
    """The pixel data does not decode."""


class UnreadableRawData(SeriesError):
    """Raw k-space is damaged, is not what it says, or parts of it are missing: send or export it again.

    Parameters
    ----------
    damaged
        SOP Instance UIDs of the objects that are at fault: they are set aside in quarantine, so that sound ones under
        the same UIDs can take their place. Empty: none is, or nobody knows which.
    """

    def __init__(self, message: str, damaged: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.damaged = tuple(damaged)


class UndecodableText(SeriesError):
    """Text of the patient's identity cannot be decoded: set the source's character set, then run the series again."""


class PipelineError(NodeError):
    """Something between loading a pipeline and taking its result."""


class Unsuitable(PipelineError):
    """The input is not for this algorithm. Recorded and reported, never retried.

    Parameters
    ----------
    reason
        One sentence for the operator and the radiologist, with the value that was seen.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class PipelineNotLoadable(PipelineError):
    """The configured "module:Class" or its options are wrong."""


class ResultInvalid(PipelineError):
    """The result breaks the contract; nothing of it is sent."""


class PipelineFailed(PipelineError):
    """The pipeline raised an error of its own."""


class OutOfMemory(PipelineError):
    """Device or host memory ran out."""

    transient = True


class DeviceFailed(PipelineError):
    """The accelerator or its driver failed; the worker process is replaced before the next try."""

    transient = True


class PipelineTimeout(PipelineError):
    """The job ran longer than its limit and was stopped."""

    transient = True


class WorkerLost(PipelineError):
    """The worker process died under the job."""

    transient = True


class EncodingError(NodeError):
    """The result cannot be said in DICOM; the message names the attribute."""


class DispatchError(NodeError):
    """Sending an object failed."""


class PeerUnreachable(DispatchError):
    """No TCP connection to the destination, or no answer in time."""

    transient = True


class AssociationRejected(DispatchError):
    """The destination rejected the association."""

    transient = True


class AssociationAborted(DispatchError):
    """The association was lost in the middle."""

    transient = True


class ContextNotAccepted(DispatchError):
    """The destination refused the presentation context of this SOP class."""


class StoreRefused(DispatchError):
    """The destination answered a failure status.

    0xA7xx (out of resources) is worth another try, everything else is not (PS3.4 B.2.3).
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    @property
    def retry(self) -> bool:
        """Whether the same object may be accepted later."""
        return self.status & 0xFF00 == 0xA700


class IdentityUnreadable(DispatchError):
    """No file of the study is left, or none can be read, to say whose it is."""


class NotificationRefused(DispatchError):
    """Who should be told of a finding answered, and does not take the message: see its own log."""
