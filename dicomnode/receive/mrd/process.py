"""The MRD listener as a process of its own: hostile bytes and gigabytes of k-space stay out of the node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dicomnode.receive.mrd.settings import MrdSettings
from dicomnode.receive.process import ListeningProcess

if TYPE_CHECKING:
    from dicomnode.config import Config


class MRDProcess(ListeningProcess):
    """Starts, watches and stops the listener.

    Parameters
    ----------
    config
        The node's configuration, with a section ``mrd``, or the settings alone.
    worker
        Command that starts the worker of a session: the room that computes is not this one's to import.
    """

    def __init__(self, config: Config | MrdSettings, worker: Sequence[str] = ()) -> None:
        self.settings = config if isinstance(config, MrdSettings) else MrdSettings.of(config, worker)
        super().__init__(self.settings, module="dicomnode.receive.mrd", name="the MRD listener")
