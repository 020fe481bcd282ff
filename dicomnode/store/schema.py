"""The tables. Times are seconds since 1970 in UTC; JSON columns hold plain lists and mappings.

`migrations` holds the same tables as alembic revisions; a test compares the two.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

#: SQLite gives rowids to INTEGER keys only.
_BIG = BigInteger().with_variant(Integer, "sqlite")

association = Table(
    "association",
    metadata,
    Column("id", _BIG, primary_key=True, autoincrement=False),
    Column("calling_ae", String(16), nullable=False),
    Column("called_ae", String(16), nullable=False),
    Column("address", String(64), nullable=False),
    Column("opened_at", Float, nullable=False),
    Column("closed_at", Float),
    Column("ended", String(16)),
    Index(None, "calling_ae", "closed_at"),
)

instance = Table(
    "instance",
    metadata,
    Column("sop_instance_uid", String(64), primary_key=True),
    Column("sop_class_uid", String(64), nullable=False),
    Column("transfer_syntax_uid", String(64), nullable=False),
    Column("study_uid", String(64), nullable=False),
    Column("series_uid", String(64), nullable=False),
    Column("path", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("received_at", Float, nullable=False),
    Column("association_id", BigInteger, nullable=False),
    Column("calling_ae", String(16), nullable=False),
    Column("patient_key", String(64), nullable=False),
    Column("header", JSON, nullable=False),
    Index(None, "series_uid"),
    Index(None, "study_uid"),
)

series = Table(
    "series",
    metadata,
    Column("series_uid", String(64), primary_key=True),
    Column("study_uid", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("revision", Integer, nullable=False, default=0),
    Column("calling_ae", String(16), nullable=False),
    Column("modality", String(16), nullable=False, default=""),
    Column("instances", Integer, nullable=False, default=0),
    Column("first_at", Float, nullable=False),
    Column("last_at", Float, nullable=False),
    Column("expected", Integer),
    Column("completion", String(16)),
    Column("proof", Text, nullable=False, default=""),
    Column("reason", Text, nullable=False, default=""),
    Column("incomplete", Boolean, nullable=False, default=False),
    Column("decided_at", Float),
    Column("facts", JSON),
    Column("verdicts", JSON),
    Index(None, "state"),
    Index(None, "study_uid"),
)

gap = Table(
    "gap",
    metadata,
    Column("id", _BIG, primary_key=True),
    Column("calling_ae", String(16), nullable=False),
    Column("seconds", Float, nullable=False),
    Index(None, "calling_ae"),
)

job = Table(
    "job",
    metadata,
    Column("id", _BIG, primary_key=True),
    Column("key", String(64), nullable=False, unique=True),
    Column("series_uid", String(64), nullable=False),
    Column("study_uid", String(64), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("rule", String(64), nullable=False),
    Column("pipeline", String(64), nullable=False),
    Column("version", String(32), nullable=False),
    Column("weights_digest", String(64), nullable=False),
    Column("config_digest", String(64), nullable=False),
    Column("class_name", Text, nullable=False),
    Column("options", JSON, nullable=False),
    Column("send_to", JSON, nullable=False),
    Column("inputs", JSON, nullable=False),
    Column("incomplete", Boolean, nullable=False),
    Column("completion", Text, nullable=False),
    Column("band", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempt", Integer, nullable=False, default=0),
    Column("lost_count", Integer, nullable=False, default=0),
    Column("epoch", Integer, nullable=False, default=0),
    Column("slot", String(32), nullable=False, default=""),
    Column("not_before", Float, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("finished_at", Float),
    Column("cancel_asked", Boolean, nullable=False, default=False),
    Column("phase", String(64), nullable=False, default=""),
    Column("fraction", Float, nullable=False, default=0.0),
    Column("error_class", String(64), nullable=False, default=""),
    Column("error", Text, nullable=False, default=""),
    Column("trace", Text, nullable=False, default=""),
    Column("quality", JSON),
    Column("notes", JSON),
    Column("findings", JSON),
    Column("hold", Text, nullable=False, server_default=""),
    Column("released_at", Float),
    Index(None, "state", "band"),
    Index(None, "series_uid"),
)

pipeline = Table(
    "pipeline",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("class_name", Text, nullable=False),
    Column("algorithm", String(64), nullable=False),
    Column("version", String(32), nullable=False),
    Column("weights_digest", String(64), nullable=False),
    Column("accepts_incomplete", Boolean, nullable=False),
    Column("error", Text, nullable=False, default=""),
    Column("at", Float, nullable=False),
)

output = Table(
    "output",
    metadata,
    Column("id", _BIG, primary_key=True),
    Column("job_id", _BIG, ForeignKey("job.id"), nullable=False),
    Column("role", String(64), nullable=False),
    Column("number", Integer, nullable=False),
    Column("sop_class_uid", String(64), nullable=False),
    Column("sop_instance_uid", String(64), nullable=False, unique=True),
    Column("series_uid", String(64), nullable=False),
    Column("study_uid", String(64), nullable=False),
    Column("path", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("kind", String(16), nullable=False, server_default="image"),
    Column("flavour", String(16), nullable=False, server_default=""),
    Index(None, "job_id"),
    Index(None, "series_uid"),
)

delivery = Table(
    "delivery",
    metadata,
    Column("id", _BIG, primary_key=True),
    Column("output_id", _BIG, ForeignKey("output.id"), nullable=False),
    Column("job_id", _BIG, ForeignKey("job.id"), nullable=False),
    Column("study_uid", String(64), nullable=False),
    Column("destination", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempt", Integer, nullable=False, default=0),
    Column("not_before", Float, nullable=False),
    Column("status", Integer),
    Column("error", Text, nullable=False, default=""),
    Column("updated_at", Float, nullable=False),
    UniqueConstraint("output_id", "destination"),
    Index(None, "destination", "state", "not_before"),
    Index(None, "job_id"),
)

notification = Table(
    "notification",
    metadata,
    Column("id", _BIG, primary_key=True),
    Column("study_uid", String(64), nullable=False),
    Column("series_uid", String(64), nullable=False),
    Column("job_id", _BIG, ForeignKey("job.id"), nullable=False),
    Column("algorithm", String(64), nullable=False),
    Column("version", String(32), nullable=False),
    Column("hook", String(64), nullable=False),
    Column("sequence", Integer, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempt", Integer, nullable=False, default=0),
    Column("refusals", Integer, nullable=False, default=0),
    Column("not_before", Float, nullable=False),
    Column("error", Text, nullable=False, default=""),
    Column("order_key", String(64), nullable=False, default=""),
    Column("content", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("sent_at", Float),
    UniqueConstraint("study_uid", "algorithm", "version", "hook", "sequence"),
    Index(None, "hook", "state", "not_before"),
    Index(None, "job_id"),
    Index(None, "order_key"),
)

quarantine = Table(
    "quarantine",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("code", String(32), nullable=False),
    Column("reason", Text, nullable=False),
    Column("sop_instance_uid", Text, nullable=False),
    Column("series_uid", Text, nullable=False),
    Column("calling_ae", String(16), nullable=False),
    Column("status", Integer, nullable=False),
    Column("at", Float, nullable=False),
)

event = Table(
    "event",
    metadata,
    Column("id", _BIG, primary_key=True),
    Column("at", Float, nullable=False),
    Column("action", String(32), nullable=False),
    Column("series_uid", String(64), nullable=False, default=""),
    Column("job_id", BigInteger),
    Column("text", Text, nullable=False),
    Index(None, "series_uid"),
    Index(None, "job_id"),
)

leader = Table(
    "leader",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("holder", String(64), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("until", Float, nullable=False),
)
