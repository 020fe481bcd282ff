"""From a measurement in the raw store to instances in the spool; what has no identity is held until a person speaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pynetdicom import AE, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind
from sqlalchemy import select

from dicomnode.config import Config, MrdQuery
from dicomnode.dispatch import find_study
from dicomnode.domain import AssociationEnd, SeriesState
from dicomnode.errors import StoreError
from dicomnode.receive.mrd.filer import SOURCE, RawFiler, release
from dicomnode.receive.mrd.identity import identity_in
from dicomnode.receive.mrd.watch import Watcher
from dicomnode.receive.reader import read_instance
from dicomnode.store import instances, schema, series
from dicomnode.store.db import Database
from dicomnode.store.raw import Measurement, RawStore
from dicomnode.store.spool import Spool
from dicomnode.volumes import raw as raw_objects
from dicomnode.volumes.mrd import open_mrd
from tests import factories
from tests.conftest import Clock
from tests.mrd_factory import Scan
from tests.peers.scanner import SMALL, SUBJECT, configs

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
STUDY_ONLY = SUBJECT.replace("<patientName>KSPACE^TEST</patientName><patientID>KS-1</patientID>", "")


def config_of(data: Path, **mrd: object) -> Config:
    return Config.model_validate(
        {
            "node": {"data": str(data), "ae_title": "AINODE"},
            "pipelines": {"fourier": {"class": "tests.mrd_toys:Fourier"}},
            "mrd": {"configs": configs(), **mrd},
        }
    )


class Bench:
    """A filer without its thread, on the test's database."""

    def __init__(self, database: Database, data: Path, **mrd: object) -> None:
        self.database, self.asked = database, []  # type: ignore[var-annotated]
        self.answer: Dataset | None = None
        self.filed = 0
        self.filer = RawFiler(config_of(data, **mrd), database, find=self._find, on_filed=self._on_filed)
        self.store: RawStore = self.filer.store
        self.data = data

    def _find(self, query: MrdQuery, study: str) -> Dataset | None:
        self.asked.append((query.ae_title, study))
        return self.answer

    def _on_filed(self) -> None:
        self.filed += 1

    def put(self, subject: str, name: str = "20260102T030405-00000001", scan: Scan = SMALL, **more: str) -> Measurement:
        part = scan.write(self.store.folder / "new.part", subject)
        item = Measurement(name=name, at=AT, source="10.0.0.9", config="default", readouts=24, **more)
        self.store.keep(part, item)
        return item

    def instances(self) -> list[Dataset]:
        with self.database.read() as connection:
            paths = list(connection.scalars(select(schema.instance.c.path)))
        return [dcmread(self.data / "spool" / path) for path in paths]


@pytest.fixture
def bench(database: Database, tmp_path: Path) -> Bench:
    return Bench(database, tmp_path / "node")


def known_study(bench: Bench, tmp_path: Path, study: str = "1.2.840.99.7", patient: str = "KS-1") -> Dataset:
    """An image of the study that the node has received before."""
    [image] = factories.ct_series(n=1, patient_id=patient)
    image.StudyInstanceUID = study
    spool = Spool(bench.data)
    uid = str(image.SOPInstanceUID)
    part = spool.incoming(uid)
    [path] = factories.write_series(tmp_path / "known", [image])
    part.write([path.read_bytes()])
    assert spool.place(part, uid)
    part.close()
    with bench.database.write() as connection:
        instances.record(connection, [read_instance(spool, Spool.name(uid), leading_zeros=True)])
    spool.close()
    return image


def test_a_header_with_patient_and_study_is_filed_like_a_received_series(bench: Bench) -> None:
    item = bench.put(SUBJECT)
    original = bench.store.payload(item.name).read_bytes()
    assert bench.filer.sweep() == 1 and bench.filed == 1
    [ds] = bench.instances()
    assert raw_objects.is_ours(ds) and raw_objects.part_of(ds).complete
    assert (ds.PatientID, ds.StudyInstanceUID) == ("KS-1", "1.2.840.99.7")
    with bench.database.read() as connection:
        [row] = instances.of_series(connection, str(ds.SeriesInstanceUID))
        one = series.get(connection, str(ds.SeriesInstanceUID))
        assert instances.association_end(connection, row.association_id) == AssociationEnd.RELEASED
    assert one is not None and one.state is SeriesState.RECEIVING and one.calling_ae == SOURCE
    back = raw_objects.unwrap([bench.data / "spool" / row.path], bench.data / "back.h5")
    assert back.read_bytes() == original
    assert not list(bench.store.items()), "what is in the spool needs no second copy"


def test_filing_twice_after_a_crash_makes_no_second_series(bench: Bench) -> None:
    item = bench.put(SUBJECT)
    bytes_ = bench.store.payload(item.name).read_bytes()
    bench.filer.sweep()
    bench.store.payload(item.name).write_bytes(bytes_)  # as if the node had died before it forgot the file
    bench.store.note(item)
    assert bench.filer.sweep() == 1
    assert len(bench.instances()) == 1
    with bench.database.read() as connection:
        assert connection.scalar(select(schema.series.c.revision)) == 0


def test_an_incomplete_measurement_says_so_in_dicom(bench: Bench) -> None:
    bench.put(SUBJECT, incomplete="the connection ended after 24 readouts")
    bench.filer.sweep()
    [ds] = bench.instances()
    assert not raw_objects.part_of(ds).complete


@pytest.mark.parametrize(
    ("subject", "why"),
    [
        ("", "neither patient nor study"),
        (SUBJECT.partition("<studyInformation>")[0], "a patient, but no study"),
        (STUDY_ONLY, "is not known to this node"),
        (SUBJECT.replace("1.2.840.99.7", "1.02.x"), "not a valid UID"),
    ],
)
def test_without_identity_it_is_held_with_the_reason(bench: Bench, subject: str, why: str) -> None:
    item = bench.put(subject)
    assert bench.filer.sweep() == 0 and not bench.instances()
    held = bench.store.get(item.name)
    assert why in held.held and bench.store.payload(item.name).is_file()
    assert bench.filer.sweep() == 0, "held is held, also at the next look"
    assert RawStore(bench.data).get(item.name) == held, "and after a restart"


def test_a_study_that_was_received_gives_its_patient(bench: Bench, tmp_path: Path) -> None:
    known = known_study(bench, tmp_path)
    bench.put(STUDY_ONLY)
    assert bench.filer.sweep() == 1
    [ds] = [one for one in bench.instances() if raw_objects.is_ours(one)]
    assert ds.PatientID == "KS-1" and ds.PatientName == known.PatientName
    assert ds.StudyDescription == known.StudyDescription


def test_a_header_that_contradicts_the_study_is_held(bench: Bench, tmp_path: Path) -> None:
    known_study(bench, tmp_path, patient="SOMEBODY-ELSE")
    item = bench.put(SUBJECT)
    assert bench.filer.sweep() == 0
    assert "PatientID of the header is not that of the study" in bench.store.get(item.name).held
    assert "KS-1" not in bench.store.get(item.name).held, "identities stay out of reasons and logs"


def test_an_archive_that_knows_the_study_is_asked(database: Database, tmp_path: Path) -> None:
    query = {"ae_title": "ARCHIVE", "host": "10.0.0.1"}
    bench = Bench(database, tmp_path / "node", identity={"query": query})
    bench.answer = Dataset()
    bench.answer.PatientID, bench.answer.PatientName = "KS-1", "KSPACE^TEST"
    bench.answer.StudyInstanceUID, bench.answer.AccessionNumber = "1.2.840.99.7", "ACC-1"
    bench.put(STUDY_ONLY)
    assert bench.filer.sweep() == 1 and bench.asked == [("ARCHIVE", "1.2.840.99.7")]
    assert bench.instances()[0].AccessionNumber == "ACC-1"


def test_where_a_match_is_asked_for_the_header_alone_is_not_enough(database: Database, tmp_path: Path) -> None:
    bench = Bench(database, tmp_path / "node", identity={"header": "match"})
    item = bench.put(SUBJECT)
    assert bench.filer.sweep() == 0 and "identity.header: match" in bench.store.get(item.name).held
    known_study(bench, tmp_path)
    bench.store.note(item)
    assert bench.filer.sweep() == 1


def test_a_person_names_the_study_and_it_is_filed(bench: Bench, tmp_path: Path) -> None:
    item = bench.put("")
    bench.filer.sweep()
    [image] = factories.ct_series(n=1, patient_id="KS-9")
    [path] = factories.write_series(tmp_path / "like", [image])
    like = identity_in(path, "ISO_IR 100")
    release(bench.store, item.name, like)
    assert bench.filer.sweep() == 1
    [ds] = bench.instances()
    assert (ds.PatientID, ds.StudyInstanceUID) == ("KS-9", image.StudyInstanceUID)
    assert not list(bench.store.folder.iterdir()), "nothing is left behind"


def test_names_from_outside_are_no_paths(bench: Bench) -> None:
    for name in ("../spool/x", "a/b", "", "x.json"):
        with pytest.raises(StoreError, match="is not the name"):
            bench.store.get(name)
    with pytest.raises(StoreError, match="there is no raw measurement"):
        bench.store.get("20260101T000000-deadbeef")


def test_a_damaged_file_is_held_and_the_next_one_filed(bench: Bench) -> None:
    part = bench.store.folder / "bad.part"
    part.write_bytes(b"this is no HDF5 file")
    bench.store.keep(part, Measurement(name="0bad", at=AT, source="", readouts=1))
    bench.put(SUBJECT)
    assert bench.filer.sweep() == 1
    assert "no MRD file" in bench.store.get("0bad").held


def test_a_lost_side_file_does_not_lose_the_measurement(bench: Bench) -> None:
    item = bench.put(SUBJECT)
    (bench.store.folder / f"{item.name}.json").write_text("{broken")
    assert bench.filer.sweep() == 0
    assert "side file cannot be read" in bench.store.get(item.name).held


# -- watched folders


class Ticks:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 2.0
        return self.now


@pytest.fixture
def watched(bench: Bench, tmp_path: Path) -> tuple[Path, Callable[[], None]]:
    folder = tmp_path / "in"
    folder.mkdir()
    settings = config_of(tmp_path, watch=[{"folder": str(folder), "settle_s": 5}]).mrd
    assert settings is not None
    watcher = Watcher(settings.watch[0], bench.store, Clock(), Ticks())

    def settle() -> None:
        for _ in range(5):
            watcher.sweep()

    return folder, settle


def test_a_file_in_a_watched_folder_is_taken_once_it_has_settled(
    bench: Bench, watched: tuple[Path, Callable[[], None]]
) -> None:
    folder, settle = watched
    SMALL.write(folder / "scan.h5", SUBJECT)
    settle()
    assert [path.name for path in folder.rglob("*.h5")] == ["scan.h5"] and (folder / "done" / "scan.h5").is_file()
    [item] = bench.store.items()
    assert item.readouts == 24 and len(list(open_mrd(bench.store.payload(item.name)).readouts)) == 24
    assert bench.filer.sweep() == 1
    SMALL.write(folder / "again.h5", SUBJECT)
    (folder / "again.h5").write_bytes((folder / "done" / "scan.h5").read_bytes())
    settle()
    bench.filer.sweep()
    assert len(bench.instances()) == 1, "the same file put in twice is the same measurement"


def test_a_growing_file_is_left_alone(bench: Bench, watched: tuple[Path, Callable[[], None]]) -> None:
    folder, settle = watched
    watcher_file = folder / "growing.h5"
    whole = SMALL.write(folder / "whole.bin", SUBJECT).read_bytes()
    settings = config_of(folder, watch=[{"folder": str(folder), "settle_s": 5}]).mrd
    assert settings is not None
    watcher = Watcher(settings.watch[0], bench.store, Clock(), Ticks())
    for size in range(1000, len(whole), 20_000):
        watcher_file.write_bytes(whole[:size])
        assert watcher.sweep() == 0
    watcher_file.write_bytes(whole)
    settle()
    assert len(list(bench.store.items())) == 1


def test_what_is_no_mrd_file_is_put_aside_with_the_reason(
    bench: Bench, watched: tuple[Path, Callable[[], None]]
) -> None:
    folder, settle = watched
    (folder / "picture.h5").write_bytes(b"\x89PNG")
    (folder / "notes.txt").write_text("left alone")
    settle()
    assert (folder / "failed" / "picture.h5").is_file() and (folder / "notes.txt").is_file()
    assert "no MRD file" in (folder / "failed" / "picture.h5.txt").read_text()
    assert not list(bench.store.items())


# -- the archive's answer


def test_the_archive_is_asked_at_study_level() -> None:
    keys: list[Dataset] = []

    def find(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        keys.append(event.identifier)
        for study in ("1.2.3", "1.2.4"):  # an archive that ignores the key it should match on
            answer = Dataset()
            answer.StudyInstanceUID, answer.PatientID = study, f"PATIENT-{study[-1]}"
            yield 0xFF00, answer
        yield 0x0000, None

    archive = AE("PACS")
    archive.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
    server = archive.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, find)])
    try:
        query = MrdQuery(ae_title="PACS", host="127.0.0.1", port=server.server_address[1])
        found = find_study(query, "AINODE", "1.2.4")
        assert found is not None and found.PatientID == "PATIENT-4"
        assert find_study(query, "AINODE", "1.2.5") is None, "what it says of other studies is no answer"
    finally:
        server.shutdown()
    assert keys[0].QueryRetrieveLevel == "STUDY" and keys[0].StudyInstanceUID == "1.2.4"
    assert find_study(query, "AINODE", "1.2.4") is None, "an archive that is away knows nothing"
