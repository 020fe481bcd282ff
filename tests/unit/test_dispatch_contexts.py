from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    MRImageStorage,
)
from pynetdicom.presentation import PresentationContext, build_context

from dicomnode.dispatch import contexts
from dicomnode.dispatch.files import File


def file(sop_class: str = CTImageStorage, syntax: str = ExplicitVRLittleEndian) -> File:
    return File(path=Path("x"), sop_class_uid=sop_class, sop_instance_uid="1.2", transfer_syntax_uid=syntax, offset=0)


def accepted(*pairs: tuple[str, str]) -> list[PresentationContext]:
    found = []
    for number, (sop_class, syntax) in enumerate(pairs):
        context = build_context(sop_class, syntax)
        context.context_id = 2 * number + 1
        found.append(context)
    return found


def test_each_pair_is_proposed_in_its_own_syntax_and_plain_ones_have_an_alternative():
    proposed = contexts.propose([file(), file(), file(MRImageStorage, JPEG2000Lossless)])
    assert [(c.abstract_syntax, c.transfer_syntax) for c in proposed] == [
        (CTImageStorage, [ExplicitVRLittleEndian]),
        (CTImageStorage, [ImplicitVRLittleEndian]),
        (MRImageStorage, [JPEG2000Lossless]),
    ]


def test_two_plain_syntaxes_are_each_others_alternative():
    proposed = contexts.propose([file(), file(syntax=ImplicitVRLittleEndian)])
    assert [c.transfer_syntax for c in proposed] == [[ExplicitVRLittleEndian], [ImplicitVRLittleEndian]]


@pytest.mark.parametrize(
    ("own", "peer_took", "chosen"),
    [
        (ExplicitVRLittleEndian, (ImplicitVRLittleEndian, ExplicitVRLittleEndian), ExplicitVRLittleEndian),
        (ImplicitVRLittleEndian, (ImplicitVRLittleEndian, ExplicitVRLittleEndian), ImplicitVRLittleEndian),
        (ExplicitVRLittleEndian, (ImplicitVRLittleEndian,), ImplicitVRLittleEndian),
        (DeflatedExplicitVRLittleEndian, (ImplicitVRLittleEndian, ExplicitVRLittleEndian), ExplicitVRLittleEndian),
        (JPEG2000Lossless, (ImplicitVRLittleEndian, ExplicitVRLittleEndian), None),
        (ExplicitVRBigEndian, (ExplicitVRLittleEndian,), None),
        (ExplicitVRBigEndian, (ExplicitVRBigEndian,), ExplicitVRBigEndian),
    ],
)
def test_own_syntax_wins_and_only_plain_ones_are_rewritten(own, peer_took, chosen):
    found = contexts.choose(accepted(*((CTImageStorage, syntax) for syntax in peer_took)), file(syntax=own))
    assert (found[1] if found else None) == chosen


def test_a_context_of_another_class_carries_nothing():
    assert contexts.choose(accepted((MRImageStorage, ExplicitVRLittleEndian)), file()) is None


@given(
    st.lists(st.tuples(st.integers(1, 90), st.sampled_from([ExplicitVRLittleEndian, JPEG2000Lossless])), max_size=400)
)
def test_batches_keep_the_order_and_fit_an_association(pairs):
    files = [file(f"1.2.{number}", syntax) for number, syntax in pairs]
    parts = list(contexts.batches(files))
    assert [one for part in parts for one in part] == files
    assert all(0 < len(contexts.propose(part)) <= contexts.MAX_CONTEXTS for part in parts)
