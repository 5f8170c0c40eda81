"""Strength 0 with sliders in the chain: every kind of slider at 0, sliders that cancel out, and a bypassed one.

Each kind of chain is run with ComfyUI's own samplers, at guidance 1 and 4, from fresh and from inverted noise; the
latent must be that of the picture, bit for bit.
"""

import itertools
import time
from collections.abc import Iterator

import torch

from benchmarks.portraits import INVERTED
from benchmarks.small_models import HashingClip
from latent_directions.core.direction import Direction
from latent_directions.nodes.encode import FRESH, InvertImage
from latent_directions.nodes.identify import FindDirections
from latent_directions.nodes.identify_prompts import FOUND
from latent_directions.nodes.manipulate import outputs, with_slider
from latent_directions.nodes.sockets import Inversion

FAMILIES = ("demo (SD3)", "sd1", "flux")
SAMPLERS = ("euler", "heun", "dpmpp_2m", "res_multistep")
SOURCE, TARGET, KEEP = "a person, sad, grey hair", "a person, smiling, grey hair", "a person, calm | a person, angry"
LIST = "demo portraits"
WORDS, PLACED, HSDS = "words", "words, found mask and keeps", "HSDS, found mask and keeps"
LIVE, RECORDED = False, True
# the sliders of each chain: what it moves, strength, whether its words are recorded
CHAINS = {
    "words live at 0": [(WORDS, 0.0, LIVE)],
    "words recorded at 0": [(WORDS, 0.0, RECORDED)],
    "found mask and keeps, live, at 0": [(PLACED, 0.0, LIVE)],
    "found mask and keeps, recorded, at 0": [(PLACED, 0.0, RECORDED)],
    "HSDS, found mask and keeps, at 0": [(HSDS, 0.0, LIVE)],
    "four sliders, all at 0": [(WORDS, 0.0, LIVE), (PLACED, 0.0, LIVE), (PLACED, 0.0, RECORDED), (HSDS, 0.0, LIVE)],
    "words live, 1 and -1": [(WORDS, 1.0, LIVE), (WORDS, -1.0, LIVE)],
    "words recorded, 1 and -1": [(WORDS, 1.0, RECORDED), (WORDS, -1.0, RECORDED)],
    "found mask and keeps, live, 1 and -1": [(PLACED, 1.0, LIVE), (PLACED, -1.0, LIVE)],
    "found mask and keeps, recorded, 1 and -1": [(PLACED, 1.0, RECORDED), (PLACED, -1.0, RECORDED)],
    "HSDS, found mask and keeps, 1 and -1": [(HSDS, 1.0, LIVE), (HSDS, -1.0, LIVE)],
    "found mask and keeps, live, 0.1, 0.2 and -0.3": [(PLACED, 0.1, LIVE), (PLACED, 0.2, LIVE), (PLACED, -0.3, LIVE)],
    "HSDS, found mask and keeps, 0.1, 0.2 and -0.3": [(HSDS, 0.1, LIVE), (HSDS, 0.2, LIVE), (HSDS, -0.3, LIVE)],
    "no slider, all bypassed": [],
}


def rows(subject, clip, samplers=SAMPLERS) -> Iterator[dict]:
    """Every chain on one `benchmarks.encode.Subject`, worst case over samplers, guidance and noise.

    Args:
        subject: model, prompts and latent.
        clip: the model's text encoder.
        samplers: of ComfyUI, by name.
    """
    for method in (FRESH, INVERTED):
        options = {"level": 0.6, "steps": 4, "method": method}
        encoded = InvertImage.execute(subject.model, subject.positive, subject.latent, **options).args
        sigmas, inversion = encoded[2], encoded[4]
        directions = {name: _found(subject, clip, inversion, name) for name in (WORDS, PLACED, HSDS)}
        for chain, sliders in CHAINS.items():
            moved = inversion
            for name, strength, recorded in sliders:
                moved = with_slider(moved, directions[name], strength, recorded=recorded)
            for sampler, guidance in itertools.product(samplers, (1.0, 4.0)):
                started = time.perf_counter()
                after = subject.sampled(*outputs(moved), sampler, sigmas, guidance)
                yield {
                    "family": subject.family,
                    "chain": chain,
                    "method": method,
                    "sampler": sampler,
                    "guidance": guidance,
                    "zero_strength_max_abs_diff": float((after - subject.latent["samples"]).abs().max()),
                    "same": torch.equal(after, subject.latent["samples"]),
                    "seconds": round(time.perf_counter() - started, 3),
                }


def clip_of(subject, bench):
    """The text encoder of a subject: the demo model's own, for others one of random vectors."""
    return bench.clip if subject.model is bench.model else HashingClip(subject)


def summary(found: list[dict]) -> list[dict]:
    """One line a chain: its runs, the largest difference in each family, and the runs that were not bit-identical."""
    families = dict.fromkeys(row["family"] for row in found)
    lines = []
    for chain in dict.fromkeys(row["chain"] for row in found):
        mine = [row for row in found if row["chain"] == chain]
        largest = {
            family: f"{max(r['zero_strength_max_abs_diff'] for r in mine if r['family'] == family):.1e}"
            for family in families
        }
        lines.append({"chain": chain, "runs": len(mine), **largest, "not exact": sum(not row["same"] for row in mine)})
    return lines


def _found(subject, clip, inversion: Inversion, name: str) -> Direction:
    method = "HSDS" if name == HSDS else "text"
    options = {} if name == WORDS else {"keep": KEEP, "find_keeps": LIST, "where": FOUND}
    found = FindDirections.execute(subject.model, inversion, method, SOURCE, TARGET, clip=clip, **options).args[0][0]
    assert name == WORDS or (found.keep and found.mask is not None)
    return found
