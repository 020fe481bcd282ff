"""The streaming loop against pynetdicom's own: the same conversation must give the same answers and the same files."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import factories
from tests.peers.parrot import (
    EXPLICIT,
    IMPLICIT,
    Gone,
    Parrot,
    contexts_for,
    echo_rq,
    encoded,
    p_data,
    pdv,
    store_rq,
)
from tests.peers.receiving import Receiving, data_set_of

CT = "1.2.840.10008.5.1.4.1.1.2"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Receiving, Receiving]]:
    with (
        Receiving(tmp_path_factory.mktemp("streaming"), engine="streaming", durability="none") as streaming,
        Receiving(tmp_path_factory.mktemp("stock"), engine="stock", durability="none") as stock,
    ):
        yield streaming, stock


@dataclass(frozen=True)
class Script:
    """Bytes to send, cut into writes, and how many answers to expect if all of them arrive."""

    raw: bytes
    answers: int
    uids: tuple[str, ...]


def script(seed: int) -> Script:
    """A conversation of stores and echoes, whole and damaged, with PDVs and PDUs cut at random."""
    randomness = random.Random(seed)
    raw, answers, uids = b"", 0, []
    for number in range(randomness.randint(1, 5)):
        message = randomness.randint(0, 65535)
        if randomness.random() < 0.25:
            raw += _packed(randomness, _cut(randomness, 1, echo_rq(message), 3))
            answers += 1
            continue
        context = randomness.choice([3, 5])
        syntax = EXPLICIT if context == 3 else IMPLICIT
        [ds] = factories.ct_series(n=1, rows=randomness.choice([4, 16, 64]), series=f"{seed}-{number}")
        data = encoded(ds, syntax)
        kind = randomness.random()
        if kind < 0.1:
            data = data[: randomness.randrange(1, len(data))]
        elif kind < 0.2:
            data += bytes(randomness.randint(1, 40))
        elif kind < 0.25:
            data = randomness.randbytes(300)
        command = store_rq(message, CT, str(ds.SOPInstanceUID))
        pdvs = [*_cut(randomness, context, command, 3), *_cut(randomness, context, data, 2)]
        raw += _packed(randomness, pdvs)
        answers += 1
        uids.append(str(ds.SOPInstanceUID))
    return Script(raw, answers, tuple(uids))


def _cut(randomness: random.Random, context: int, payload: bytes, last: int) -> list[bytes]:
    size = randomness.choice([7, 100, 1000, 16000, 100_000])
    if len(payload) // size > 300:
        size = len(payload) // 300
    pieces = [payload[start : start + size] for start in range(0, len(payload), size)]
    return [pdv(context, last if n == len(pieces) - 1 else last & 1, piece) for n, piece in enumerate(pieces)]


def _packed(randomness: random.Random, pdvs: list[bytes]) -> bytes:
    """Several PDVs a PDU, now and then."""
    out, waiting = b"", []
    for one in pdvs:
        waiting.append(one)
        if randomness.random() < 0.6 or sum(map(len, waiting)) > 100_000:
            out += p_data(*waiting)
            waiting = []
    return out + (p_data(*waiting) if waiting else b"")


def converse(node: Receiving, played: Script, cut_at: int | None, seed: int) -> list[tuple[int, int, int, int]]:
    """Play a script; stop and abort after ``cut_at`` bytes. Return the answers."""
    randomness = random.Random(seed)
    contexts = {**contexts_for([]), 3: (CT, [EXPLICIT]), 5: (CT, [IMPLICIT])}
    parrot = Parrot.associated(node.port, contexts)
    raw = played.raw if cut_at is None else played.raw[:cut_at]
    answers = []
    position = 0
    while position < len(raw):
        size = randomness.choice([1, 5, 200, 5000, 70_000, 300_000])
        parrot.send(raw[position : position + size])
        position += size
    if cut_at is None:
        for _ in range(played.answers):
            answer = parrot.response()
            answers.append((answer.context, answer.field, answer.message_id, answer.status))
        parrot.release()
    else:
        parrot.abort()
    node.idle()
    return answers


@given(st.integers(0, 2**32))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_both_engines_answer_and_keep_the_same(both: tuple[Receiving, Receiving], seed: int) -> None:
    played = script(seed)
    first, second = (converse(node, played, None, seed) for node in both)
    assert first == second
    for uid in played.uids:
        kept = [node.stored().get(uid) for node in both]
        assert (kept[0] is None) == (kept[1] is None)
        if kept[0] and kept[1]:
            assert kept[0].read_bytes() == kept[1].read_bytes()
    assert both[0].quarantined() == both[1].quarantined()
    assert all(node.incoming() == [] for node in both)


@given(st.integers(0, 2**32), st.floats(0, 1))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_abort_at_any_byte_leaves_whole_objects_or_nothing(
    both: tuple[Receiving, Receiving], seed: int, where: float
) -> None:
    played = script(seed)
    cut_at = int(where * len(played.raw))
    for node in both:
        converse(node, played, cut_at, seed)
        assert node.incoming() == []
    for uid, path in both[0].stored().items():
        twin = both[1].stored().get(uid)
        if twin is not None:
            assert data_set_of(path) == data_set_of(twin)


def test_the_whole_conversation_may_come_in_one_piece_or_byte_by_byte(both: tuple[Receiving, Receiving]) -> None:
    [ds] = factories.ct_series(n=1, rows=4, columns=4, series="bytes")
    raw = p_data(*_cut(random.Random(0), 3, store_rq(7, CT, str(ds.SOPInstanceUID)), 3)) + p_data(
        pdv(3, 2, encoded(ds))
    )
    for node in both:
        with Parrot.associated(node.port, contexts_for([ds])) as parrot:
            for byte in raw:
                parrot.send(bytes([byte]))
            assert parrot.response().status == 0
    streamed, stocked = (node.stored()[ds.SOPInstanceUID] for node in both)
    assert streamed.read_bytes() == stocked.read_bytes()


def test_storing_goes_on_in_the_library_after_a_service_that_only_it_knows(both: tuple[Receiving, Receiving]) -> None:
    statuses = []
    for node in both:
        first, second = factories.ct_series(n=2, series="handed over")
        with Parrot.associated(node.port, contexts_for([first])) as parrot:
            assert parrot.store_dataset(3, first) == 0
            cancel = store_rq(3, CT, "").replace(b"\0\0\0\1\2\0\0\0\1\0", b"\0\0\0\1\2\0\0\0\xff\x0f")
            parrot.send(p_data(pdv(3, 3, cancel.replace(b"\0\0\0\x08\2\0\0\0\1\0", b"\0\0\0\x08\2\0\0\0\1\1"))))
            try:
                statuses.append(parrot.store_dataset(3, second))
            except Gone:
                statuses.append(None)
    assert statuses == [0, 0]
