"""Raw k-space: the listener that scanners stream MRD to, and folders that MRD files are put into."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

_Port = Annotated[int, Field(ge=0, le=65535)]
_Seconds = Annotated[float, Field(gt=0, le=86400)]
#: A name as it may come over the wire: nothing that could be a path, a module or a command.
ConfigName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]


def _network(value: str) -> str:
    ip_network(value, strict=False)
    return value


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MrdTimeouts(_Model):
    """When a quiet client is let go; what it has sent is kept."""

    #: From the connection to the first message.
    first: _Seconds = 30
    #: Between two messages: scanners pause between a noise scan and the measurement.
    idle: _Seconds = 120
    #: A whole session.
    session: _Seconds = 7200


class MrdConfig(_Model):
    """What one config name means."""

    #: A pipeline of the configuration that works on k-space line by line.
    pipeline: str
    options: dict[str, Any] = {}


class MrdQuery(_Model):
    """An archive that is asked by C-FIND whose a study is."""

    ae_title: str = Field(min_length=1, max_length=16)
    host: str
    port: Annotated[int, Field(ge=1, le=65535)] = 104
    timeout: _Seconds = 5


class Identity(_Model):
    """Whose a measurement is. What is not certain is held for a person to decide."""

    #: ``accept``: a header that names patient and study is believed; ``match``: the study must also be known, to this
    #: node or to the archive.
    header: Literal["accept", "match"] = "accept"
    #: Asked about studies that this node has not received.
    query: MrdQuery | None = None


class Watch(_Model):
    """A folder that MRD files are put into."""

    folder: Path
    #: A file is taken when it has not grown for so long.
    settle_s: _Seconds = 5


class Mrd(_Model):
    """The MRD listener. The protocol has neither passwords nor encryption: who may connect is the allow-list."""

    address: Annotated[str, AfterValidator(lambda value: str(ip_address(value)))] = "127.0.0.1"
    #: 0: any free port.
    port: _Port = 9002
    #: Addresses or networks that may connect; on loopback: this machine.
    allow: list[Annotated[str, AfterValidator(_network)]] = []
    max_sessions: int = Field(2, ge=1, le=64)
    #: A whole session, and one message of it [10^6 bytes].
    max_session_mb: int = Field(16384, ge=1)
    max_message_mb: int = Field(64, ge=1, le=2048)
    timeouts: MrdTimeouts = MrdTimeouts()
    #: From the last readout until the images must be there; then the plain reconstruction answers.
    deadline_s: _Seconds = 60
    #: CPU threads of a session's worker; 0: those of a slot.
    threads: int = Field(0, ge=0)
    #: Workers kept warm, so that a session does not wait for one to load.
    spare: int = Field(1, ge=0, le=8)
    #: Name a client may ask for -> what is done.
    configs: dict[ConfigName, MrdConfig] = Field(min_length=1)
    #: What other names mean; left out: they are refused.
    default: str | None = None
    #: File measurements as DICOM raw data, to be routed by rules like any series.
    archive: bool = True
    identity: Identity = Identity()
    watch: list[Watch] = []

    @property
    def networks(self) -> list[IPv4Network | IPv6Network]:
        """``allow`` parsed; this machine alone, if it is empty."""
        return [ip_network(one, strict=False) for one in self.allow or ["127.0.0.0/8", "::1/128"]]

    @model_validator(mode="after")
    def _sound(self) -> Mrd:
        wrong = []
        if not self.allow and not ip_address(self.address).is_loopback:
            wrong.append(f"allow: list who may connect to {self.address}; MRD itself asks for no password")
        if self.default is not None and self.default not in self.configs:
            wrong.append(f"default: {self.default!r} is not under configs (known: {', '.join(self.configs)})")
        if self.max_message_mb > self.max_session_mb:
            wrong.append("max_message_mb must not be above max_session_mb")
        folders = [str(one.folder) for one in self.watch]
        if len(set(folders)) != len(folders):
            wrong.append("watch: a folder appears twice")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self
