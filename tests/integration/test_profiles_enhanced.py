"""Series from k-space as destinations want them: an object a plane, or Enhanced MR, or the one instead of the other."""

from __future__ import annotations

import pytest
from pydicom.uid import EnhancedMRImageStorage, MRImageStorage

from dicomnode.config import Config
from dicomnode.dispatch.outbox import Outbox
from dicomnode.domain import Flavour, ObjectKind
from dicomnode.store import events
from tests.factories import mr_series
from tests.integration.test_dispatch_outbox import Clock
from tests.peers.pacs import Pacs
from tests.peers.results import job_state, open_migrated, rows, states, store_job

#: A job as it is rendered where somebody wants Enhanced MR: a concatenation of two, and the planes.
JOB = (
    (MRImageStorage, Flavour.SINGLE),
    (MRImageStorage, Flavour.SINGLE),
    (MRImageStorage, Flavour.SINGLE),
    (EnhancedMRImageStorage, Flavour.ENHANCED),
    (EnhancedMRImageStorage, Flavour.ENHANCED),
)


class Rig:
    """A node's outbox with one destination."""

    def __init__(self, folder, pacs, **profile):
        self.pacs, self.clock, self.database = pacs, Clock(), open_migrated(folder)
        one = {"ae_title": "PACS", "host": "127.0.0.1", "port": pacs.port, "timeout": 5, **profile}
        config = Config.model_validate({"destinations": {"pacs": one}})
        self.outbox = Outbox(config, self.database, self.clock, jitter=lambda: 0.0)
        objects = mr_series(n=len(JOB))
        for ds, (sop_class, _) in zip(objects, JOB, strict=True):
            ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = sop_class
        kinds = [(ObjectKind.IMAGE, flavour) for _, flavour in JOB]

        def takes(name, output):
            return config.destinations[name].takes(output.kind, output.flavour)

        self.job_id = store_job(self.database, folder, objects, ["pacs"], self.clock.now, kinds, takes)

    def step(self):
        self.outbox.lanes[0].step()

    @property
    def received(self):
        return [one.sop_class_uid for one in self.pacs.received if one.status == 0]


@pytest.fixture
def rig(tmp_path):
    made = []

    def new(refuse=(), **profile):
        pacs = Pacs(tmp_path / "pacs", refuse=refuse)
        pacs.start()
        made.append(Rig(tmp_path / "node", pacs, **profile))
        return made[-1]

    yield new
    for one in made:
        one.outbox.stop()
        one.database.close()
        one.pacs.stop()


@pytest.mark.parametrize(
    ("profile", "sent"),
    [({}, [MRImageStorage] * 3), ({"reconstructions": "enhanced"}, [EnhancedMRImageStorage] * 2)],
)
def test_a_destination_gets_the_form_of_its_profile(rig, profile, sent):
    one = rig(**profile)
    one.step()
    assert one.received == sent and job_state(one.database, one.job_id) == "closed"


def test_where_enhanced_mr_is_refused_the_planes_go_instead(rig):
    one = rig(refuse=(EnhancedMRImageStorage,), reconstructions="enhanced")
    one.step()
    assert one.received == [] and sorted(states(one.database)) == ["cancelled"] * 2 + ["pending"] * 3
    one.step()
    assert one.received == [MRImageStorage] * 3 and job_state(one.database, one.job_id) == "closed"
    assert [row.flavour for row in rows(one.database) if row.state == "delivered"] == ["single"] * 3
    with one.database.read() as connection:
        told = [event for event in events.of(connection, job_id=one.job_id) if event.action == "delivery_fell_back"]
    assert len(told) == 1 and "the single-frame series goes instead" in told[0].text


def test_a_destination_that_refuses_both_forms_leaves_the_job_open_for_a_person(rig):
    one = rig(refuse=(EnhancedMRImageStorage, MRImageStorage), reconstructions="enhanced")
    one.step()
    one.step()
    assert sorted(states(one.database)) == ["cancelled"] * 2 + ["dead"] * 3
    assert job_state(one.database, one.job_id) == "stored"
