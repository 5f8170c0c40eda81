"""Make the pictures and print the tables of docs/strengths.md: strengths, and levels of Encode Picture.

    python scripts/strengths.py

It runs the template First slider with the demo model: what the words of the demo move, at several strengths, and at
strength 1 from several levels. What moves is shown as a share of the attribute's range in the drawings; of things that
are there or not, as the change of their probability. "Rest" is the mean change of all other attributes, in standard
deviations or probability.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.comfy_server import Server
from scripts.environment import ROOT, enter, register_package

DOCS = ROOT / "docs"
STRENGTHS = (-2, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3)
LEVELS = (0.3, 0.5, 0.7, 0.9)
TILE = 128  # pixels


def main() -> int:
    """Make all pictures and return the exit status."""
    environment = enter()
    register_package()
    from scripts import strips, workflow

    with Server(environment) as server:
        info = server.wait().client.object_info()
        graph = json.loads(strips.TEMPLATE.read_text(encoding="utf-8"))
        prompt = strips.with_outputs(workflow.to_prompt(graph, info), info)
        invert, find = workflow.find(prompt, strips.INVERT), workflow.find(prompt, strips.FIND)
        by_strength, by_level = {}, {}
        for name, words in strips.MOVED.items():
            given = dict(zip(("source", "target"), (f"{strips.PLAIN_PROMPT}, {word}" for word in words), strict=True))
            moved = workflow.with_inputs(prompt, {find: given})
            by_strength[name] = {at: strips.edit(server, moved, name, at).picture for at in STRENGTHS}
            before = by_strength[name][0]
            lower = {level: workflow.with_inputs(moved, {invert: {"level": level}}) for level in LEVELS}
            at_one = {level: strips.edit(server, made, name, 1).picture for level, made in lower.items()}
            by_level[name] = {"before": before, **at_one}
    write("strengths.jpg", by_strength, 0)
    write("levels.jpg", by_level, "before")
    return 0


def write(file: str, pictures: dict, zero: float | str) -> None:
    """Save {name: {column: picture}} as a sheet, and print how far each is from the picture in the column `zero`."""
    from latent_directions.core.contact_sheet import contact_sheet
    from scripts import strips

    rows = [(name, [(str(column), made) for column, made in row.items()]) for name, row in pictures.items()]
    contact_sheet(rows, TILE).save(DOCS / file, quality=85)
    columns = list(next(iter(pictures.values())))
    print("|".join(["", " what moves ", *(f" {column} " for column in columns), ""]))
    print("|".join(["", *["---"] * (len(columns) + 1), ""]))
    for name, row in pictures.items():
        moved, rest = changes(list(row.values()), columns.index(zero), *strips.MOVED[name])
        print("|".join(["", f" {name} ", *(f" {100 * value:+.0f} % " for value in moved), ""]))
        print("|".join(["", " rest ", *(f" {value:.2f} " for value in rest), ""]))


def changes(pictures: list, zero: int, source: str, target: str) -> tuple[list[float], list[float]]:
    """Return by how much each picture differs from picture number `zero` in what the words say, and in the rest."""
    import numpy as np

    from latent_directions.demo import measures

    values = measures.Reader().read(pictures)
    name, phrase = measures.target_of(source, target)
    attribute = measures.ATTRIBUTES[name]
    moved = measures.target_values(values, name, phrase)
    extent = attribute.high - attribute.low if attribute.kind == "continuous" else 1
    rest = [measures.leakage(values, zero, other) for other in measures.ATTRIBUTES if other != name]
    return list((moved - moved[zero]) / extent), list(np.mean(rest, axis=0))


if __name__ == "__main__":
    sys.exit(main())
