"""What each destination is sent, and how: kinds, flavours, character set, transfer syntax."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import (
    ComprehensiveSRStorage,
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    KeyObjectSelectionDocumentStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from dicomnode.config import Config
from dicomnode.dispatch.outbox import Outbox
from dicomnode.domain import Flavour, ObjectKind
from dicomnode.store import deliveries, events
from tests.factories import ct_series
from tests.integration.test_dispatch_outbox import Clock
from tests.peers.pacs import Pacs
from tests.peers.results import job_state, open_migrated, rows, states, store_job

LABELMAP = "1.2.840.10008.5.1.4.1.1.66.7"
#: A job as it is rendered for a destination that wants label maps.
JOB = (
    (SegmentationStorage, ObjectKind.SEGMENTATION, Flavour.BINARY),
    (ComprehensiveSRStorage, ObjectKind.REPORT, Flavour.BINARY),
    (SecondaryCaptureImageStorage, ObjectKind.SUMMARY, Flavour.ANY),
    (LABELMAP, ObjectKind.SEGMENTATION, Flavour.LABELMAP),
    (ComprehensiveSRStorage, ObjectKind.REPORT, Flavour.LABELMAP),
    (KeyObjectSelectionDocumentStorage, ObjectKind.KEY_IMAGES, Flavour.LABELMAP),
)


class Rig:
    def __init__(self, folder, pacs, **profile):
        self.folder, self.pacs, self.clock = folder, pacs, Clock()
        self.database = open_migrated(folder)
        one = {"ae_title": "PACS", "host": "127.0.0.1", "port": pacs.port, "timeout": 5, **profile}
        config = Config.model_validate({"destinations": {"pacs": one}})
        self.outbox = Outbox(config, self.database, self.clock, jitter=lambda: 0.0)

    def job(self):
        objects = ct_series(n=len(JOB))
        for ds, (sop_class, *_) in zip(objects, JOB, strict=True):
            ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = sop_class
        kinds = [(kind, flavour) for _, kind, flavour in JOB]
        return store_job(self.database, self.folder, objects, ["pacs"], self.clock.now, kinds)

    def step(self):
        return self.outbox.lanes[0].step()


@pytest.fixture
def rig(tmp_path):
    made = []

    def new(pacs=None, **profile):
        pacs = pacs or Pacs(tmp_path / "pacs")
        pacs.start()
        rig = Rig(tmp_path / "node", pacs, **profile)
        made.append(rig)
        return rig

    yield new
    for one in made:
        one.outbox.stop()
        one.database.close()
        one.pacs.stop()


def received(rig):
    return [one.sop_class_uid for one in rig.pacs.received if one.status == 0]


def test_label_maps_go_where_they_are_taken(rig):
    rig = rig(segmentation="labelmap")
    job_id = rig.job()
    rig.step()
    assert received(rig) == [SecondaryCaptureImageStorage, LABELMAP, ComprehensiveSRStorage,
                             KeyObjectSelectionDocumentStorage]  # fmt: skip
    assert job_state(rig.database, job_id) == "closed"


def test_a_refused_label_map_is_replaced_by_the_binary_flavour_with_what_refers_to_it(rig, tmp_path):
    rig = rig(Pacs(tmp_path / "pacs", refuse=(LABELMAP,)), segmentation="labelmap")
    job_id = rig.job()
    rig.step()
    assert received(rig) == [SecondaryCaptureImageStorage]
    assert sorted(states(rig.database)) == ["cancelled"] * 3 + ["delivered"] + ["pending"] * 2
    rig.step()
    assert received(rig) == [SecondaryCaptureImageStorage, SegmentationStorage, ComprehensiveSRStorage]
    sent = [one for one in rows(rig.database) if one.state == "delivered"]
    assert [one.flavour for one in sent] == ["", "binary", "binary"]
    assert job_state(rig.database, job_id) == "closed"
    with rig.database.read() as connection:
        assert "delivery_fell_back" in [one.action for one in events.of(connection, job_id=job_id)]


def test_a_destination_that_refuses_everything_is_offered_the_binary_flavour_too(rig, tmp_path):
    classes = {sop_class for sop_class, *_ in JOB}
    rig = rig(Pacs(tmp_path / "pacs", refuse=classes), segmentation="labelmap")
    job_id = rig.job()
    rig.step()
    rig.step()
    found = {(one.kind, one.flavour): one.state for one in rows(rig.database)}
    assert found[ObjectKind.SEGMENTATION, Flavour.BINARY] == "dead"
    assert found[ObjectKind.REPORT, Flavour.BINARY] == "dead"
    assert found[ObjectKind.SUMMARY, Flavour.ANY] == "cancelled"
    assert job_state(rig.database, job_id) == "stored"  # an operator sees that something is missing
    with rig.database.write() as connection:
        assert deliveries.retry_dead(connection, job_id, rig.clock()) == 2


def test_an_archive_without_key_object_selections_gets_the_rest_and_the_job_closes(rig, tmp_path):
    rig = rig(Pacs(tmp_path / "pacs", refuse=(KeyObjectSelectionDocumentStorage,)), segmentation="labelmap")
    job_id = rig.job()
    rig.step()
    assert [one.state for one in rows(rig.database)][-1] == "cancelled"
    assert job_state(rig.database, job_id) == "closed"
    with rig.database.read() as connection:
        assert "delivery_skipped" in [one.action for one in events.of(connection, job_id=job_id)]


@pytest.mark.parametrize(
    ("wanted", "syntax"), [("implicit", ImplicitVRLittleEndian), ("deflated", DeflatedExplicitVRLittleEndian)]
)
def test_objects_arrive_in_the_transfer_syntax_of_the_profile_with_the_same_content(rig, wanted, syntax):
    rig = rig(transfer_syntax=wanted)
    [ds] = ct_series(n=1)
    store_job(rig.database, rig.folder, [ds], ["pacs"])
    rig.step()
    [one] = rig.pacs.received
    assert one.transfer_syntax_uid == syntax
    assert np.array_equal(dcmread(one.path).pixel_array, ds.pixel_array)


def test_a_preferred_syntax_the_peer_does_not_know_is_not_insisted_on(rig, tmp_path):
    rig = rig(Pacs(tmp_path / "pacs", syntaxes=[str(ImplicitVRLittleEndian)]), transfer_syntax="deflated")
    store_job(rig.database, rig.folder, ct_series(n=1), ["pacs"])
    rig.step()
    assert [one.transfer_syntax_uid for one in rig.pacs.received] == [ImplicitVRLittleEndian]


def unicode_series(name):
    [ds] = ct_series(n=1)
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.PatientName = name
    ds.StudyDescription = "Schädel"
    return ds


def test_text_arrives_in_the_character_set_of_the_profile(rig):
    rig = rig(character_set="ISO_IR 100")
    store_job(rig.database, rig.folder, [unicode_series("Müller^Jörg")], ["pacs"])
    rig.step()
    raw = rig.pacs.received[0].path.read_bytes()
    assert "Müller^Jörg".encode("latin-1") in raw
    assert "ü".encode() not in raw
    there = dcmread(rig.pacs.received[0].path)
    assert (there.SpecificCharacterSet, there.PatientName, there.StudyDescription) == (
        "ISO_IR 100", "Müller^Jörg", "Schädel",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("character_set", "name"),
    [("ISO_IR 100", "山田^太郎"), ("ISO_IR 13", "Yamada^Tarou=山田^太郎"), ("ISO_IR 6", "Müller^Jörg")],
)
def test_a_name_that_does_not_fit_the_character_set_is_never_sent_garbled(rig, character_set, name):
    rig, ds = rig(character_set=character_set), unicode_series(name)
    ds.StudyDescription = "CT"
    store_job(rig.database, rig.folder, [ds], ["pacs"])
    rig.step()
    assert rig.pacs.received == []
    [one] = rows(rig.database)
    assert one.state == "dead"
    assert f"PatientName cannot be written in {character_set}" in one.error
    assert name not in one.error


def test_half_width_katakana_arrive_in_the_character_set_of_old_japanese_archives(rig):
    rig = rig(character_set="ISO_IR 13")
    ds = unicode_series("ﾔﾏﾀﾞ^ﾀﾛｳ")
    ds.StudyDescription = "CT"
    store_job(rig.database, rig.folder, [ds], ["pacs"])
    rig.step()
    there = dcmread(rig.pacs.received[0].path)
    assert (there.SpecificCharacterSet, there.PatientName) == ("ISO_IR 13", "ﾔﾏﾀﾞ^ﾀﾛｳ")


def test_a_profile_names_kinds_that_exist(tmp_path):
    with pytest.raises(ValueError, match="segmentation"):
        Config.model_validate({"destinations": {"p": {"ae_title": "P", "host": "h", "objects": ["segmentations"]}}})
