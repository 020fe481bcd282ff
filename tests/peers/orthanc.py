"""A real Orthanc on free loopback ports, with its folder under the test's own.

    with Orthanc(tmp_path, modalities={"node": ("DICOMNODE", port)}) as pacs:
        send(..., pacs.ae_title, "127.0.0.1", pacs.port)
        assert pacs.uids() == {...}
        pacs.store(series_uid, "node")     # Orthanc sends it on

Orthanc 1.10 binds its DICOM port on every interface (it has no setting for it); it accepts only what calls its own AE
title, and HTTP answers local clients only.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any

from pydicom import Dataset, dcmread

from tests.peers.dcmtk import free_port, require

_START_S = 60.0


class Orthanc:
    """One Orthanc process; `stop` and `start` again keep port and contents."""

    def __init__(
        self,
        folder: Path,
        *,
        ae_title: str = "ORTHANC",
        modalities: Mapping[str, tuple[str, int]] | None = None,
        settings: Mapping[str, Any] | None = None,
        dicomweb: bool = False,
    ) -> None:
        self.program = require("Orthanc")
        self.folder = folder / "orthanc"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.ae_title, self.port, self.http = ae_title, free_port(), free_port()
        self.process: subprocess.Popen[bytes] | None = None
        settings_file = {
            "Name": "test",
            "StorageDirectory": str(self.folder / "db"),
            "IndexDirectory": str(self.folder / "db"),
            "Plugins": [_dicomweb_plugin()] if dicomweb else [],
            "HttpPort": self.http,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "OverwriteInstances": True,
            "StableAge": 2,
            "DicomAet": ae_title,
            "DicomPort": self.port,
            "DicomCheckCalledAet": True,
            "DicomAlwaysAllowEcho": True,
            "DicomAlwaysAllowStore": True,
            "DicomModalities": {
                name: {
                    "AET": title, "Host": "127.0.0.1", "Port": port, "AllowFind": True, "AllowMove": True,
                    "AllowStore": True, "AllowEcho": True, "AllowGet": True,
                }
                for name, (title, port) in (modalities or {}).items()
            },
            **(settings or {}),
        }  # fmt: skip
        self.settings = self.folder / "orthanc.json"
        self.settings.write_text(json.dumps(settings_file), encoding="utf-8")

    def __enter__(self) -> Orthanc:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Start and wait until HTTP answers (DICOM listens before that)."""
        with (self.folder / "orthanc.log").open("ab") as log:
            self.process = subprocess.Popen([self.program, str(self.settings)], stdout=log, stderr=log)
        end = time.monotonic() + _START_S
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                self.get("/system")
                return
            time.sleep(0.1)
        self.stop()
        raise AssertionError("Orthanc did not start:\n" + self.log()[-2000:])

    def stop(self, *, kill: bool = False) -> None:
        """End it: politely, or as a power cut would."""
        if self.process is None:
            return
        if kill:
            self.process.kill()
        else:
            self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
        self.process = None

    def log(self) -> str:
        """What it wrote."""
        return (self.folder / "orthanc.log").read_text(encoding="utf-8", errors="replace")

    # -- REST

    def request(self, path: str, body: object = None, method: str | None = None) -> bytes:
        """Call the REST interface."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}{path}", data=data, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy
        with opener.open(request, timeout=60) as answer:
            raw = answer.read()
        assert isinstance(raw, bytes)
        return raw

    def get(self, path: str) -> Any:
        """GET a JSON answer."""
        return json.loads(self.request(path))

    def post(self, path: str, body: object) -> Any:
        """POST and return the JSON answer."""
        return json.loads(self.request(path, body) or b"null")

    def uids(self) -> set[str]:
        """SOP Instance UIDs it holds."""
        return {one["MainDicomTags"]["SOPInstanceUID"] for one in self.get("/instances?expand")}

    def series(self) -> list[dict[str, Any]]:
        """Every series, as Orthanc describes it."""
        found = self.get("/series?expand")
        assert isinstance(found, list)
        return found

    def datasets(self, series_uid: str | None = None) -> list[Dataset]:
        """Fetch what it holds."""
        wanted = [
            uid
            for one in self.series()
            if series_uid in (None, one["MainDicomTags"]["SeriesInstanceUID"])
            for uid in one["Instances"]
        ]
        return [dcmread(BytesIO(self.request(f"/instances/{uid}/file"))) for uid in wanted]

    def store(self, series_uid: str, modality: str) -> Any:
        """Make Orthanc send a series to one of its modalities, and wait for it."""
        found = next(one["ID"] for one in self.series() if one["MainDicomTags"]["SeriesInstanceUID"] == series_uid)
        return self.post(f"/modalities/{modality}/store", found)


def _dicomweb_plugin() -> str:
    """Path of the DICOMweb plugin, as the package manager knows it."""
    listed = subprocess.run(["dpkg", "-L", "orthanc-dicomweb"], capture_output=True, text=True, check=False).stdout
    found = [line for line in listed.splitlines() if line.endswith("DicomWeb.so")]
    return found[0] if found else require("OrthancDicomWeb.so")
