"""The outbox against Orthanc and DCMTK's storescp: what a fake peer might get wrong in our favour."""

from __future__ import annotations

import pytest
from pydicom.uid import MRImageStorage

from dicomnode.config import Config, Destination, Query
from dicomnode.dispatch import Outbox, count_instances, echo, send_files
from dicomnode.dispatch.scu import Engine
from tests.factories import ct_series, write_series
from tests.peers.dcmtk import StoreSCP
from tests.peers.orthanc import Orthanc
from tests.peers.pacs import wait_until
from tests.peers.results import job_state, open_migrated, states, store_job

LABEL_MAP_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.7"


def destination(peer, **more):
    return Destination(ae_title=peer.ae_title, host="127.0.0.1", port=peer.port, **{"timeout": 5, **more})


class Running:
    """An outbox at work, with the real clock and short pauses."""

    def __init__(self, folder, **destinations):
        found = {
            name: {
                "ae_title": ae,
                "host": "127.0.0.1",
                "port": port,
                "timeout": 5,
                "backoff_s": 0.2,
                "max_backoff_s": 1,
            }
            for name, (ae, port) in destinations.items()
        }
        self.folder = folder
        self.database = open_migrated(folder)
        self.outbox = Outbox(Config.model_validate({"destinations": found}), self.database)

    def __enter__(self):
        self.outbox.start()
        return self

    def __exit__(self, *_):
        self.outbox.stop()
        self.database.close()

    def store(self, datasets, *send_to):
        job_id = store_job(self.database, self.folder, datasets, send_to)
        self.outbox.wake()
        return job_id

    def wait(self, *wanted, name=None, timeout=60):
        wait_until(
            lambda: states(self.database, name) == list(wanted), timeout, f"{wanted}: {states(self.database, name)}"
        )


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory):
    with Orthanc(tmp_path_factory.mktemp("pacs")) as orthanc:
        yield orthanc


@pytest.mark.parametrize("engine", ["streaming", "stock"])
def test_orthanc_gets_every_pixel(orthanc, tmp_path, engine: Engine):
    series = ct_series(n=4, rows=300, columns=200, study=f"o-{engine}", series=f"o-{engine}")
    assert echo(destination(orthanc), "NODE") == ""
    outcomes = send_files(destination(orthanc), "NODE", write_series(tmp_path, series), engine=engine)
    assert all(one.delivered for one in outcomes), outcomes
    found = {ds.SOPInstanceUID: ds for ds in orthanc.datasets(series[0].SeriesInstanceUID)}
    assert {uid: ds.PixelData for uid, ds in found.items()} == {ds.SOPInstanceUID: ds.PixelData for ds in series}


def test_orthanc_counts_a_series(tmp_path):
    with Orthanc(tmp_path / "pacs", modalities={"node": ("NODE", 1)}) as orthanc:
        series = ct_series(n=7)
        send_files(destination(orthanc), "NODE", write_series(tmp_path / "series", series))
        query = Query(ae_title=orthanc.ae_title, host="127.0.0.1", port=orthanc.port)
        study, uid = series[0].StudyInstanceUID, series[0].SeriesInstanceUID
        assert count_instances(query, "NODE", study, uid) == 7
        assert count_instances(query, "NODE", study, "1.2.3") is None


def test_orthanc_refuses_a_label_map_and_takes_the_rest(orthanc, tmp_path):
    """Orthanc 1.10 does not know Label Map Segmentation; dcmsend would stop there and leave the rest behind."""
    series = ct_series(n=3, study="labelmap", series="labelmap")
    series[1].SOPClassUID = series[1].file_meta.MediaStorageSOPClassUID = LABEL_MAP_SEGMENTATION
    with Running(tmp_path, pacs=(orthanc.ae_title, orthanc.port)) as node:
        job_id = node.store(series, "pacs")
        node.wait("delivered", "dead", "delivered")
        assert job_state(node.database, job_id) == "stored"
    assert {series[0].SOPInstanceUID, series[2].SOPInstanceUID} <= orthanc.uids()


def test_orthanc_is_killed_in_the_middle_and_comes_back(tmp_path):
    series = ct_series(n=150, rows=128, columns=128)
    with Orthanc(tmp_path / "pacs") as orthanc, Running(tmp_path, pacs=(orthanc.ae_title, orthanc.port)) as node:
        job_id = node.store(series, "pacs")
        wait_until(lambda: states(node.database).count("delivered") >= 20)
        orthanc.stop(kill=True)
        wait_until(lambda: "sending" not in states(node.database))
        assert "pending" in states(node.database)
        orthanc.start()
        node.wait(*["delivered"] * 150)
        assert job_state(node.database, job_id) == "closed"
        # A PACS that is killed may lose what it had acknowledged; only commitment would show that.
        assert len(orthanc.uids() & {ds.SOPInstanceUID for ds in series}) >= 130


@pytest.mark.parametrize("engine", ["streaming", "stock"])
def test_storescp_gets_every_object(tmp_path, engine: Engine):
    with StoreSCP(tmp_path) as peer:
        series = ct_series(n=5)
        outcomes = send_files(destination(peer), "NODE", write_series(tmp_path / "series", series), engine=engine)
        assert all(one.delivered for one in outcomes)
        assert len(peer.files) == 5


def test_storescp_refuses_the_association_and_then_takes_it(tmp_path):
    with StoreSCP(tmp_path, "--refuse") as peer, Running(tmp_path, pacs=(peer.ae_title, peer.port)) as node:
        node.store(ct_series(n=3), "pacs")
        wait_until(lambda: node.outbox.lanes[0]._failures >= 2)
        wait_until(lambda: states(node.database) == ["pending"] * 3)
        peer.stop()
        peer.start("--output-directory", str(peer.folder))
        node.wait(*["delivered"] * 3)
        assert len(peer.files) == 3


@pytest.mark.parametrize("mishap", ["--abort-after", "--abort-during"])
def test_storescp_aborts_and_then_behaves(tmp_path, mishap):
    """``--abort-after`` keeps the object and gives no answer: it comes again, under the same UID."""
    series = ct_series(n=4, rows=600, columns=600)
    with StoreSCP(tmp_path, mishap) as peer, Running(tmp_path, pacs=(peer.ae_title, peer.port)) as node:
        node.store(series, "pacs")
        wait_until(lambda: node.outbox.lanes[0]._failures >= 2)
        assert "dead" not in states(node.database)
        peer.stop()
        peer.start("--output-directory", str(peer.folder))
        node.wait(*["delivered"] * 4)
        uids = {ds.SOPInstanceUID for ds in series}
        assert len([path for path in peer.files if any(uid in path.name for uid in uids)]) == 4


def test_one_real_destination_down_and_the_other_served(orthanc, tmp_path):
    series = ct_series(n=3, study="two", series="two")
    with Running(tmp_path, up=(orthanc.ae_title, orthanc.port), down=("NOBODY", 1)) as node:
        node.store(series, "up", "down")
        node.wait(*["delivered"] * 3, name="up")
        node.wait(*["pending"] * 3, name="down")


def test_a_class_that_storescp_does_not_know_is_set_aside_alone(tmp_path):
    series = ct_series(n=3)
    series[0].SOPClassUID = series[0].file_meta.MediaStorageSOPClassUID = "1.2.826.0.1.3680043.8.498.77"
    series[2].SOPClassUID = series[2].file_meta.MediaStorageSOPClassUID = MRImageStorage
    with StoreSCP(tmp_path) as peer, Running(tmp_path, pacs=(peer.ae_title, peer.port)) as node:
        node.store(series, "pacs")
        node.wait("dead", "delivered", "delivered")
