"""Sends results: Storage SCU, the outbox that drives it, and the questions asked of archives."""

from dicomnode.dispatch.find import count_instances, find_study
from dicomnode.dispatch.outbox import Outbox
from dicomnode.dispatch.scu import Outcome, echo, send_files

__all__ = ["Outbox", "Outcome", "count_instances", "echo", "find_study", "send_files"]
