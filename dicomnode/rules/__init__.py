"""Which pipelines a series is for, and why: declarative conditions over attributes and series facts. Pure."""

from dicomnode.rules.facts import KNOWN as KNOWN_FACTS
from dicomnode.rules.facts import is_own_result, series_facts
from dicomnode.rules.match import ConditionVerdict, Verdict, check_rules, evaluate
from dicomnode.rules.stack import StackVerdict, is_regular_stack

__all__ = [
    "KNOWN_FACTS",
    "ConditionVerdict",
    "StackVerdict",
    "Verdict",
    "check_rules",
    "evaluate",
    "is_own_result",
    "is_regular_stack",
    "series_facts",
]
