"""What the MRD process is told: plain values on its standard input."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dicomnode.config import Config

_MB = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class MrdSettings:
    """`config.Mrd` and the bits of other sections that concern the listener."""

    data: str
    address: str
    port: int
    #: Networks that may connect.
    allow: tuple[str, ...]
    max_sessions: int
    #: Bytes.
    max_session: int
    max_message: int
    #: Seconds; see `config.mrd.MrdTimeouts`.
    first_timeout: float
    idle_timeout: float
    session_timeout: float
    deadline: float
    #: Names a client may ask for, and the one that stands for all others ("": none).
    configs: tuple[str, ...]
    default: str
    archive: bool
    #: Starts a worker; empty: every answer is the plain reconstruction.
    worker: tuple[str, ...]
    spare: int = 1
    refuse_below_mb: int = 2048
    accept_above_mb: int = 2560
    log_level: str = "info"
    log_style: str = "json"

    @classmethod
    def of(cls, config: Config, worker: Sequence[str]) -> MrdSettings:
        """Pick what the listener needs from the node's configuration."""
        mrd = config.mrd
        assert mrd is not None
        return cls(
            data=str(config.node.data),
            address=mrd.address,
            port=mrd.port,
            allow=tuple(str(network) for network in mrd.networks),
            max_sessions=mrd.max_sessions,
            max_session=mrd.max_session_mb * _MB,
            max_message=mrd.max_message_mb * _MB,
            first_timeout=mrd.timeouts.first,
            idle_timeout=mrd.timeouts.idle,
            session_timeout=mrd.timeouts.session,
            deadline=mrd.deadline_s,
            configs=tuple(mrd.configs),
            default=mrd.default or "",
            archive=mrd.archive,
            worker=tuple(worker),
            spare=mrd.spare,
            refuse_below_mb=config.receive.refuse_below_mb,
            accept_above_mb=config.receive.accept_above_mb,
            log_level=config.node.log.level,
            log_style=config.node.log.style,
        )

    def to_json(self) -> str:
        """One line for the child process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> MrdSettings:
        """Read what `to_json` wrote."""
        values = json.loads(line)
        for name in ("allow", "configs", "worker"):
            values[name] = tuple(values[name])
        return cls(**values)
