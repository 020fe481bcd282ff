"""The bars a first delivery must reach, and whether it does (ml-mr 3; retrospective undersampling throughout)."""

from __future__ import annotations

from typing import Any, Final

#: Compressed sensing: ours and the libraries'.
SPARSE: Final = ("cs-wavelet", "cs-tv", "bart-l1", "sigpy-l1")
#: Gain [dB] over zero-filling, and over BART's L1-wavelet, with one coil at R=4.
OVER_ZERO, OVER_BART = 5.0, 1.5
#: Gain [dB] over the best compressed sensing with eight coils at R=4 and R=8.
OVER_SPARSE_4, OVER_SPARSE_8 = 0.0, 2.0
#: PSNR [dB] of CG-SENSE on the real sphere at R=4.
SPHERE_CG: Final = 36.0
SPHERE: Final = "sphere, 16 coils"

Row = dict[str, Any]


def _least_gain(group: dict[str, Row]) -> tuple[float, str]:
    """The gain over the compressed sensing that is nearest, each on the frames it saw."""
    gains = {name: group[name]["learned_gain"] for name in SPARSE if name in group}
    nearest = min(gains, key=lambda name: gains[name])
    return gains[nearest], nearest


def _row(what: str, measured: float, bar: float, unit: str = "dB") -> Row:
    return {"what": what, "measured": round(measured, 3), "bar": f">= {bar:g} {unit}", "met": measured >= bar}


def judge(found: dict[str, Any]) -> list[Row]:
    """Every bar of which there is a measurement."""
    groups, rows = found["groups"], []
    single = groups.get("cine, 1 coil, variable R=4")
    if single:
        over_zero, over_bart = (single[name]["learned_gain"] for name in ("zero-filled", "bart-l1"))
        rows.append(_row("1 coil, variable R=4: gain over zero-filling", over_zero, OVER_ZERO))
        rows.append(_row("1 coil, variable R=4: gain over BART L1-wavelet", over_bart, OVER_BART))
    for acceleration, bar in ((4, OVER_SPARSE_4), (8, OVER_SPARSE_8)):
        group = groups.get(f"cine, 8 coils, variable R={acceleration}")
        if group:
            gain, nearest = _least_gain(group)
            rows.append(_row(f"8 coils, variable R={acceleration}: gain over the best CS ({nearest})", gain, bar))
    if f"{SPHERE}, uniform R=4" in groups:
        sphere = groups[f"{SPHERE}, uniform R=4"]["cg-sense"]["psnr"]
        rows.append(_row("real sphere, 16 coils, uniform R=4: CG-SENSE", sphere, SPHERE_CG))
    tried = found["gate"].get(SPHERE, [])
    if tried:
        share = 100.0 * sum(one["passes"] for one in tried) / len(tried)
        rows.append(_row(f"the same, {len(tried)} samplings: as good as CG-SENSE or refused", share, 100.0, "%"))
    return rows
