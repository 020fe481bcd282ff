"""The outbox against the in-process PACS. Rounds are driven by hand (`Lane.step`) under a clock that stands still."""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from pathlib import Path

import pytest
from pydicom.uid import CTImageStorage, MRImageStorage
from sqlalchemy.exc import OperationalError

from dicomnode.config import Config
from dicomnode.dispatch import outbox
from dicomnode.dispatch.outbox import Outbox, backoff
from dicomnode.domain import DeliveryState
from dicomnode.store import deliveries, events
from tests.factories import ct_series
from tests.peers.pacs import Pacs, wait_until
from tests.peers.results import START, job_state, open_migrated, rows, states, store_job


class Clock:
    def __init__(self):
        self.now = START

    def __call__(self):
        return self.now

    def pass_(self, seconds):
        self.now += timedelta(seconds=seconds)


def config(timeout=2, **ports):
    found = {
        name: {
            "ae_title": "PACS",
            "host": "127.0.0.1",
            "port": port,
            "timeout": timeout,
            "backoff_s": 10,
            "max_attempts": 3,
        }
        for name, port in ports.items()
    }
    return Config.model_validate({"destinations": found})


class Rig:
    """A database, a clock and a PACS; `outbox` is made on demand so that tests can restart it."""

    def __init__(self, folder: Path, pacs: Pacs, **more: int):
        self.folder, self.pacs, self.more = folder, pacs, more
        self.clock = Clock()
        self.database = open_migrated(folder)
        self.outbox = self.new()

    def new(self):
        return Outbox(config(pacs=self.pacs.port, **self.more), self.database, self.clock, jitter=lambda: 0.0)

    def store(self, datasets, send_to=("pacs",)):
        return store_job(self.database, self.folder, datasets, send_to, self.clock.now)

    def step(self, lane=0):
        return self.outbox.lanes[lane].step()

    def states(self, destination=None):
        return states(self.database, destination)

    def rows(self):
        return rows(self.database)


@pytest.fixture
def pacs(tmp_path):
    with Pacs(tmp_path / "pacs") as pacs:
        yield pacs


@pytest.fixture
def rig(tmp_path, pacs):
    rig = Rig(tmp_path / "node", pacs)
    yield rig
    rig.outbox.stop()
    rig.database.close()


def test_a_job_is_closed_when_its_last_object_was_accepted(rig):
    series = ct_series(n=5)
    job_id = rig.store(series)
    assert rig.step() == 0
    assert rig.states() == ["delivered"] * 5
    assert rig.pacs.uids == [ds.SOPInstanceUID for ds in series]
    assert rig.pacs.associations == rig.pacs.releases == 1
    assert job_state(rig.database, job_id) == "closed"
    assert [one.attempt for one in rig.rows()] == [1] * 5


def test_out_of_resources_is_tried_again_and_holds_back_the_rest_of_its_study_only(rig):
    series, other = ct_series(n=3), ct_series(n=2, study="other", series="other")
    rig.store(series)
    rig.store(other)
    rig.pacs.script(0x0000, 0xA700)
    rig.step()
    assert rig.states() == ["delivered", "pending", "pending", "delivered", "delivered"]
    assert rig.rows()[1].status == 0xA700
    assert "out of resources" in rig.rows()[1].error
    assert rig.step() > 0
    rig.clock.pass_(10)
    rig.step()
    assert rig.states() == ["delivered"] * 5
    order = [uid for uid in rig.pacs.uids if uid in {ds.SOPInstanceUID for ds in series}]
    assert order == [ds.SOPInstanceUID for ds in series]


def test_out_of_resources_too_often_ends_dead_and_can_be_retried(rig):
    job_id = rig.store(ct_series(n=1))
    rig.pacs.script(0xA700, 0xA700, 0xA702)
    for _ in range(3):
        rig.step()
        rig.clock.pass_(1000)
    assert rig.states() == ["dead"]
    assert job_state(rig.database, job_id) == "stored"
    with rig.database.write() as connection:
        assert deliveries.retry_dead(connection, job_id, rig.clock()) == 1
    rig.step()
    assert rig.states() == ["delivered"]
    assert job_state(rig.database, job_id) == "closed"


@pytest.mark.parametrize("status", [0xA900, 0xC000, 0x0122, 0x0110])
def test_a_refusal_for_good_sets_that_object_aside_and_the_others_go_on(rig, status, caplog):
    caplog.set_level(logging.INFO)
    series = ct_series(n=3)
    job_id = rig.store(series)
    rig.pacs.status_of[series[1].SOPInstanceUID] = status
    rig.step()
    assert rig.states() == ["delivered", "dead", "delivered"]
    assert f"0x{status:04X}" in rig.rows()[1].error
    assert job_state(rig.database, job_id) == "stored"
    dead = [record for record in caplog.records if getattr(record, "action", "") == "object_dead"]
    assert [record.sop_instance_uid for record in dead] == [series[1].SOPInstanceUID]
    with rig.database.read() as connection:
        assert "delivery_dead" in [event.action for event in events.of(connection, job_id=job_id)]


@pytest.mark.parametrize("status", [0xB000, 0xB006, 0xB007])
def test_a_warning_is_a_delivery_with_a_remark(rig, status):
    job_id = rig.store(ct_series(n=1))
    rig.pacs.script(status)
    rig.step()
    assert rig.states() == ["delivered"]
    assert f"0x{status:04X}" in rig.rows()[0].error
    assert job_state(rig.database, job_id) == "closed"
    with rig.database.read() as connection:
        assert "delivery_remark" in [event.action for event in events.of(connection, job_id=job_id)]


def test_what_the_pacs_has_already_counts_as_delivered(rig):
    rig.store(ct_series(n=1))
    rig.pacs.script(0x0111)
    rig.step()
    assert rig.states() == ["delivered"]


def test_not_authorized_stops_the_destination_not_the_objects(rig):
    rig.store(ct_series(n=3))
    rig.store(ct_series(n=1, study="other", series="other"))
    rig.pacs.script(0x0124)
    rig.step()
    assert rig.states() == ["pending"] * 4
    assert len(rig.pacs.received) == 1
    assert rig.step() > 0
    rig.clock.pass_(900)
    rig.step()
    assert rig.states() == ["delivered"] * 4


def test_a_refused_context_sets_aside_what_needs_it_and_nothing_else(rig):
    rig.pacs.stop()
    rig.pacs.refuse = [MRImageStorage]
    rig.pacs.start()
    series = ct_series(n=3)
    series[1].SOPClassUID = series[1].file_meta.MediaStorageSOPClassUID = MRImageStorage
    rig.store(series)
    rig.step()
    assert rig.states() == ["delivered", "dead", "delivered"]
    assert "does not accept MR Image Storage" in rig.rows()[1].error


def test_every_context_refused_is_about_the_objects_too(rig):
    rig.pacs.stop()
    rig.pacs.refuse = [CTImageStorage]
    rig.pacs.start()
    rig.store(ct_series(n=2))
    rig.step()
    assert rig.states() == ["dead", "dead"]


def test_a_peer_that_is_down_for_a_weekend_kills_nothing(rig, caplog):
    caplog.set_level(logging.INFO)
    rig.store(ct_series(n=2))
    rig.pacs.stop()
    steps = 0
    end = rig.clock.now + timedelta(days=2.5)
    while rig.clock.now < end:
        wait = rig.step()
        if wait == 0:
            steps += 1
        rig.clock.pass_(max(wait, 7200))
    assert steps > 20
    assert rig.states() == ["pending", "pending"]
    assert [one.attempt for one in rig.rows()] == [0, 0]
    assert "not reachable" in rig.rows()[0].error
    rig.pacs.start()
    rig.clock.pass_(900)
    rig.step()
    assert rig.states() == ["delivered", "delivered"]
    actions = [getattr(record, "action", "") for record in caplog.records]
    assert "destination_down" in actions
    assert "destination_back" in actions


def test_a_rejected_association_is_tried_again(rig):
    rig.store(ct_series(n=1))
    rig.pacs.reject = True
    rig.step()
    assert rig.states() == ["pending"]
    assert "rejected the association" in rig.rows()[0].error
    rig.pacs.reject = False
    rig.clock.pass_(10)
    rig.step()
    assert rig.states() == ["delivered"]


def test_an_abort_in_the_middle_loses_nothing_and_burns_nothing(rig):
    series = ct_series(n=9)
    rig.store(series)
    rig.pacs.abort_after = 4
    for _ in range(3):
        rig.step()
        rig.clock.pass_(100)
    assert rig.states() == ["delivered"] * 9
    assert rig.pacs.uids == [ds.SOPInstanceUID for ds in series]


def test_an_object_that_kills_the_peer_dies_and_blocks_nobody(rig):
    poison = ct_series(n=1, study="poison", series="poison")
    good = [ct_series(n=2, study=f"s{i}", series=f"s{i}") for i in range(3)]

    def peer(item):
        if item.sop_instance_uid == poison[0].SOPInstanceUID:
            for assoc in rig.pacs._server.ae.active_associations:
                assoc.abort()

    rig.pacs.on_store = peer
    rig.store(poison)
    for series in good:
        rig.store(series)
    for _ in range(12):
        rig.step()
        rig.clock.pass_(1000)
        rig.store(ct_series(n=1, study=f"t{_}", series=f"t{_}"))
    found = rig.rows()
    assert found[0].state is DeliveryState.DEAD
    assert found[0].attempt == 3
    assert all(one.state is DeliveryState.DELIVERED for one in found[1:-1])


def test_a_peer_that_dies_by_itself_kills_no_object(rig):
    rig.store(ct_series(n=1))
    rig.pacs.abort_after = 1
    for _ in range(20):
        rig.step()
        rig.clock.pass_(1000)
    assert rig.states() == ["pending"]


def test_a_missing_result_file_is_set_aside_with_its_name(rig):
    rig.store(ct_series(n=3))
    rig.rows()[1].path.unlink()
    rig.step()
    assert rig.states() == ["delivered", "dead", "delivered"]
    assert "00001.dcm" in rig.rows()[1].error


def test_two_destinations_one_down_both_as_fast_as_they_can(tmp_path, pacs):
    rig = Rig(tmp_path / "node", pacs, down=1)
    rig.outbox = Outbox(rig.outbox.config, rig.database)  # the real clock
    job_id = store_job(rig.database, rig.folder, ct_series(n=5), ["pacs", "down"])
    rig.outbox.start()
    try:
        pacs.wait_for(5)
        wait_until(lambda: rig.states("pacs") == ["delivered"] * 5)
        # Between two calls the objects are pending again.
        wait_until(lambda: rig.states("down") == ["pending"] * 5)
    finally:
        rig.outbox.stop()
    assert rig.states("down") == ["pending"] * 5
    assert job_state(rig.database, job_id) == "stored"
    rig.database.close()


def test_a_wake_sends_at_once(rig):
    rig.outbox = Outbox(rig.outbox.config, rig.database)
    rig.outbox.start()
    try:
        rig.store(ct_series(n=2))
        rig.outbox.wake()
        rig.pacs.wait_for(2, timeout=1.5)
    finally:
        rig.outbox.stop()


def test_stop_ends_after_the_object_that_is_on_its_way(rig):
    rig.pacs.sleep = 0.3
    rig.store(ct_series(n=50))
    rig.outbox = Outbox(rig.outbox.config, rig.database)
    rig.outbox.start()
    rig.pacs.wait_for(1)
    rig.outbox.stop()
    found = rig.states()
    assert "sending" not in found
    assert found.count("delivered") == len(rig.pacs.uids) < 10
    assert not [lane for lane in rig.outbox.lanes if lane.rounds.alive]


def test_stop_cuts_off_a_peer_that_holds_it(rig, monkeypatch):
    monkeypatch.setattr(outbox, "_GRACE_S", 0.3)
    rig.pacs.sleep = 60
    rig.store(ct_series(n=3))
    rig.outbox = Outbox(config(pacs=rig.pacs.port, timeout=50), rig.database)
    rig.outbox.start()
    wait_until(lambda: len(rig.pacs.received) == 1)
    began = time.monotonic()
    rig.outbox.stop()
    assert time.monotonic() - began < 5
    assert rig.states() == ["pending"] * 3


def test_what_a_crash_left_in_sending_is_put_back_at_start(rig):
    rig.store(ct_series(n=2))
    with rig.database.write() as connection:
        deliveries.start(connection, deliveries.due(connection, "pacs", rig.clock()), rig.clock())
    assert rig.states() == ["sending"] * 2
    rig.outbox = Outbox(rig.outbox.config, rig.database)
    rig.outbox.start()
    try:
        rig.pacs.wait_for(2)
    finally:
        rig.outbox.stop()
    assert rig.states() == ["delivered"] * 2


def test_a_destination_that_left_the_configuration_is_named(rig, caplog):
    store_job(rig.database, rig.folder, ct_series(n=2), ["gone"])
    rig.outbox.start()
    rig.outbox.stop()
    found = [record for record in caplog.records if getattr(record, "action", "") == "destination_unknown"]
    assert [(record.destination, record.objects) for record in found] == [("gone", 2)]


def test_the_order_of_a_study_is_that_of_its_rows_through_every_mishap(rig):
    series = ct_series(n=30)
    rig.store(series)
    rig.pacs.abort_after = 7
    for number in range(12):
        if number % 2:
            rig.pacs.script(0x0000, 0xA700)
        rig.step()
        rig.clock.pass_(1000)
    assert rig.states() == ["delivered"] * 30
    seen = list(dict.fromkeys(rig.pacs.uids))
    assert seen == [ds.SOPInstanceUID for ds in series]


def test_a_hundred_pending_objects_of_a_down_destination_cost_one_call(rig):
    rig.store(ct_series(n=100))
    rig.pacs.stop()
    rig.step()
    assert rig.step() > 0
    assert rig.states() == ["pending"] * 100


def test_backoff_doubles_up_to_its_cap_and_never_overflows():
    destination = config(pacs=1).destinations["pacs"]
    pauses = [backoff(destination, failures, 0.0).total_seconds() for failures in (1, 2, 3, 100, 10**6)]
    assert pauses == [10, 20, 40, 900, 900]
    assert backoff(destination, 1, 1.0).total_seconds() == 5


def test_however_long_the_database_is_away_the_lane_goes_on_when_it_is_back(rig, monkeypatch):
    """A night of it: one try a second, none of which may cost anything that the next one lacks."""
    lane, tries = rig.outbox.lanes[0], []
    back = rig.database.write

    def write():
        tries.append(1)
        if len(tries) <= 5000:
            raise OperationalError("begin", None, Exception("no answer"))
        return back()

    monkeypatch.setattr(rig.database, "write", write)
    monkeypatch.setattr(lane.rounds, "sleep", lambda seconds: False)
    assert lane._recover() > 0
    assert len(tries) == 5001
