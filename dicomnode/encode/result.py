"""Everything one result becomes, in the order in which it is sent: what others refer to comes first."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from pydicom import Dataset

from dicomnode.domain import USUAL_KINDS, Flavour, ObjectKind
from dicomnode.encode.beside import Say, all_or_none
from dicomnode.encode.cine import at_phase, counted_through
from dicomnode.encode.enhanced_mr import encode_enhanced
from dicomnode.encode.gate import check_objects
from dicomnode.encode.identity import EncodeContext, unplaced
from dicomnode.encode.image import encode_images
from dicomnode.encode.keys import encode_key_images
from dicomnode.encode.marks import encode_marks
from dicomnode.encode.mr import encode_reconstruction
from dicomnode.encode.phases import encode_phases, without_phases
from dicomnode.encode.pm import encode_parametric_map
from dicomnode.encode.presentation import encode_presentations
from dicomnode.encode.report import encode_reports
from dicomnode.encode.seg import encode_segmentation
from dicomnode.encode.source import CineSource, RawSource, Source
from dicomnode.encode.summary import encode_summary
from dicomnode.pipeline import Reconstruction, Result

logger = logging.getLogger(__name__)

#: SeriesNumber of the first object of each kind, counted from the job's own.
_SERIES: Final = {
    ObjectKind.SEGMENTATION: 20,
    ObjectKind.PHASES: 30,
    ObjectKind.SUMMARY: 40,
    ObjectKind.REPORT: 50,
    ObjectKind.MARKS: 60,
    ObjectKind.KEY_IMAGES: 70,
    ObjectKind.PRESENTATION: 80,
    ObjectKind.PARAMETRIC_MAP: 90,
}
#: Further on by this: the LABELMAP flavour, the ENHANCED one.
_LABELMAP_SERIES: Final = 5
_ENHANCED_SERIES: Final = 10
#: A document that an earlier result consists of: study, series, SOP class and SOP instance UID.
Document = tuple[str, str, str, str]
#: What the new object of each kind and flavour replaces.
Replaced = Mapping[tuple[ObjectKind, Flavour], Sequence[Document]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """One object and what it is for."""

    dataset: Dataset
    role: str
    index: int
    kind: ObjectKind
    flavour: Flavour = Flavour.ANY


def encode_result(
    source: Source | RawSource,
    result: Result,
    context: EncodeContext,
    *,
    kinds: Collection[ObjectKind] = USUAL_KINDS,
    labelmap: bool = False,
    enhanced: bool = False,
    replaces: Replaced = MappingProxyType({}),
    say: Say = lambda _: None,
) -> Iterator[Encoded]:
    """Objects of ``result``, each checked before it is given out (the conformance gate).

    Parameters
    ----------
    kinds
        What some destination takes.
    labelmap
        Also make the LABELMAP flavour of segmentations, and of what refers to them.
    enhanced
        Also make the ENHANCED flavour of images from k-space.
    replaces
        Reports and marks of the earlier result that this one supersedes, by the kind and flavour of what does.
    say
        Told what of the kinds that a profile must name, or of the ENHANCED flavour, could not be made, and why.

    Raises
    ------
    EncodingError
        Names the object and every fault.
    """
    if isinstance(source, RawSource):
        if ObjectKind.IMAGE in kinds:
            yield from _reconstructions(source, result, context, enhanced=enhanced, say=say)
        return
    why = left_out(source, result, context, kinds)
    if why:
        result = _unlaid(source, result, why)
    recorded = 0
    for one in _of_record(source, result, context, kinds, labelmap=labelmap, placed=not why, replaces=replaces):
        yield one
        recorded += 1
    for what, made in _beside(source, result, context, kinds, placed=not why, replaces=replaces, say=say):
        # Where nothing else tells of the result, leaving this out would lose it without a word.
        yield from (all_or_none(made, what, str(source.headers[0].SeriesInstanceUID), say) or ()) if recorded else made


def left_out(
    source: Source | RawSource, result: Result, context: EncodeContext, kinds: Collection[ObjectKind] = USUAL_KINDS
) -> str:
    """What of ``result`` cannot be written and why, in a sentence for the reader; empty if all of it can.

    Without a frame of reference nothing may lie on the images. What is left, reports, marks and pages, is sent: a
    finding must not be lost for want of an overlay. A result that has nothing else fails (`EncodingError`).
    """
    laid_over = {ObjectKind.SEGMENTATION, ObjectKind.REPORT, ObjectKind.PHASES}
    lost = {
        "segmentation": bool(result.segmentations) and bool(laid_over & set(kinds)),
        "derived images": bool(result.images) and ObjectKind.IMAGE in kinds,
        "parametric maps": bool(result.parametric_maps) and ObjectKind.PARAMETRIC_MAP in kinds,
    }
    if isinstance(source, RawSource) or not result.reported or not any(lost.values()):
        return ""
    why = unplaced(source.headers, context)
    return f"Left out: {', '.join(name for name, there in lost.items() if there)}. {why}." if why else ""


def _unlaid(source: Source, result: Result, why: str) -> Result:
    """``result`` without what would lie on the images, and with a remark that says so."""
    extra = {"action": "result_unplaced", "series_uid": str(source.headers[0].SeriesInstanceUID), "reason": why}
    logger.warning("Result goes without what would lie on the images", extra=extra)
    return replace(result, images=(), parametric_maps=(), remarks=(*result.remarks, why))


def _of_record(
    source: Source,
    result: Result,
    context: EncodeContext,
    kinds: Collection[ObjectKind],
    *,
    labelmap: bool,
    placed: bool,
    replaces: Replaced,
) -> Iterator[Encoded]:
    """Derived images, and what says what was found: one fault in any of it stops the job."""
    if ObjectKind.IMAGE in kinds:
        yield from _images(source, result, context)
    if not result.reported:
        return
    whole = counted_through(source, result)
    shared = list(_shared(source, whole, context, kinds, replaces))
    flavours = [Flavour.BINARY, *([Flavour.LABELMAP] if labelmap else [])]
    if not placed or not result.segmentations:
        flavours = [Flavour.ANY]
    for flavour in flavours:
        variant = replace(context, variant=flavour.value) if flavour is Flavour.LABELMAP else context
        before = replaces.get((ObjectKind.REPORT, flavour), ())
        made = [*_referring(source, result, variant, kinds, flavour, before), *shared]
        if ObjectKind.KEY_IMAGES in kinds:
            made += _key_images(source, whole, variant, flavour, made)
        check_objects([one.dataset for one in made], source, result)
        yield from made
        shared = []


def _beside(
    source: Source,
    result: Result,
    context: EncodeContext,
    kinds: Collection[ObjectKind],
    *,
    placed: bool,
    replaces: Replaced,
    say: Say,
) -> Iterator[tuple[str, Iterator[Encoded]]]:
    """What only a profile that names it gets, and nothing refers to: in words, and its objects."""
    if ObjectKind.PARAMETRIC_MAP in kinds:
        yield "parametric maps", _maps(source, result, context)
    if ObjectKind.PRESENTATION in kinds and result.reported:
        yield "presentation states", _presentations(source, result, context)
    if ObjectKind.PHASES in kinds and result.reported and placed:
        before = replaces.get((ObjectKind.PHASES, Flavour.ANY), ())
        none = without_phases(source, result)
        if none and isinstance(source, CineSource):
            say(f"No copies of phases were made: {none}")
        yield "copies of the segmented phases", _phases(source, result, context, before)


def _phases(source: Source, result: Result, context: EncodeContext, replaces: Sequence[Document]) -> Iterator[Encoded]:
    first = context.series_number + _SERIES[ObjectKind.PHASES]
    for role, index, ds in encode_phases(source, result, context, series_number=first, replaces=replaces):
        yield Encoded(dataset=ds, role=role, index=index, kind=ObjectKind.PHASES)


def _images(source: Source, result: Result, context: EncodeContext) -> Iterator[Encoded]:
    """Derived series, plane by plane: they are many, and `encode.image` checks each against its source."""
    for number, image in enumerate(result.images):
        numbered = replace(context, series_number=context.series_number + number)
        for index, dataset in enumerate(encode_images(source, Result(images=(image,)), numbered)):
            if index == 0:
                check_objects([dataset], source, result)  # the module tables say the same of every plane
            yield Encoded(dataset=dataset, role=image.role, index=index, kind=ObjectKind.IMAGE)


def _maps(source: Source, result: Result, context: EncodeContext) -> Iterator[Encoded]:
    """Parametric maps: nothing refers to them, and they refer to the source alone."""
    first = context.series_number + _SERIES[ObjectKind.PARAMETRIC_MAP]
    for number, one in enumerate(result.parametric_maps, first):
        ds = encode_parametric_map(at_phase(source, one.phase), one, context, series_number=number)
        check_objects([ds], source, result)
        yield Encoded(dataset=ds, role=one.role, index=0, kind=ObjectKind.PARAMETRIC_MAP)


def _presentations(source: Source, result: Result, context: EncodeContext) -> Iterator[Encoded]:
    """Presentation states: they refer to the source alone, each in a series of its own."""
    number = context.series_number + _SERIES[ObjectKind.PRESENTATION]
    whole = counted_through(source, result)
    states = encode_presentations(source, whole, context, series_number=number)
    check_objects([state for _, state in states], source, result)
    for role, state in states:
        yield Encoded(dataset=state, role=role, index=0, kind=ObjectKind.PRESENTATION)


def _reconstructions(
    source: RawSource, result: Result, context: EncodeContext, *, enhanced: bool, say: Say
) -> Iterator[Encoded]:
    """Series computed from k-space: whole where that is wanted, and plane by plane (`encode.mr` checks each).

    A series that cannot be written whole goes plane by plane to everybody.
    """
    for number, made in enumerate(result.reconstructions):
        numbered = replace(context, series_number=context.series_number + number)
        whole = None
        if enhanced:
            what = f"Enhanced MR of {made.label}, sent as single images"
            series_uid = str(source.headers[0].SeriesInstanceUID)
            whole = all_or_none(_whole(source, made, result, numbered), what, series_uid, say)
        flavour = Flavour.SINGLE if whole else Flavour.ANY
        for index, dataset in enumerate(encode_reconstruction(source, made, numbered)):
            if index == 0:
                check_objects([dataset], source, result)  # the module tables say the same of every plane
            yield Encoded(dataset=dataset, role=made.role, index=index, kind=ObjectKind.IMAGE, flavour=flavour)
        yield from whole or ()


def _whole(source: RawSource, made: Reconstruction, result: Result, context: EncodeContext) -> Iterator[Encoded]:
    """One series as Enhanced MR."""
    number = context.series_number + _ENHANCED_SERIES
    varied = replace(context, series_number=number, variant=Flavour.ENHANCED.value)
    for index, dataset in enumerate(encode_enhanced(source, made, varied)):
        check_objects([dataset], source, result)
        yield Encoded(dataset=dataset, role=made.role, index=index, kind=ObjectKind.IMAGE, flavour=Flavour.ENHANCED)


def _shared(
    source: Source,
    result: Result,
    context: EncodeContext,
    kinds: Collection[ObjectKind],
    replaces: Replaced,
) -> Iterator[Encoded]:
    """What refers to the source alone and is the same for every destination: summary page and marks."""
    first = context.series_number
    if ObjectKind.SUMMARY in kinds:
        page = encode_summary(source, result, context, series_number=first + _SERIES[ObjectKind.SUMMARY])
        if page is not None:
            yield Encoded(dataset=page, role="summary", index=0, kind=ObjectKind.SUMMARY)
    if ObjectKind.MARKS in kinds:
        number, marked = first + _SERIES[ObjectKind.MARKS], replaces.get((ObjectKind.MARKS, Flavour.ANY), ())
        marks = encode_marks(source, result, context, series_number=number, replaces=marked)
        if marks is not None:
            yield Encoded(dataset=marks, role="marks", index=0, kind=ObjectKind.MARKS)


def _referring(
    source: Source,
    result: Result,
    context: EncodeContext,
    kinds: Collection[ObjectKind],
    flavour: Flavour,
    replaces: Sequence[Document],
) -> Iterator[Encoded]:
    """Segmentations in one flavour, then the reports that refer to them."""
    first = context.series_number + (_LABELMAP_SERIES if flavour is Flavour.LABELMAP else 0)
    segs: dict[str, Dataset] = {}
    # One flavour of segmentations at a time; in none of them there is nothing to write (`left_out`).
    if flavour is not Flavour.ANY and {ObjectKind.SEGMENTATION, ObjectKind.REPORT} & set(kinds):
        for number, segmentation in enumerate(result.segmentations, first + _SERIES[ObjectKind.SEGMENTATION]):
            label_map = flavour is Flavour.LABELMAP
            at = at_phase(source, segmentation.phase)
            seg = encode_segmentation(at, segmentation, context, series_number=number, labelmap=label_map)
            segs[segmentation.role] = seg
            yield Encoded(dataset=seg, role=segmentation.role, index=0, kind=ObjectKind.SEGMENTATION, flavour=flavour)
    if ObjectKind.REPORT in kinds:
        number = first + _SERIES[ObjectKind.REPORT]
        whole = counted_through(source, result)
        for role, report in encode_reports(source, whole, context, series_number=number, segs=segs, replaces=replaces):
            yield Encoded(dataset=report, role=role, index=0, kind=ObjectKind.REPORT, flavour=flavour)


def _key_images(
    source: Source, result: Result, context: EncodeContext, flavour: Flavour, made: Sequence[Encoded]
) -> Iterator[Encoded]:
    number = context.series_number + _SERIES[ObjectKind.KEY_IMAGES]
    if flavour is Flavour.LABELMAP:
        number += _LABELMAP_SERIES
    pointed = [one.dataset for one in made if one.kind in (ObjectKind.SEGMENTATION, ObjectKind.REPORT)]
    keys = encode_key_images(source, result, context, series_number=number, objects=pointed)
    if keys is not None:
        yield Encoded(dataset=keys, role="key-images", index=0, kind=ObjectKind.KEY_IMAGES, flavour=flavour)
