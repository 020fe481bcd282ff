"""Evaluate rules and explain them: every rule alone, every condition whatever the others said.

What a condition means
----------------------
* An attribute with several values (or a path that leads through several items) holds if *any* of its values does.
* Empty counts as absent. An absent attribute fulfils only ``absent`` and ``not``.
* ``equals``: any wanted value. Numbers are compared as numbers ("1.0" is 1), texts exactly but for blanks around them;
  a UID also equals its dictionary keyword or name.
* ``matches``: the regular expression is found anywhere in a value; write ``^`` and ``$`` to mean all of it.
* ``min``, ``max``: inclusive, both by the same value.
* ``contains``: each of these texts is part of some value; upper and lower case differ.
* ``not``: its condition does not hold.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from pydicom import Dataset
from pydicom.datadict import keyword_dict

from dicomnode.config import Condition, Rule
from dicomnode.errors import ConfigError
from dicomnode.rules import attributes, facts
from dicomnode.rules.attributes import Path, UnknownName, Value

_FACT_PREFIX: Final = "series."
_WITHHELD: Final = "(withheld: identifies the patient)"
#: A verdict shows no more of a value, and no more values [characters, values].
_LONGEST_SEEN: Final = 64
_MOST_SEEN: Final = 8
#: How the YAML words yes and no reach us when they are not quoted.
_YAML_WORDS: Final = {"yes": 1, "no": 0}


@dataclass(frozen=True, slots=True)
class ConditionVerdict:
    """One condition of a rule: what was wanted, what was seen, and why that is or is not enough."""

    keyword: str
    wanted: str
    seen: str
    ok: bool
    why: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """One rule: it matches if all of its conditions do."""

    rule: str
    matched: bool
    conditions: tuple[ConditionVerdict, ...]


def evaluate(rules: Sequence[Rule], attributes: Dataset, facts: facts.Facts) -> list[Verdict]:
    """Return a verdict for each rule, in the order of the rules; no verdict depends on another."""
    return [_rule(rule, attributes, facts) for rule in rules]


def check_rules(rules: Sequence[Rule]) -> None:
    """Raise `ConfigError` listing every name and value in the rules that can never hold."""
    wrong = [
        f"rules.{rule.name}.when.{name}: {problem}"
        for rule in rules
        for name, condition in rule.when.items()
        for problem in _problems(name, condition)
    ]
    if wrong:
        raise ConfigError("the rules have problems:\n" + "\n".join(f"  {line}" for line in wrong))


# -- checking


def _problems(name: str, condition: Condition) -> list[str]:
    if name.startswith(_FACT_PREFIX):
        if name not in facts.KNOWN:
            return [f"unknown fact{_near(name, facts.KNOWN)}"]
        return _word_problems(facts.KNOWN[name], condition)
    try:
        path = attributes.parse(name)
    except UnknownName as error:
        part = str(error)
        return [f"{part!r} is not a DICOM keyword{_near(part, [*keyword_dict, *facts.KNOWN])}"]
    if path.vr == "SQ" and not _only_presence(condition):
        return [f"{name} is a sequence: ask for present or absent, or for an attribute of its items ({name}.Keyword)"]
    return []


def _word_problems(words: Sequence[str], condition: Condition) -> list[str]:
    """Words that a fact never takes, such as a misspelt orientation."""
    found = _word_problems(words, condition.not_) if condition.not_ else []
    for wanted in (condition.equals or []) if words else []:
        if str(wanted) not in words and not any(wanted == _YAML_WORDS.get(word) for word in words):
            found.append(f"{wanted!r} is none of {', '.join(words)}{_near(str(wanted), words)}")
    return found


def _only_presence(condition: Condition) -> bool:
    inner = condition.not_
    others = (condition.equals, condition.matches, condition.min, condition.max, condition.contains)
    return all(one is None for one in others) and (inner is None or _only_presence(inner))


def _near(name: str, known: Iterable[str]) -> str:
    by_lower = {one.lower(): one for one in known}
    close = difflib.get_close_matches(name.lower(), by_lower, 1, 0.6)
    return f" (did you mean {by_lower[close[0]]!r}?)" if close else ""


# -- evaluating


def _rule(rule: Rule, dataset: Dataset, known: facts.Facts) -> Verdict:
    conditions = tuple(_named(name, condition, dataset, known) for name, condition in rule.when.items())
    return Verdict(rule.name, all(one.ok for one in conditions), conditions)


def _named(name: str, condition: Condition, dataset: Dataset, known: facts.Facts) -> ConditionVerdict:
    secret = False
    if name.startswith(_FACT_PREFIX):
        seen = attributes.fact_values(name, known)
    else:
        try:
            path = attributes.parse(name)
        except UnknownName:
            return ConditionVerdict(name, described(condition), "(nothing)", False, "unknown keyword")
        seen, secret = attributes.values(path, dataset), path.secret
        seen = _with_uid_names(path, seen, condition)
    ok, why = _holds(condition, seen)
    if secret and seen:
        return ConditionVerdict(name, described(condition), _WITHHELD, ok, "it fits" if ok else "it does not fit")
    return ConditionVerdict(name, described(condition), _shown(seen), ok, why)


def _with_uid_names(path: Path, seen: list[Value], condition: Condition) -> list[Value]:
    """Let ``SOPClassUID: CTImageStorage`` mean what it says: replace a UID by the name that is asked for."""
    if path.vr != "UI":
        return seen
    wanted = {str(one) for one in _all_equals(condition)}
    named = []
    for value in seen:
        names = attributes.uid_names(value.text) & wanted
        named.append(Value(names.pop()) if names else value)
    return named


def _all_equals(condition: Condition) -> list[str | int | float]:
    return [*(condition.equals or []), *(_all_equals(condition.not_) if condition.not_ else [])]


def _holds(condition: Condition, seen: Sequence[Value]) -> tuple[bool, str]:
    """Return whether a condition holds, and the first reason against it (or why it does)."""
    reasons = []
    if condition.present is not None:
        there = bool(seen)
        if there != condition.present:
            return False, "it is there" if there else "it is absent or empty"
        reasons.append("it is there" if there else "it is absent or empty")
    if condition.not_ is not None:
        inner, why = _holds(condition.not_, seen)
        if inner:
            return False, f"excluded: {why}"
        reasons.append(f"not excluded: {why}")
    asks = (
        (condition.equals is not None, _equals),
        (condition.matches is not None, _matches),
        (condition.min is not None or condition.max is not None, _between),
        (condition.contains is not None, _contains),
    )
    for asked, test in asks:
        if not asked:
            continue
        if not seen:
            return False, "it is absent or empty"
        ok, why = test(condition, seen)
        if not ok:
            return False, why
        reasons.append(why)
    return True, "; ".join(reasons)


def _equals(condition: Condition, seen: Sequence[Value]) -> tuple[bool, str]:
    for wanted in condition.equals or []:
        if any(_same(wanted, value) for value in seen):
            return True, f"equals {wanted}"
    return False, "equals none of the wanted values" if len(condition.equals or []) > 1 else "differs"


def _same(wanted: str | int | float, value: Value) -> bool:
    if isinstance(wanted, str):
        text = wanted.strip()
        if text == value.text:
            return True
        number = attributes.number_of(text)
        return number is not None and number == value.number
    if value.text in _YAML_WORDS:
        return wanted == _YAML_WORDS[value.text]
    return value.number is not None and math.isclose(value.number, wanted, rel_tol=1e-9, abs_tol=0.0)


def _matches(condition: Condition, seen: Sequence[Value]) -> tuple[bool, str]:
    pattern = re.compile(condition.matches or "")
    found = next((matched for value in seen if (matched := pattern.search(value.text))), None)
    return (True, f"{_cut(found[0])!r} matches") if found else (False, "the pattern is not found")


def _between(condition: Condition, seen: Sequence[Value]) -> tuple[bool, str]:
    low = -math.inf if condition.min is None else condition.min
    high = math.inf if condition.max is None else condition.max
    numbers = [value.number for value in seen if value.number is not None]
    if not numbers:
        return False, "it is not a number"
    fitting = next((number for number in numbers if low <= number <= high), None)
    if fitting is not None:
        return True, f"{fitting:g} is within the limits"
    nearest = numbers[0]
    return False, f"{nearest:g} is below {low:g}" if nearest < low else f"{nearest:g} is above {high:g}"


def _contains(condition: Condition, seen: Sequence[Value]) -> tuple[bool, str]:
    wanted = condition.contains or []
    missing = [text for text in wanted if not any(text.strip() in value.text for value in seen)]
    return (False, f"{', '.join(missing)} not found") if missing else (True, f"contains {', '.join(wanted)}")


# -- showing


def described(condition: Condition) -> str:
    """Say a condition in words."""
    parts = []
    if condition.present is not None:
        parts.append("present" if condition.present else "absent")
    if condition.equals is not None:
        parts.append(" or ".join(map(str, condition.equals)) or "(nothing)")
    if condition.matches is not None:
        parts.append(f"matches {condition.matches}")
    if condition.min is not None:
        parts.append(f"at least {condition.min:g}")
    if condition.max is not None:
        parts.append(f"at most {condition.max:g}")
    if condition.contains is not None:
        parts.append("contains " + " and ".join(condition.contains))
    if condition.not_ is not None:
        parts.append(f"not ({described(condition.not_)})")
    return ", ".join(parts)


def _shown(seen: Sequence[Value]) -> str:
    if not seen:
        return "(absent)"
    shown = "\\".join(_cut(value.text) for value in seen[:_MOST_SEEN])
    return shown if len(seen) <= _MOST_SEEN else f"{shown}\\... ({len(seen)} values)"


def _cut(text: str) -> str:
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= _LONGEST_SEEN else text[:_LONGEST_SEEN] + "..."
