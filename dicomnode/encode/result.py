"""Everything one result becomes, in the order in which it is sent: what others refer to comes first."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from pydicom import Dataset

from dicomnode.domain import Flavour, ObjectKind
from dicomnode.encode.identity import EncodeContext
from dicomnode.encode.image import encode_images
from dicomnode.encode.source import Source
from dicomnode.pipeline import Result

#: SeriesNumber of the first object of each kind, counted from the job's own.
_SERIES: Final = {
    ObjectKind.SEGMENTATION: 20,
    ObjectKind.SUMMARY: 40,
    ObjectKind.REPORT: 50,
    ObjectKind.MARKS: 60,
    ObjectKind.KEY_IMAGES: 70,
}
#: Further on by this: the LABELMAP flavour.
_LABELMAP_SERIES: Final = 5
#: A document that an earlier result consists of: study, series, SOP class and SOP instance UID.
Document = tuple[str, str, str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """One object and what it is for."""

    dataset: Dataset
    role: str
    index: int
    kind: ObjectKind
    flavour: Flavour = Flavour.ANY


def encode_result(
    source: Source,
    result: Result,
    context: EncodeContext,
    *,
    kinds: Collection[ObjectKind] = tuple(ObjectKind),
    labelmap: bool = False,
    replaces: Sequence[Document] = (),
) -> Iterator[Encoded]:
    """Objects of ``result``, each checked before it is given out (the conformance gate).

    Parameters
    ----------
    kinds
        What some destination takes.
    labelmap
        Also make the LABELMAP flavour of segmentations, and of what refers to them.
    replaces
        Reports of the earlier result that this one supersedes.

    Raises
    ------
    EncodingError
        Names the object and every fault.
    """
    if ObjectKind.IMAGE in kinds:
        yield from _images(source, result, context)


def _images(source: Source, result: Result, context: EncodeContext) -> Iterator[Encoded]:
    """Derived series, plane by plane: they are many, and `encode.image` checks each against its source."""
    for number, image in enumerate(result.images):
        numbered = replace(context, series_number=context.series_number + number)
        for index, dataset in enumerate(encode_images(source, Result(images=(image,)), numbered)):
            yield Encoded(dataset=dataset, role=image.role, index=index, kind=ObjectKind.IMAGE)
