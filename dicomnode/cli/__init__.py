"""Words typed by a person: parse, call, print. No logic of the node lives here."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from dicomnode import __version__
from dicomnode.errors import NodeError

__all__ = ["main", "parser"]

#: Which module here adds a command. Only that one is loaded, for some pay for much (highdicom, ismrmrd): a person who
#: asks for the list of jobs, and the node itself, should not.
COMMANDS: Final = {
    "serve": "serve", "check": "check", "route": "route", "run": "run", "series": "series", "jobs": "jobs",
    "quarantine": "quarantine", "send": "peers", "echo": "peers", "wrap": "wrap", "mrd-convert": "convert",
    "mrd-send": "mrd_send", "raw": "raw", "demo": "demo",
}  # fmt: skip

_EXIT_CODES = """
exit codes:
  0  done
  1  done, and the answer is no (a check failed, an object was not accepted, nothing matched)
  2  the command line or the configuration is wrong
  3  the node or a peer failed
"""


def parser(command: str = "") -> argparse.ArgumentParser:
    """Build the command line: of one command, or the whole where ``command`` is none of them."""
    root = argparse.ArgumentParser(
        prog="dicomnode",
        description="A DICOM node between scanners and PACS: series in, AI results out. For research use.",
        epilog="Configuration: --config FILE, else $DICOMNODE_CONFIG, else ./node.yaml, else /etc/dicomnode/node.yaml."
        + _EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("--version", action="version", version=f"dicomnode {__version__}")
    commands = root.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in [COMMANDS[command]] if command in COMMANDS else dict.fromkeys(COMMANDS.values()):
        import_module(f"dicomnode.cli.{module}").add(commands)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of the ``dicomnode`` command."""
    words = sys.argv[1:] if argv is None else argv
    arguments = parser(words[0] if words else "").parse_args(words)
    try:
        code: int = arguments.action(arguments)
    except NodeError as error:
        sys.stderr.write(f"dicomnode: {error}\n")
        return 2 if type(error).__name__ == "ConfigError" else 3
    except ValidationError as error:  # a value typed on the command line, such as AE@host:port
        sys.stderr.write(f"dicomnode: {'; '.join(problem['msg'] for problem in error.errors())}\n")
        return 2
    except SQLAlchemyError as error:
        said = str(getattr(error, "orig", None) or error).splitlines()[0]
        sys.stderr.write(
            f"dicomnode: the database does not answer as expected: {said}; start the node once, or look at it\n"
        )
        return 3
    except KeyboardInterrupt:
        return 130
    return code
