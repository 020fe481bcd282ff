"""``dicomnode mrd-convert``: a scanner's own raw data file becomes an MRD file."""

from __future__ import annotations

import argparse
from pathlib import Path

from dicomnode.cli.common import Commands, command, err, out
from dicomnode.errors import ConfigError


def add(commands: Commands) -> None:
    """Add the command."""
    sub = command(
        commands, "mrd-convert", "make an MRD file of Siemens raw data (twix, Cartesian or echo-planar)",
        """
        dicomnode mrd-convert meas_MID00273.dat scan.h5
        dicomnode mrd-convert pulseq.dat scan.h5 --trajectory cartesian   # where the protocol does not say it
        """, _convert,
    )  # fmt: skip
    sub.add_argument("file", type=Path, metavar="FILE.dat")
    sub.add_argument("out", type=Path, metavar="OUT.h5")
    sub.add_argument("--trajectory", default="", choices=("", "cartesian", "epi"), help="of Pulseq sequences")
    sub.add_argument(
        "--trust-axes", action="store_true", help="the axes of a Pulseq sequence are the protocol's: you have compared"
    )


def _convert(arguments: argparse.Namespace) -> int:
    # The reader of twix files is an extra, and HDF5 takes longer to load than most commands.
    from dicomnode.volumes import mrd, twix

    if not arguments.file.is_file():
        raise ConfigError(f"{arguments.file} is not a file")
    notes = twix.convert(
        arguments.file, arguments.out, trajectory=arguments.trajectory, trust_axes=arguments.trust_axes
    )
    measured = mrd.open_mrd(arguments.out)
    encoding = measured.header.encodings[0]
    x, y, z = encoding.encoded_matrix
    lines = sum(1 for _ in measured.readouts)
    out.print(
        f"{arguments.out}: {lines} lines of {measured.header.coils} channels, {encoding.trajectory.value}, "
        f"encoded {x} x {y} x {z}"
    )
    for note in notes:
        err.print(f"note: {note}")
    return 0
