"""Who sends, and what a C-STORE request announces before its data set comes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Who is at the other end of an association."""

    association_id: int
    calling_ae: str
    called_ae: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One C-STORE request, as the command set and the presentation context say it."""

    sop_class_uid: str
    sop_instance_uid: str
    #: Abstract syntax of the presentation context.
    abstract_syntax: str
    transfer_syntax_uid: str
