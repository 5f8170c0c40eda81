"""The Jacobian methods on three trained models, by the properties that LOCO Edit (arXiv 2409.02374) claims for itself.

    python -m benchmarks.jacobian [--quick] [--json FILE] [--sheet PICTURE] [--models NAME ...] [--methods NAME ...]

Held-out portraits of the demo's correlated world by a fixed seed, under the prompt "a face" (the DDPM takes none),
inverted to one level for all methods; the regions mouth, eyes and hair take turns. The region is the cells of the
latent that Find Directions makes of a mask, and the same cells as pixels.

Every method gives one direction. Strength 1 of all of them makes the root mean square change of D inside the region
0.25 standard deviations by J v. Edits are sampled by the pack's Direction Slider and ComfyUI's euler to both sides, and
**compared at the same change**: the strength is looked for, in at most four runs to each side, at which the root mean
square change of the region's pixels is what it is when one of its attributes is drawn one standard deviation
differently. Figures are interpolated linearly in that change between the two runs that enclose it. A move is at most as
long as the noise is; one that does not reach the change has failed.

Local success: to one side at least, an attribute of the region changes by 0.5 standard deviations (or 0.5 of its
probability) and by more than all attributes outside the region together; an attribute is of the region when at least
half of what changes in the drawing with it lies there. The paper has people say whether one feature alone has been
edited. Leakage ratio: |change outside| / (|outside| + |inside|) in pixels, mean of both sides.
Attributes outside: the sum of the changes of all attributes that are not the region's. Transfer success: of the local
edits, those that at the same strength on another portrait change the same attribute most, plainly and to the same side.
Linearity error: |D(x + s v) - D(x) - s J v| / |s J v| at strengths s; norm ratio and cosine are the paper's, between
D(x + s v) and D(x) + s J v. Effect inside: share of |J v|^2 inside the region. Homogeneity (the paper: the same change
on any picture and noise level): cosine of the changes of all attributes here and on another portrait, or at a level 0.3
lower. Composition error: |z(v1 + v2) - z(v1) - z(v2) + z(0)| / |z(v1 + v2) - z(0)|, z the sampled latent and v2 the
method's second direction. Other levels and composition are measured on 12 of 30 portraits. Rank ratio (the paper's):
the smallest share of singular values with more than 0.99^2 of the energy, from the dense Jacobian at the first
portrait. Curvedness (2302.12469): how much longer the features of the network become along a straight line between two
noisy latents than the distance of its ends. Measures that are not said to be a paper's are ours.

With --json the rows go into the file as lines of JSON, and a stopped run goes on from there.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.command import parser
from benchmarks.jacobian import levels, rows, tables
from benchmarks.jacobian.methods import FINDERS
from benchmarks.jacobian.rows import RowFile
from benchmarks.jacobian.sheet import sheet
from benchmarks.jacobian.subjects import REGIONS, STEPS, SUBJECTS, TUNING, Subject
from benchmarks.tables import print_table

PORTRAITS, TUNED_ON = 30, 6
TRIED = (0.5, 0.6, 0.7, 0.8)


def weights_of(subject: Subject) -> str:
    """A digest of a model's weights, so that rows of another training are measured anew."""
    digest = hashlib.sha256()
    for weight in subject.bench.model.model.diffusion_model.parameters():
        digest.update(weight.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:12]


def edit_rows(subject: Subject, methods: Iterable[str], kept: RowFile, count: int) -> list[dict]:
    """The rows of all methods on portraits 0 to `count` - 1; each is also tried on the next with the same region."""
    found, shared = [], {"level": subject.level, "seed": subject.seed, "steps": STEPS, "weights": weights_of(subject)}
    for number in range(count):
        partner = (number + len(REGIONS)) % max(count, 2 * len(REGIONS))
        for method in methods:
            key = {"model": subject.name, "method": method, "picture": number} | shared
            found.append(kept.get(key, lambda m=method, n=number, p=partner: rows.measured(subject, m, n, p)))
    return found


def level_rows(subject: Subject, kept: RowFile) -> list[dict]:
    """The rank of the Jacobian at portrait 0, and the curvedness between it and the next two, level by level."""
    weights = weights_of(subject)
    found = []
    for level in levels.LEVELS:
        key = {"model": subject.name, "at": level, "seed": subject.seed, "weights": weights}
        found.append(kept.get(key, lambda at=level: levels.measured(subject, at)))
    return found


def tuning_lines(subject: Subject, kept: RowFile) -> list[dict]:
    """LOCO, as the paper has it but for the order of projection, at the levels of TRIED on the tuning portraits."""
    lines = []
    for level in TRIED:
        tried = replace(subject, level=level, seed=TUNING)
        line = tables.by_method(edit_rows(tried, [tables.FIRST], kept, TUNED_ON))[0]
        chosen = "x" if level == subject.level else ""
        lines.append(
            {"model": subject.name, "level": level, "in use": chosen}
            | {name: line[name] for name in ("reached", "local success", "leakage ratio", "transfer success")}
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its tables."""
    options = _parser().parse_args(arguments)
    kept, quick = RowFile(options.json), options.quick
    subjects = [SUBJECTS[name] for name in (options.models or list(SUBJECTS)[: 1 if quick else None])]
    with torch.inference_mode():
        if options.tune:
            print_table([line for subject in subjects for line in tuning_lines(subject, kept)])
            return
        methods = options.methods or list(FINDERS)
        found = [row for one in subjects for row in edit_rows(one, methods, kept, 1 if quick else options.portraits)]
        for title, lines in (
            ("Edits at the same change", tables.by_method(found)),
            ("Properties of the directions", tables.by_property(found)),
            ("The order", tables.order(found)),
        ):
            print(f"\n{title}:\n")
            print_table(lines)
        if not quick:
            print("\nBy noise level:\n")
            print_table(levels.by_level([row for subject in subjects for row in level_rows(subject, kept)]))
        if options.sheet:
            sheet(subjects, found).save(options.sheet)


def _parser():
    made = parser(__doc__, "one portrait, the first model alone, nothing by noise level")
    made.add_argument("--models", nargs="+", metavar="MODEL", choices=list(SUBJECTS), help="only these models")
    made.add_argument("--methods", nargs="+", metavar="METHOD", choices=list(FINDERS), help="only these methods")
    made.add_argument("--portraits", type=int, default=PORTRAITS, help=f"portraits a model, {PORTRAITS} by default")
    made.add_argument("--sheet", type=Path, metavar="PICTURE", help="also write pictures of the first portraits")
    made.add_argument("--tune", action="store_true", help="only LOCO at several levels on the tuning portraits")
    return made
