"""The command line that all benchmarks share."""

import argparse
import json
from pathlib import Path


def parser(description: str, quick: str = "") -> argparse.ArgumentParser:
    """--json FILE, and --quick where there is something that it leaves out."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if quick:
        made.add_argument("--quick", action="store_true", help=quick)
    made.add_argument("--json", type=Path, help="also write all rows to this file")
    return made


def write(rows: list[dict], path: Path | None) -> None:
    """Write all rows where --json asked for it."""
    if path:
        path.write_text(json.dumps(rows, indent=1))
