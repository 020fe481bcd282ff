"""Make any scanner's header readable by the rest of the node: the layer in front of highdicom.

Text becomes Unicode (ISO_IR 192), values that are weird but clear become standard ones, private elements and pixel
data go, absent type 2 attributes become present and empty. Every repair leaves a note. Values of correct DS elements
stay the strings they were, so that geometry can be copied verbatim.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Final

from pydicom import Dataset
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence as DicomSequence
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSNearLossless,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    MRImageStorage,
)

from dicomnode.errors import MissingAttribute, UndecodableText
from dicomnode.volumes import charset, values

logger = logging.getLogger(__name__)

#: Character set assumed for 8-bit text of a header that declares none, unless the site says otherwise.
DEFAULT_CHARSET: Final = "ISO_IR 100"

#: Elements that hold pixels, or lie after them.
PIXELS: Final = frozenset({0x7FE00001, 0x7FE00002, 0x7FE00008, 0x7FE00009, 0x7FE00010, 0xFFFCFFFC})
_CHARSET_TAG: Final = Tag(0x00080005)

#: Type 2 attributes of the Patient, General Study, General Series, Frame of Reference and General Equipment modules.
_TYPE_2: Final = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
    "SeriesNumber",
    "PositionReferenceIndicator",
    "Manufacturer",
)
#: Type 2 attributes of each image module (PS3.3 C.7.6.1, C.8.2.1, C.8.3.1, C.7.6.14).
_TYPE_2_OF_CLASS: Final = {
    CTImageStorage: ("InstanceNumber", "AcquisitionNumber", "SliceThickness", "KVP", "PatientPosition"),
    MRImageStorage: (
        "InstanceNumber",
        "SliceThickness",
        "PatientPosition",
        "ScanOptions",
        "MRAcquisitionType",
        "EchoTime",
        "EchoTrainLength",
    ),
    EnhancedCTImageStorage: ("AcquisitionContextSequence",),
    EnhancedMRImageStorage: ("AcquisitionContextSequence",),
    LegacyConvertedEnhancedCTImageStorage: ("AcquisitionContextSequence",),
    LegacyConvertedEnhancedMRImageStorage: ("AcquisitionContextSequence",),
}
#: Identifiers without which nothing can be computed from, or referred to, an instance.
_REQUIRED: Final = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
#: Text that must be exact or the series is refused: all of the patient group, names, and these.
_IDENTITY: Final = frozenset({"AccessionNumber", "StudyID"})
#: Transfer syntaxes that always lose; JPEG 2000 and HTJ2K may lose and then say so in LossyImageCompression.
_LOSSY: Final = frozenset({JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless})


class Normaliser:
    """Normalises the headers of one series; equal elements of different headers are decoded once and shared.

    Parameters
    ----------
    default_charset
        Term of (0008,0005) for 8-bit text of headers that declare no character set.
    """

    def __init__(self, default_charset: str = DEFAULT_CHARSET) -> None:
        self._default = charset.terms(default_charset)
        self._decoded: dict[tuple[BaseTag, str, bytes, charset.Terms], tuple[DataElement | None, str]] = {}
        self._notes: dict[str, int] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """What was repaired: one sentence per kind, with the number of headers or elements."""
        return tuple(f"{note} ({count} times)" for note, count in self._notes.items())

    def header(self, dataset: Dataset, name: str) -> Dataset:
        """Header of ``dataset`` without pixel data and private elements. Read-only: elements are shared.

        Parameters
        ----------
        dataset
            As `pydicom.dcmread` gives it, elements not yet converted.
        name
            Name of the file, for messages about objects without a UID.
        """
        meta = getattr(dataset, "file_meta", Dataset())
        uid = _raw_text(dataset, "SOPInstanceUID") or str(meta.get("MediaStorageSOPInstanceUID") or name)
        header = self._copy(dataset, self._terms(dataset, uid), uid)
        header.add(DataElement(_CHARSET_TAG, "CS", charset.UNICODE))
        missing = [keyword for keyword in _REQUIRED if not header.get(keyword)]
        if missing:
            raise MissingAttribute(f"{', '.join(missing)} absent or empty in {uid}; give the instance its UIDs back")
        self._add_type_2(header)
        self._carry_loss(dataset, header)
        return header

    def note(self, sentence: str) -> None:
        """Count one more case of ``sentence``."""
        self._notes[sentence] = self._notes.get(sentence, 0) + 1

    def _terms(self, dataset: Dataset, uid: str) -> charset.Terms:
        raw = _raw_text(dataset, "SpecificCharacterSet")
        terms = charset.terms(raw)
        unknown = [term for term in terms if not charset.known(term)]
        if unknown:
            self.note(f"SpecificCharacterSet {raw!r} is not a known term: only ASCII text can be read")
            logger.info("unknown character set", extra={"action": "charset_unknown", "sop_instance_uid": uid})
        return terms

    def _copy(self, dataset: Dataset, terms: charset.Terms, uid: str) -> Dataset:
        """Normalised copy of one level; ``terms`` are inherited by items that declare none (PS3.3 C.12.1.1.2)."""
        copy = Dataset()
        for tag, raw in _public(dataset):
            element = self._element(dataset, tag, raw, terms, uid)
            if element is not None:
                copy._dict[tag] = element  # add() would check again what `values` has checked
        return copy

    def _element(
        self, dataset: Dataset, tag: BaseTag, raw: RawDataElement | DataElement, terms: charset.Terms, uid: str
    ) -> DataElement | None:
        vr = _vr(tag, raw)
        if isinstance(raw, RawDataElement) and (vr in values.TEXT or vr in values.ASCII):
            return self._string(tag, vr, raw.value or b"", terms, uid)
        try:
            element = dataset[tag]
        except (ValueError, TypeError, NotImplementedError, OSError, KeyError, AttributeError) as error:
            self.note(f"{_name(tag)} dropped: {type(error).__name__} while reading it")
            return None
        if element.VR != "SQ":
            return element
        items = [self._copy(item, self._item_terms(item, terms), uid) for item in element.value or ()]
        return DataElement(tag, "SQ", DicomSequence(items))

    def _item_terms(self, item: Dataset, inherited: charset.Terms) -> charset.Terms:
        declared = _raw_text(item, "SpecificCharacterSet")
        return charset.terms(declared) if declared else inherited

    def _string(self, tag: BaseTag, vr: str, raw: bytes, terms: charset.Terms, uid: str) -> DataElement | None:
        key = (tag, vr, raw, terms)
        if key not in self._decoded:
            self._decoded[key] = self._decode(tag, vr, raw, terms, uid)
        element, note = self._decoded[key]
        if note:
            self.note(note)
        return element

    def _decode(
        self, tag: BaseTag, vr: str, raw: bytes, terms: charset.Terms, uid: str
    ) -> tuple[DataElement | None, str]:
        note = ""
        if vr in values.TEXT and terms == ("",) and not raw.isascii():
            terms, note = self._default, f"8-bit text without a character set: read as {'/'.join(self._default)}"
        try:
            element, repaired = values.element(tag, vr, raw, terms)
        except UnicodeDecodeError as error:
            if tag.group == 0x0010 or vr == "PN" or keyword_for_tag(tag) in _IDENTITY:
                raise UndecodableText(
                    f"{_name(tag)} of {uid} is not text in SpecificCharacterSet {'/'.join(terms)!r} ({error.reason}); "
                    "correct the character set at the source, or set the site default"
                ) from None
            return None, f"{_name(tag)} dropped: not text in its character set"
        except values.Unreadable as error:
            return self._emptied(tag, vr, str(error))
        return element, note or (f"{_name(tag)}: {repaired}" if repaired else "")

    def _emptied(self, tag: BaseTag, vr: str, reason: str) -> tuple[DataElement | None, str]:
        """An unreadable value leaves an empty element, which says "not known" where an absent one says nothing."""
        return DataElement(tag, vr, None), f"{_name(tag)} emptied: {reason}"

    def _add_type_2(self, header: Dataset) -> None:
        for keyword in (*_TYPE_2, *_TYPE_2_OF_CLASS.get(UID(header.SOPClassUID), ())):
            if keyword not in header:
                setattr(header, keyword, None)
                self.note(f"{keyword} was absent: added empty")

    def _carry_loss(self, dataset: Dataset, header: Dataset) -> None:
        """Once lossy, always lossy (PS3.3 C.7.6.1.1.5), also where the scanner forgot to say so."""
        syntax = dataset.file_meta.get("TransferSyntaxUID", "") if hasattr(dataset, "file_meta") else ""
        if syntax in _LOSSY and header.get("LossyImageCompression") != "01":
            replace(header, "LossyImageCompression", "01")
            self.note("LossyImageCompression set to 01: the transfer syntax is lossy")


def replace(header: Dataset, keyword: str, value: str) -> None:
    """Give this header another value without touching an element it may share with others."""
    tag = Tag(keyword)
    header.add(DataElement(tag, dictionary_VR(tag), value))


def _public(dataset: Dataset) -> Iterator[tuple[BaseTag, RawDataElement | DataElement]]:
    """Elements of ``dataset`` as read, in tag order, without private elements, group lengths and pixel data."""
    for tag in sorted(dataset.keys()):
        if tag.is_private or tag.element == 0 or tag in PIXELS or tag == _CHARSET_TAG or tag.group <= 0x0002:
            continue
        yield tag, dataset.get_item(tag)


def _raw_text(dataset: Dataset, keyword: str) -> str:
    """Value of a default-repertoire attribute without converting it."""
    if keyword not in dataset:
        return ""
    raw = dataset.get_item(keyword)
    value = raw.value
    if isinstance(value, bytes):
        return value.decode("ascii", errors="replace").strip(" \0")
    return "" if value is None else "\\".join(value) if isinstance(value, MultiValue) else str(value)


def _vr(tag: BaseTag, raw: RawDataElement | DataElement) -> str:
    if raw.VR is not None and raw.VR != "UN":
        return str(raw.VR)
    try:
        return dictionary_VR(tag)
    except KeyError:
        return "UN"


def _name(tag: BaseTag) -> str:
    return keyword_for_tag(tag) or str(tag)
