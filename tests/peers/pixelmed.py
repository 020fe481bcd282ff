"""PixelMed's SR validator, the gate of the IHE AIR Connectathon: all files of a test in one Java machine.

The validator's own program takes one file and spends seconds on its style sheets each time, so BeanShell (which needs
no compiler) calls it for every file in turn.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

JARS = Path("/usr/share/java")
PACKAGES = "libpixelmed-java, libbsh-java and a Java runtime"
#: JDK 17 and newer limit XPath to less than the validator's style sheets need (JAXP0801003).
_LIMITS = [f"-Djdk.xml.xpath{name}Limit=0" for name in ("ExprOp", "TotalOp", "ExprGrp")]
_SCRIPT = """
validator = new com.pixelmed.validate.DicomSRValidator();
for (name : bsh.args) {
    System.out.println("@@" + name);
    System.out.println(validator.validate(name));
}
"""


@dataclass(frozen=True)
class Verdict:
    errors: list[str]
    warnings: list[str]
    text: str


def require() -> None:
    """Skip without the packages; fail in CI."""
    there = shutil.which("java") and (JARS / "pixelmed.jar").exists() and (JARS / "bsh.jar").exists()
    if not there and os.environ.get("CI"):
        pytest.fail(f"{PACKAGES} must be installed in CI")
    if not there:
        pytest.skip(f"not installed: {PACKAGES}")


def validate(paths: Sequence[Path], *, timeout: float = 300) -> dict[Path, Verdict]:
    """What PixelMed says of each file."""
    with tempfile.NamedTemporaryFile("w", suffix=".bsh") as script:
        script.write(_SCRIPT)
        script.flush()
        options = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", *_LIMITS, "-cp", f"{JARS}/*"]
        run = subprocess.run(
            ["java", *options, "bsh.Interpreter", script.name, *map(str, paths)],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
    found = {}
    for part in run.stdout.split("@@")[1:]:
        name, _, text = part.partition("\n")
        lines = text.splitlines()
        found[Path(name)] = Verdict(
            errors=[line for line in lines if "Error" in line],
            warnings=[line for line in lines if "Warning" in line],
            text=text,
        )
    missing = [path for path in paths if path not in found or "validation complete" not in found[path].text]
    assert not missing, f"no verdict on {missing}: {run.stdout[-2000:]} {run.stderr[-2000:]}"
    return found
