"""Write what the help of Find Directions says of each method, from core/methods.py: python scripts/node_help.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.environment import ROOT, enter, register_package

PAGE = ROOT / "web" / "docs" / "LatentDirections_FindDirections.md"
BEGIN, END = "<!-- methods: written by scripts/node_help.py -->\n", "<!-- end of methods -->"


def with_methods(page: str) -> str:
    """Return the page with its list of methods as core/methods.py has it."""
    from latent_directions.core.methods import METHODS

    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    lines = "".join(
        f"- **{method.label or method.name}** (in the API `{method.name}`): {method.summary}.\n"
        for method in METHODS.values()
    )
    return f"{before}{BEGIN}{lines}{END}{after}"


def main() -> None:
    """Write the page."""
    enter()
    register_package()
    PAGE.write_text(with_methods(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
