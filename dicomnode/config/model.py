"""What may be configured: every field has a default that is safe on a hospital network.

Sizes are megabytes (10^6 bytes), times are seconds.
"""

from __future__ import annotations

import difflib
import json
import re
import typing
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from dicomnode.config.mrd import Mrd
from dicomnode.config.notify import Hook
from dicomnode.dicom import digest
from dicomnode.domain import USUAL_KINDS, Band, Flavour, ObjectKind


def _ae_title(value: str) -> str:
    title = value.strip()
    if not 1 <= len(title) <= 16 or not title.isascii() or not title.isprintable() or "\\" in title:
        raise ValueError("an AE title has 1 to 16 printable ASCII characters and no backslash (PS3.5 6.2)")
    return title


def _network(value: str) -> str:
    ip_network(value, strict=False)
    return value


def _one_or_many(value: object) -> object:
    return value if isinstance(value, list) else [value]


AETitle = Annotated[str, AfterValidator(_ae_title)]
Network = Annotated[str, AfterValidator(_network)]
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=86400)]
Scalar = str | int | float
#: Defined terms of PS3.3 C.12.1.1.2 that results are converted to: single-byte sets, without code extensions.
CharacterSet = Literal[
    "ISO_IR 192", "ISO_IR 6", "ISO_IR 100", "ISO_IR 101", "ISO_IR 109", "ISO_IR 110", "ISO_IR 144", "ISO_IR 127",
    "ISO_IR 126", "ISO_IR 138", "ISO_IR 148", "ISO_IR 13", "ISO_IR 166", "GB18030",
]  # fmt: skip


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Log(_Model):
    """The node's own log, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    style: Literal["json", "text"] = "json"


class NodeSettings(_Model):
    """Who this node is and where it keeps things."""

    ae_title: AETitle = "DICOMNODE"
    #: Folder of spool, quarantine, results and the embedded database; a local disk.
    data: Path = Path("/var/lib/dicomnode")
    #: ``sqlite`` (embedded, in the data folder) or a SQLAlchemy URL of PostgreSQL.
    database: str = "sqlite"
    log: Log = Log()

    @field_validator("database")
    @classmethod
    def _known_database(cls, value: str) -> str:
        if value != "sqlite" and not value.startswith(("postgresql://", "postgresql+psycopg://")):
            raise ValueError("must be sqlite, or postgresql://user@host/name")
        return value

    #: Character set of received headers that declare none but hold 8-bit text.
    default_charset: str = "ISO_IR 100"
    #: SeriesNumber of results: this plus 100 for each configured pipeline.
    series_number: int = Field(9000, ge=1, le=2**31 - 100_000)


class Timeouts(_Model):
    """When a quiet or stuck peer is dropped."""

    #: A connection that has not sent A-ASSOCIATE-RQ (ARTIM timer, PS3.8 9.1.5).
    acse: Seconds = 10
    #: An association on which nothing happens.
    idle: Seconds = 60
    #: A PDU of which the rest does not come.
    pdu: Seconds = 30


class Receive(_Model):
    """The Storage SCP."""

    address: str = "0.0.0.0"  # noqa: S104 - a storage SCP listens; who may speak is the sources' allow-list
    port: Port = 11112
    engine: Literal["streaming", "stock"] = "streaming"
    durability: Literal["instance", "deferred", "none"] = "instance"
    #: AE titles answered besides node.ae_title.
    called_ae_titles: list[AETitle] = []
    #: Senders that are not listed under sources.
    unknown_sources: Literal["reject", "accept"] = "reject"
    max_associations: int = Field(32, ge=1, le=1000)
    max_pdu: int = Field(131072, ge=4096, le=1 << 24)
    max_object_mb: int = Field(4096, ge=1)
    timeouts: Timeouts = Timeouts()
    #: Answer 0xA700 (out of resources) when the data folder's disk has less than this free.
    refuse_below_mb: int = Field(2048, ge=0)
    #: Accept again above this.
    accept_above_mb: int = Field(2560, ge=0)
    #: What a known SOP Instance UID with other bytes is answered; it goes to quarantine either way.
    changed_duplicate: Literal["refuse", "accept"] = "refuse"
    #: UIDs with a component such as ``01``: invalid (PS3.5 9.1), but written by some scanners.
    leading_zero_uids: Literal["quarantine", "accept"] = "quarantine"

    @model_validator(mode="after")
    def _watermarks(self) -> Receive:
        if self.accept_above_mb < self.refuse_below_mb:
            raise ValueError("accept_above_mb must not be below refuse_below_mb")
        return self


class Query(_Model):
    """Where a source (or the archive behind it) answers C-FIND, to count a series' instances."""

    ae_title: AETitle
    host: str
    port: Port = 104
    timeout: Seconds = 5


class Source(_Model):
    """A peer that may send."""

    ae_title: AETitle
    #: Addresses or networks it may come from; empty: any.
    addresses: list[Network] = []
    query: Query | None = None
    #: Quiet period of this source; left out: learned from its own gaps.
    quiet_s: Seconds | None = None

    @property
    def networks(self) -> list[IPv4Network | IPv6Network]:
        """``addresses`` parsed."""
        return [ip_network(address, strict=False) for address in self.addresses]


class Assemble(_Model):
    """When a series counts as complete."""

    #: Quiet period until enough of a source's own gaps are known.
    quiet_s: Seconds = 10
    #: The learned quiet period stays within these.
    quiet_min_s: Seconds = 3
    quiet_max_s: Seconds = 60
    #: After this long without proof the series is taken as it is, marked incomplete.
    cap_s: Seconds = 600
    #: A rule of a whole study waits until nothing of the study has come for so long.
    study_quiet_s: Seconds = 60


class Condition(_Model):
    """What an attribute must be. Several keys must all hold."""

    equals: list[Scalar] | None = None
    matches: str | None = None
    min: float | None = None
    max: float | None = None
    present: bool | None = None
    contains: list[str] | None = None
    not_: Condition | None = Field(None, alias="not")

    @field_validator("equals", "contains", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return None if value is None else _one_or_many(value)

    @field_validator("not_", mode="before")
    @classmethod
    def _short_not(cls, value: object) -> object:
        return None if value is None else _condition(value)

    @field_validator("matches")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"not a regular expression: {error}") from error
        return value

    @model_validator(mode="after")
    def _says_something(self) -> Condition:
        if not self.model_fields_set:
            raise ValueError("empty condition; give a value, a list, or one of equals, matches, min, max, present")
        return self


def _condition(value: object) -> object:
    """Read the short forms: a value, a list of values, ``present``, ``absent``."""
    if value == "present":
        return {"present": True}
    if value == "absent":
        return {"present": False}
    return value if isinstance(value, dict | Condition) else {"equals": value}


class Rule(_Model):
    """Every rule that matches a complete series makes one job; one of scope ``study``, one of all that match."""

    name: str = Field(min_length=1, max_length=64)
    #: DICOM keyword, or a series-level fact such as ``series.instances``; all must hold.
    when: dict[str, Annotated[Condition, BeforeValidator(_condition)]] = Field(min_length=1)
    pipeline: str
    options: dict[str, Any] = {}
    send_to: list[str] = Field(min_length=1)
    priority: Literal["batch", "routine", "urgent", "stat"] = "routine"
    #: ``study``: one job over all matching series of the study, for a cine that comes as a series per slice.
    scope: Literal["series", "study"] = "series"

    @property
    def band(self) -> Band:
        """``priority`` as the store orders it."""
        return Band[self.priority.upper()]


class PipelineSettings(_Model):
    """One algorithm the node may run."""

    #: "module:Class", loaded by name.
    class_: str = Field(alias="class", pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    #: Folder with manifest.yaml; left out: what the class names.
    weights: Path | None = None
    options: dict[str, Any] = {}
    #: How many jobs of it may run at once.
    limit: int = Field(1, ge=1)
    timeout_s: Seconds = 900


class Execute(_Model):
    """The slots that run jobs."""

    #: ``auto`` (one a GPU, else one on the CPU) or a list of devices, one slot each.
    slots: Literal["auto"] | list[str] = "auto"
    #: CPU threads of a slot; 0: cores divided by slots.
    threads: int = Field(0, ge=0)
    #: Failed runs before a transient failure becomes final.
    max_attempts: int = Field(3, ge=1)
    #: First pause after a transient failure; doubled each time.
    backoff_s: Seconds = 10
    #: Start of a slot's process until it must be ready.
    start_timeout_s: Seconds = 300


class Destination(_Model):
    """A peer that takes results."""

    ae_title: AETitle
    host: str
    port: Port = 104
    #: AE title this node calls itself; left out: node.ae_title.
    calling_ae_title: AETitle | None = None
    timeout: Seconds = 30
    #: First pause after a transient failure; doubled up to max_backoff_s.
    backoff_s: Seconds = 5
    max_backoff_s: Seconds = 900
    #: Refusals of one object by a peer that answers before it is set aside as dead; being down counts for nothing.
    max_attempts: int = Field(50, ge=1)
    #: Kinds of objects it takes; presentation states, parametric maps and phases only where they are named.
    objects: list[ObjectKind] = Field(list(USUAL_KINDS), min_length=1)
    #: How segmentations are encoded for it; where label maps are refused, binary ones go instead.
    segmentation: Literal["binary", "labelmap"] = "binary"
    #: Images from k-space: one object a plane, or Enhanced MR; where that is refused, single ones go instead.
    reconstructions: Literal["single", "enhanced"] = "single"
    #: Character set it can read; text that does not fit is never sent garbled.
    character_set: CharacterSet = "ISO_IR 192"
    #: How uncompressed objects are encoded for it if it takes them so.
    transfer_syntax: Literal["explicit", "implicit", "deflated"] = "explicit"

    def takes(self, kind: ObjectKind, flavour: Flavour) -> bool:
        """Whether an object is for this destination."""
        return kind in self.objects and flavour in (Flavour.ANY, self.segmentation, self.reconstructions)


class Retention(_Model):
    """How long files are kept after their work is done. Nothing undelivered is ever deleted."""

    images_days: float = Field(7, ge=0)
    results_days: float = Field(30, ge=0)
    quarantine_days: float = Field(90, ge=0)


def near(name: str, known: typing.Iterable[str]) -> str:
    """Return a suggestion for a misspelt name, or nothing."""
    close = difflib.get_close_matches(name, list(known), 1, 0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


class Config(_Model):
    """The whole configuration."""

    node: NodeSettings = NodeSettings()
    receive: Receive = Receive()
    sources: list[Source] = []
    assemble: Assemble = Assemble()
    rules: list[Rule] = []
    pipelines: dict[str, PipelineSettings] = {}
    execute: Execute = Execute()
    destinations: dict[str, Destination] = {}
    retention: Retention = Retention()
    #: Name -> whom to tell of a positive urgent finding, and how.
    notify: dict[Annotated[str, Field(min_length=1, max_length=64)], Hook] = {}
    #: Raw k-space from scanners and folders; None: no listener.
    mrd: Mrd | None = None

    @model_validator(mode="after")
    def _names_exist(self) -> Config:
        wrong = []
        for place, names in (("sources", [s.ae_title for s in self.sources]), ("rules", [r.name for r in self.rules])):
            wrong += [f"{place}: {name!r} appears twice" for name in sorted(set(names)) if names.count(name) > 1]
        for rule in self.rules:
            if rule.pipeline not in self.pipelines:
                hint = near(rule.pipeline, self.pipelines)
                wrong.append(f"rules.{rule.name}.pipeline: {rule.pipeline!r} is not under pipelines{hint}")
            wrong += [
                f"rules.{rule.name}.send_to: {name!r} is not under destinations{near(name, self.destinations)}"
                for name in rule.send_to
                if name not in self.destinations
            ]
        for name, one in self.mrd.configs.items() if self.mrd else ():
            if one.pipeline not in self.pipelines:
                hint = near(one.pipeline, self.pipelines)
                wrong.append(f"mrd.configs.{name}.pipeline: {one.pipeline!r} is not under pipelines{hint}")
        if wrong:
            raise ValueError("\n".join(wrong))
        return self

    def source(self, ae_title: str) -> Source | None:
        """Return the configured source of that AE title."""
        return next((source for source in self.sources if source.ae_title == ae_title), None)

    def job_digest(self, rule: Rule) -> str:
        """Digest of everything in the configuration that can change a job's result."""
        pipeline = self.pipelines[rule.pipeline]
        return digest(pipeline.class_, json.dumps({**pipeline.options, **rule.options}, sort_keys=True, default=str))
