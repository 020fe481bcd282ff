"""What the receiver process is told: plain values, so that it need not load the configuration's machinery (12 MB)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dicomnode.config import Config


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """`config.Receive`, `config.Source` and the bits of `config.NodeSettings` that concern receiving."""

    data: str
    database: str
    address: str
    #: 0: any free port (tests and benchmarks).
    port: int
    ae_titles: tuple[str, ...]
    engine: str = "streaming"
    durability: str = "instance"
    #: Calling AE title -> addresses or networks it may come from (none: any).
    sources: dict[str, tuple[str, ...]]
    accept_unknown_sources: bool = False
    max_associations: int = 32
    max_pdu: int = 131072
    #: Largest data set [bytes].
    max_object: int = 4096_000_000
    #: Seconds; see `config.Timeouts`.
    acse_timeout: float = 10
    idle_timeout: float = 60
    pdu_timeout: float = 30
    refuse_below_mb: int = 2048
    accept_above_mb: int = 2560
    refuse_changed_duplicates: bool = True
    accept_leading_zeros: bool = False
    log_level: str = "info"
    log_style: str = "json"

    @classmethod
    def of(cls, config: Config) -> Settings:
        """Pick what the receiver needs from the node's configuration."""
        node, receive = config.node, config.receive
        return cls(
            data=str(node.data),
            database=node.database,
            address=receive.address,
            port=receive.port,
            ae_titles=(node.ae_title, *receive.called_ae_titles),
            engine=receive.engine,
            durability=receive.durability,
            sources={source.ae_title: tuple(source.addresses) for source in config.sources},
            accept_unknown_sources=receive.unknown_sources == "accept",
            max_associations=receive.max_associations,
            max_pdu=receive.max_pdu,
            max_object=receive.max_object_mb * 1_000_000,
            acse_timeout=receive.timeouts.acse,
            idle_timeout=receive.timeouts.idle,
            pdu_timeout=receive.timeouts.pdu,
            refuse_below_mb=receive.refuse_below_mb,
            accept_above_mb=receive.accept_above_mb,
            refuse_changed_duplicates=receive.changed_duplicate == "refuse",
            accept_leading_zeros=receive.leading_zero_uids == "accept",
            log_level=node.log.level,
            log_style=node.log.style,
        )

    def to_json(self) -> str:
        """One line for the child process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Settings:
        """Read what `to_json` wrote."""
        values = json.loads(line)
        values["ae_titles"] = tuple(values["ae_titles"])
        values["sources"] = {title: tuple(networks) for title, networks in values["sources"].items()}
        return cls(**values)
