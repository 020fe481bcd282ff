"""What several CT pipelines ask of their input: a CT in HU that a network may read; a head or not."""

from __future__ import annotations

import re
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dicomnode import pipeline as dn

#: CT, Enhanced CT and Legacy Converted Enhanced CT Image Storage (PS3.4 B.5).
CT_CLASSES: Final = frozenset(
    {"1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2"}
)
#: ImageType values that name a page or a computed image and not an acquired plane (PS3.3 C.8.2.1.1.1 and vendors' own).
NOT_A_SLICE: Final = frozenset({"LOCALIZER", "SURVIEW", "SCOUT", "MPR", "PROJECTION IMAGE", "DOSE_INFO", "SCREEN SAVE"})
#: ImageType values of spectral images (PS3.3 C.8.15.3.9 and vendors' own): not the HU that networks were trained on.
SPECTRAL: Final = re.compile(
    r"^(VMI|MONO_?E|MONOENERGETIC|IODINE|VNC|VNE|MATERIAL|EFF_?ATOMIC|ELECTRON_?DENSITY|DE_|GSI)"
)
#: Fewest planes of a series worth a derived series.
FEWEST_SLICES: Final = 3
#: Slice thickness that the networks were made for [mm].
THICKNESS_MM: Final = (0.4, 10.0)
#: Values above this and below the soft tissue are air or lung; the mode of air is looked for below [HU].
AIR_BELOW_HU: Final = -500.0
#: The mode of air may lie no lower: -1000 +- 30, and -1024 where the scanner clips [HU].
AIR_MODE_HU: Final = -1045.0
#: Undeclared padding (-2000, -3024) lies below this [HU].
PADDING_BELOW_HU: Final = -1200.0

#: What a network puts out for a voxel, until somebody calibrates it on patients.
SCORE: Final = dn.Code("score", "99DICOMNODE", "AI score, not calibrated")
NO_UNITS: Final = dn.Code("1", "UCUM", "no units")

#: Soft tissue and fat [HU], and the least share of a series that they make up: a chest with much air holds 10 %.
SOFT_TISSUE_HU: Final = (-250.0, 300.0)
LEAST_TISSUE: Final = 0.005
#: Bone and metal lie above [HU]; a skull seen without any air around it stays below this share.
DENSE_HU: Final = 500.0
MOST_DENSE: Final = 0.4

#: Series that a deep-learning reconstruction or a denoiser has been over already.
DENOISED: Final = re.compile(
    r"denois|deep ?learning|\b((?-i:AI)|DLIR|TrueFidelity|AiCE|PIQE|Precise Image|ClariCT|PixelShine)\b", re.IGNORECASE
)
#: How this node marks the description of every series it makes.
OWN_RESULT: Final = re.compile(r"\bRUO\b(, incomplete)?\]?\s*$")
#: Descriptions of contrast series, and the words by which one says that it is none.
CONTRAST: Final = re.compile(
    r"\b(CTA|CTV|CTP|angio\w*|perfusion|arteri\w*|veno\w*|contrast|enhanced|post ?c|c\+|CE|KM|kontrast\w*"
    r"|inject\w*|bolus|ultravist|omnipaque|iomeron|visipaque|iopamiro)(?!\w)",
    re.IGNORECASE,
)
NO_CONTRAST: Final = re.compile(
    r"\b(non|no|without|w/o|wo|ohne|sans|un|pre)[- ]?(iv[- ]?)?(contrast|enhanced|kontrast\w*|KM|CE)\b"
    r"|\bnativ\w*|\bNCCT\b",
    re.IGNORECASE,
)
#: Values of ContrastBolusAgent that say that there was none.
NO_AGENT: Final = frozenset({"", "NONE", "NO", "N", "NO CONTRAST", "WITHOUT", "0"})
#: Bone, edge and lung kernels of several vendors: their noise hides what a brain kernel shows.
SHARP: Final = re.compile(
    r"\b(BONE(PLUS)?|EDGE|LUNG|ULTRA|DETAIL|[BHJQ][rvfsu]?[6-9]\d\w?|Y[A-E]|FC(3\d|5\d|8\d)|SHARP)\b", re.IGNORECASE
)
#: Age at which PatientAge counts as adult [years].
ADULT_YEARS: Final = 18.0
#: Years of a unit of PatientAge (PS3.5 6.2, AS).
_AGE_UNITS: Final = {"Y": 1.0, "M": 1.0 / 12.0, "W": 7.0 / 365.25, "D": 1.0 / 365.25}

_HEAD: Final = re.compile(
    r"\b(head|brain|skull|cranium|neuro|cerebral|sch(ä|ae)del|kopf|t(ê|e)te|crane)\b", re.IGNORECASE
)


def text(series: dn.ImageSeries, *keywords: str) -> str:
    """The values of ``keywords`` in one line, absent ones left out."""
    parts: list[str] = []
    for keyword in keywords:
        value = series.acquisition.get(keyword)
        if value is not None:
            parts += [str(part) for part in value] if isinstance(value, tuple) else [str(value)]
    return " ".join(part for part in parts if part)


def is_head(series: dn.ImageSeries) -> bool:
    """Whether the header speaks of a head."""
    return (
        _HEAD.search(text(series, "BodyPartExamined", "StudyDescription", "SeriesDescription", "ProtocolName"))
        is not None
    )


def number(series: dn.ImageSeries, keyword: str) -> float | None:
    """The value of ``keyword`` as a number, None where it is absent or no number."""
    value = series.acquisition.get(keyword)
    try:
        return None if value is None or isinstance(value, tuple) else float(value)
    except ValueError:
        return None


def age_years(series: dn.ImageSeries) -> float | None:
    """PatientAge in years, None where it is absent or unreadable."""
    value = text(series, "PatientAge").strip()
    if len(value) < 2 or not value[:-1].isdigit() or value[-1] not in _AGE_UNITS:
        return None
    return int(value[:-1]) * _AGE_UNITS[value[-1]]


def is_sharp(series: dn.ImageSeries) -> bool:
    """Whether ConvolutionKernel names a bone, edge or lung kernel."""
    return SHARP.search(text(series, "ConvolutionKernel")) is not None


def plane_weights_mm(series: dn.ImageSeries) -> NDArray[np.float64]:
    """Thickness that each plane stands for [mm]: half the distance to either neighbour along the slice normal.

    The outermost planes count their only neighbour twice. SliceThickness is not asked: planes overlap, or leave gaps.
    """
    if len(series.array) < 2:
        raise dn.Unsuitable("one plane has no thickness of its own")
    steps = np.abs(np.diff(series.slice_positions))
    weights: NDArray[np.float64] = 0.5 * (np.concatenate([steps[:1], steps]) + np.concatenate([steps, steps[-1:]]))
    return weights


def refuse_denoised(series: dn.ImageSeries) -> None:
    """Raise `Unsuitable` for the output of a denoiser, our own included: the original is the source."""
    for keyword in ("SeriesDescription", "ConvolutionKernel", "FilterType"):
        value = text(series, keyword)
        if DENOISED.search(value):
            raise dn.Unsuitable(f"denoised already; {keyword} is {value!r}")


def refuse_own_results(series: dn.ImageSeries) -> None:
    """Raise `Unsuitable` for what this node made: the original is the source, a vendor's reconstruction too."""
    value = text(series, "SeriesDescription")
    if OWN_RESULT.search(value):
        raise dn.Unsuitable(f"denoised already, by this node; SeriesDescription is {value!r}")


def refuse_contrast(series: dn.ImageSeries) -> None:
    """Raise `Unsuitable` where the header speaks of contrast medium; pixels may still show some."""
    agent = text(series, "ContrastBolusAgent").strip()
    if agent.upper() not in NO_AGENT:
        raise dn.Unsuitable(f"needs a series without contrast medium; ContrastBolusAgent is {agent!r}")
    # ProtocolName is not asked: it names all series of the examination, the plain one too
    value = text(series, "SeriesDescription")
    if CONTRAST.search(NO_CONTRAST.sub(" ", value)):
        raise dn.Unsuitable(f"needs a series without contrast medium; SeriesDescription is {value!r}")


def require_plain_ct(series: dn.ImageSeries) -> None:
    """Raise `Unsuitable` unless the header describes original CT slices in plain HU.

    An absent attribute is no reason to refuse: half of the real series lack one.
    """
    modality, sop_class = text(series, "Modality"), text(series, "SOPClassUID")
    if modality and modality != "CT":
        raise dn.Unsuitable(f"needs a CT series; Modality is {modality}")
    if sop_class and sop_class not in CT_CLASSES:
        raise dn.Unsuitable(f"needs CT images; SOPClassUID is {sop_class}")
    _require_original(series)
    if text(series, "BurnedInAnnotation").upper() == "YES":
        raise dn.Unsuitable("BurnedInAnnotation is YES: text in the pixels would be altered")
    photometric = text(series, "PhotometricInterpretation")
    if photometric and not photometric.startswith("MONOCHROME"):
        raise dn.Unsuitable(f"needs greyscale images; PhotometricInterpretation is {photometric}")
    rescale_type = text(series, "RescaleType")
    if rescale_type not in {"", "HU"} or series.units != dn.HU:
        raise dn.Unsuitable(f"needs HU; RescaleType is {rescale_type or 'absent'}, units are {series.units.value}")
    if text(series, "MultienergyCTAcquisition").upper() == "YES":
        raise dn.Unsuitable("MultienergyCTAcquisition is YES: spectral images are not plain HU")
    if len(series.array) < FEWEST_SLICES:
        raise dn.Unsuitable(f"needs {FEWEST_SLICES} slices or more; the series has {len(series.array)}")
    thickness = number(series, "SliceThickness")
    if thickness and not THICKNESS_MM[0] <= thickness <= THICKNESS_MM[1]:
        raise dn.Unsuitable(
            f"needs slices of {THICKNESS_MM[0]} to {THICKNESS_MM[1]} mm; SliceThickness is {thickness:g}"
        )


def _require_original(series: dn.ImageSeries) -> None:
    image_type = series.acquisition.get("ImageType", ())
    values = tuple(str(part).strip().upper() for part in image_type) if isinstance(image_type, tuple) else ()
    shown = "\\".join(values)
    if NOT_A_SLICE & set(values):
        raise dn.Unsuitable(f"needs acquired slices; ImageType is {shown}")
    if values[:1] == ("DERIVED",):
        raise dn.Unsuitable(f"needs original images, these are derived already; ImageType is {shown}")
    if values[1:2] == ("SECONDARY",):
        raise dn.Unsuitable(f"needs primary images, not a secondary capture; ImageType is {shown}")
    if any(SPECTRAL.match(value) for value in values[2:]):
        raise dn.Unsuitable(f"needs plain HU, not a spectral image; ImageType is {shown}")


def require_hounsfield(array: NDArray[np.float32], padding: NDArray[np.bool_]) -> None:
    """Raise `Unsuitable` if the values (slice, row, column) cannot be HU: infinite, clipped at 0, or air misplaced."""
    every = max(1, array.size // 4_000_000)  # a few million voxels say as much as all of them
    flat = array.reshape(-1)[::every]
    if not bool(np.isfinite(array).all()):
        raise dn.Unsuitable("the pixel values are not all finite")
    values = flat[~padding.reshape(-1)[::every]]
    if values.size == 0:
        raise dn.Unsuitable("every voxel is padding")
    lowest, highest = float(values.min()), float(values.max())
    if lowest == highest:
        raise dn.Unsuitable(f"every voxel has the value {lowest:g}")
    if lowest >= 0.0:
        raise dn.Unsuitable(f"the lowest value is {lowest:g}: not HU, or clipped at 0")
    tissue = float(((values > SOFT_TISSUE_HU[0]) & (values < SOFT_TISSUE_HU[1])).mean())
    if tissue < LEAST_TISSUE:
        raise dn.Unsuitable(f"{tissue:.1%} of the values are those of soft tissue: not HU, or no body")
    low = values[values <= PADDING_BELOW_HU]
    if low.size > 0.01 * values.size and float((low == np.median(low)).mean()) < 0.5:  # padding has one value
        raise dn.Unsuitable(f"{low.size / values.size:.0%} of the values vary below {PADDING_BELOW_HU:g}: not HU")
    air = values[(values < AIR_BELOW_HU) & (values > PADDING_BELOW_HU)]
    dense = float((values > DENSE_HU).mean())
    if air.size == 0 and dense > MOST_DENSE:
        raise dn.Unsuitable(f"no air, and {dense:.0%} of the values above {DENSE_HU:g}: not HU, the rescale is missing")
    if air.size > 0.01 * values.size:
        counts, edges = np.histogram(air, bins=70, range=(PADDING_BELOW_HU, AIR_BELOW_HU))
        mode = float(edges[int(np.argmax(counts))]) + 5.0
        if mode < AIR_MODE_HU:
            raise dn.Unsuitable(f"air lies at {mode:.0f} HU, not near -1000: the rescale is wrong")


def score_map(output: NDArray[np.floating]) -> dn.ParametricMap:
    """A network's output, 0..1, for every voxel: for destinations whose profile names ``parametric_map``."""
    values = np.asarray(output, np.float32)
    return dn.ParametricMap(values=values, quantity=SCORE, unit=NO_UNITS, role="score", label="AI score")
