"""Key images: a note (Key Object Selection, TID 2010) that leads a reader to the planes to look at first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
from highdicom.sr import DeviceObserverIdentifyingAttributes, ObserverContext
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from dicomnode.dicom import MANUFACTURER, derive_uid
from dicomnode.encode.common import MAX_LO, cut
from dicomnode.encode.envelope import envelop
from dicomnode.encode.identity import EncodeContext, require_identity
from dicomnode.encode.order import referenced_requests
from dicomnode.encode.source import Source
from dicomnode.encode.stand_ins import cited
from dicomnode.errors import EncodingError
from dicomnode.pipeline import Result

#: CID 7010.
OF_INTEREST: Final = Code("113000", "DCM", "Of Interest")
#: Part of the identity of the object.
ROLE: Final = "key-images"
_LABEL: Final = "AI key images"


def encode_key_images(
    source: Source, result: Result, context: EncodeContext, *, series_number: int, objects: Sequence[Dataset]
) -> Dataset | None:
    """Write the key planes of ``result`` and what says more about them as one Key Object Selection; None without any.

    Parameters
    ----------
    objects
        Segmentations and reports of this job, referred to after the planes.

    Raises
    ------
    EncodingError
        A key plane the input does not have, an object of another study, or an identity that cannot be repeated.
    """
    if not result.key_planes:
        return None
    first = source.headers[0]
    require_identity(first, context, spatial=False)
    frames = _frames(source, result)
    for ds in objects:
        if ds.StudyInstanceUID != first.StudyInstanceUID:
            raise EncodingError(f"{ds.SOPInstanceUID} is of another study than {first.SOPInstanceUID}: no key object")
    selected = [cited(source.headers[index]) for index in frames] + [cited(ds) for ds in objects]
    content = KeyObjectSelection(
        document_title=OF_INTEREST,
        referenced_objects=selected,
        observer_device_context=_observer(context),
        description=_description(source, result, context),
    )
    document = KeyObjectSelectionDocument(
        evidence=selected,
        content=content,
        series_instance_uid=context.series_uid(ROLE),
        series_number=series_number,
        sop_instance_uid=context.instance_uid(ROLE, 0),
        instance_number=1,
        manufacturer=MANUFACTURER,
        requested_procedures=referenced_requests(first) or None,
        specific_character_set="ISO_IR 192",
    )
    ds = Dataset()
    ds.update(document)
    _refine(ds.ContentSequence, frames.values())
    return envelop(ds, source, context, role=ROLE, series_number=series_number, description=_LABEL, image=False)


def _frames(source: Source, result: Result) -> dict[int, list[int]]:
    """Index of each header that holds key planes -> their frame numbers, in the order of the key planes."""
    frames: dict[int, list[int]] = {}
    for key in result.key_planes:
        if not 0 <= key.plane < len(source.planes):
            raise EncodingError(f"key plane {key.plane} is none of the {len(source.planes)} planes of the input")
        plane = source.planes[key.plane]
        numbers = frames.setdefault(plane.header, [])
        if plane.frame and plane.frame not in numbers:
            numbers.append(plane.frame)
    return frames


def _observer(context: EncodeContext) -> ObserverContext:
    """The node as the observer (TID 1004)."""
    device = DeviceObserverIdentifyingAttributes(
        uid=derive_uid("device", context.device_serial),
        manufacturer_name=MANUFACTURER,
        model_name=cut(f"AI {context.algorithm.name}", MAX_LO),
        serial_number=context.device_serial,
    )
    return ObserverContext(codes.DCM.Device, device)


def _description(source: Source, result: Result, context: EncodeContext) -> str:
    """Who chose and why, for a reader: images are named by the number a viewer shows."""
    algorithm = context.algorithm
    said: dict[str, list[str]] = {}
    for key in result.key_planes:
        plane = source.planes[key.plane]
        header = source.headers[plane.header]
        name = f"frame {plane.frame}" if plane.frame else f"image {header.get('InstanceNumber') or key.plane + 1}"
        reasons = said.setdefault(name, [])
        if key.reason and key.reason not in reasons:
            reasons.append(key.reason)
    lines = [f"{name}: {', '.join(reasons)}" if reasons else name for name, reasons in said.items()]
    marks = ["Research use only: not for diagnosis."]
    if context.incomplete or source.images.incomplete:
        marks.append("Instances of the input are missing.")
    return " ".join([f"Chosen by an algorithm ({algorithm.name} {algorithm.version}).", "; ".join(lines) + ".", *marks])


def _refine(items: Iterable[Dataset], frames: Iterable[list[int]]) -> None:
    """Add frame numbers to the images of ``frames`` (they come first), and take away the names of all references."""
    numbers = iter(frames)
    for item in items:
        if item.ValueType not in ("IMAGE", "COMPOSITE"):
            continue
        # TID 2010 gives these items no concept name: PixelMed calls one an error.
        del item.ConceptNameCodeSequence
        chosen = next(numbers, [])
        if chosen:
            item.ReferencedSOPSequence[0].ReferencedFrameNumber = [str(number) for number in chosen]
