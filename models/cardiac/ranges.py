"""Reference ranges out of a file beside the weights: shown with their source, never compared with the patient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

FILE: Final = "normal_ranges.yaml"
#: Standard deviations on either side of the mean that hold 95 % of a normal population.
COVERAGE: Final = 1.96
#: What may have a range, what it is called, its unit and its decimals.
KNOWN: Final = {
    "lv_ef": ("LV EF", "%"),
    "rv_ef": ("RV EF", "%"),
    "lv_edv_index": ("LV EDV", "mL/m²"),
    "lv_esv_index": ("LV ESV", "mL/m²"),
    "rv_edv_index": ("RV EDV", "mL/m²"),
    "lv_mass_index": ("LV mass", "g/m²"),
}
SEXES: Final = {"F": "women", "M": "men"}


class RangesError(Exception):
    """The file of reference ranges does not say what it must; the message names the key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranges:
    """Ranges of one population."""

    citation: str
    population: str
    #: Youngest and oldest [years].
    ages: tuple[float, float]
    convention: str
    #: (lowest, highest) by name and sex.
    limits: Mapping[tuple[str, str], tuple[float, float]]

    def sentence(self, sex: str, age: float | None, *, indexed: bool) -> str:
        """What a report shows; empty where the ranges are not for such a patient.

        Parameters
        ----------
        age
            In years; None where not known: the population's ages are named in any case.
        indexed
            Whether the patient's values are indexed by body surface.
        """
        if sex not in SEXES or (age is not None and not self.ages[0] <= age <= self.ages[1]):
            return ""
        shown = [
            f"{KNOWN[name][0]} {low:.0f} to {high:.0f} {KNOWN[name][1]}"
            for (name, of), (low, high) in self.limits.items()
            if of == sex and (indexed or not name.endswith("_index"))
        ]
        if not shown:
            return ""
        return (
            f"Reference ranges of a population, no judgement of this patient: {'; '.join(shown)} ({SEXES[sex]} of "
            f"{self.ages[0]:g} to {self.ages[1]:g} years, {self.population}; {self.convention}; {self.citation})."
        )


def load(folder: Path) -> Ranges | None:
    """The ranges beside the weights; None where there are none.

    Raises
    ------
    RangesError
        The file is there and wrong: nobody should read a range that somebody mistyped.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    try:
        given: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        youngest, oldest = (float(age) for age in given["age_years"])
        limits = {
            (name, sex): (
                float(one["mean"]) - COVERAGE * float(one["sd"]),
                float(one["mean"]) + COVERAGE * float(one["sd"]),
            )
            for name, by_sex in given["ranges"].items()
            for sex, one in by_sex.items()
        }
        texts = [str(given[key]).strip() for key in ("citation", "population", "convention")]
    except (KeyError, TypeError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise RangesError(f"{FILE}: {type(error).__name__}: {error}") from error
    wrong = [f"{name} of {sex}" for name, sex in limits if name not in KNOWN or sex not in SEXES]
    wrong += [f"{name} of {sex}: sd" for (name, sex), (low, high) in limits.items() if not 0.0 <= low < high]
    wrong += [key for key, text in zip(("citation", "population", "convention"), texts, strict=True) if not text]
    if wrong or not youngest < oldest:
        raise RangesError(f"{FILE}: not known or not possible: {', '.join(wrong) or 'age_years'}")
    return Ranges(citation=texts[0], population=texts[1], convention=texts[2], ages=(youngest, oldest), limits=limits)
