"""Who is told of a positive urgent finding besides the archive: the models of the ``notify`` section."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

_Port = Annotated[int, Field(ge=1, le=65535)]
_Seconds = Annotated[float, Field(gt=0, le=86400)]
#: HD and ST parts that have no delimiters, so that they stand in a message as they are.
_Name = Annotated[str, Field(max_length=180, pattern=r"^[^|^~\\&\r\n]*$")]


class _Hook(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    #: Findings of these urgencies are told.
    urgency: list[Literal["minutes", "hours", "days"]] = Field(["minutes", "hours"], min_length=1)
    #: Until an answer.
    timeout: _Seconds = 10
    #: First pause after a failure; doubled up to max_backoff_s.
    backoff_s: _Seconds = 5
    max_backoff_s: _Seconds = 300
    #: Refusals of one message by a peer that answers before it is set aside; being down counts for nothing.
    max_attempts: int = Field(10, ge=1)
    #: A finding nobody took for this long is old news and is set aside; corrections are tried for ever.
    give_up_after_s: float = Field(86400, gt=0)


class Webhook(_Hook):
    """JSON by HTTPS POST, signed (HMAC-SHA256 as in standardwebhooks.com)."""

    kind: Literal["webhook"]
    url: str
    #: File with the shared secret: text, or ``whsec_`` and base64.
    secret_file: Path
    #: Certificates of authorities that are trusted; left out: the system's.
    ca_file: Path | None = None

    @field_validator("url")
    @classmethod
    def _confidential(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme == "https" and parts.hostname:
            return value
        if parts.scheme == "http" and _loopback(parts.hostname or ""):
            return value
        raise ValueError("must be https:// (the message names a patient), or http:// on this machine")


class Hl7(_Hook):
    """HL7 v2.5.1 ORU^R01 over MLLP."""

    kind: Literal["hl7"]
    host: str = Field(min_length=1)
    port: _Port = 2575
    #: MLLP inside TLS, the certificate verified.
    tls: bool = False
    #: Certificates of authorities that are trusted; left out: the system's.
    ca_file: Path | None = None
    sending_application: _Name = "DICOMNODE"
    sending_facility: _Name = ""
    receiving_application: _Name = ""
    receiving_facility: _Name = ""
    #: MSH-11: production, training or debugging.
    processing_id: Literal["P", "T", "D"] = "P"


Hook = Annotated[Webhook | Hl7, Field(discriminator="kind")]


def _loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
