"""The configuration: one YAML file, safe-loaded, checked at once. The annotated example is ``deploy/node.yaml``."""

from __future__ import annotations

from dicomnode.config.model import (
    Assemble,
    Condition,
    Config,
    Destination,
    Execute,
    PipelineSettings,
    Query,
    Receive,
    Retention,
    Rule,
    Source,
)
from dicomnode.config.mrd import Mrd, MrdConfig, MrdQuery
from dicomnode.config.notify import Hl7, Hook, Webhook
from dicomnode.config.reading import load, parse

__all__ = [
    "Assemble",
    "Condition",
    "Config",
    "Destination",
    "Execute",
    "Hl7",
    "Hook",
    "Mrd",
    "MrdConfig",
    "MrdQuery",
    "PipelineSettings",
    "Query",
    "Receive",
    "Retention",
    "Rule",
    "Source",
    "Webhook",
    "load",
    "parse",
]
