"""The exact return: a prediction that leads every deterministic sampler back to the encoded picture at strength 0.

With x_ref(sigma) = a x0 + b n the sampler sees
    D'(x) = x0 + w (D(x, edited prompt) - D(x_ref, source prompt)).
On the reference path with the source prompt D' = x0, and a sampler that is exact for a constant prediction ends at x0.
Our construction; compare direct inversion (arXiv 2310.01506). The difference may be averaged over several noises n, or
taken with noise drawn anew at every level, which makes Euler's method the one of FlowEdit (arXiv 2412.08629) and of
edit-friendly DDPM inversion without its own noise (arXiv 2304.06140).
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .inversion import seeded_noise

# Rounding differs between two ways to the same point; below this relative distance they are the same point.
SNAP = 1e-5


@dataclass(frozen=True)
class NoisePaths:
    """The noises n of the reference paths a x0 + b n over which the model's change is averaged.

    Attributes:
        base: the noise (B, C, H, W) that sampling starts from at strength 0.
        seeds: of further noises; with `fresh` of all of them.
        fresh: whether noise is drawn anew at every noise level, in place of `base` too.
    """

    base: Tensor
    seeds: tuple[int, ...] = ()
    fresh: bool = False

    def at(self, sigma: float) -> list[Tensor]:
        """The noises at one noise level; the same seeds and level give the same noises."""
        if not self.fresh:
            return [self.base, *(seeded_noise(self.base, seed) for seed in self.seeds)]
        level = struct.unpack("<q", struct.pack("<d", sigma))[0]
        return [seeded_noise(self.base, hash((seed, level)) & 0xFFFFFFFFFFFFFFFF) for seed in self.seeds]


@dataclass
class ReferenceCache:
    """Predictions on the reference path, shared by all slider positions; oldest entries leave first."""

    max_bytes: int = 512 * 2**20
    _entries: OrderedDict[Hashable, Tensor] = field(default_factory=OrderedDict)
    bytes: int = 0

    def get(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """The prediction stored under `key`, computed on the first call."""
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key]
        value = compute()
        self._entries[key] = value
        self.bytes += value.nbytes
        while self.bytes > self.max_bytes and len(self._entries) > 1:
            _, old = self._entries.popitem(last=False)
            self.bytes -= old.nbytes
        return value


def snap_to_reference(x: Tensor, x_ref: Tensor, radius: float = SNAP) -> Tensor:
    """x_ref for every sample of the batch that is within the relative distance `radius` of it, x elsewhere.

    Without it rounding in x becomes rounding in D, which half precision makes visible.
    """
    dims = tuple(range(1, x.ndim))
    distance = (x - x_ref).abs().amax(dims, keepdim=True)
    return torch.where(distance <= radius * x_ref.abs().amax(dims, keepdim=True), x_ref, x)


def orthonormal_span(differences: list[Tensor]) -> Tensor:
    """Orthonormal basis (B, N, k) per sample of the span of k differences (B, ...); a zero difference adds nothing."""
    stacked = torch.stack([d.flatten(1) for d in differences], dim=-1)  # B N k
    stacked = stacked if stacked.dtype == torch.float64 else stacked.float()
    u, s, _ = torch.linalg.svd(stacked, full_matrices=False)
    return u * (s > 1e-4 * s.amax(dim=-1, keepdim=True).clamp_min(1e-30)).unsqueeze(1)


def project_off(change: Tensor, basis: Tensor) -> Tensor:
    """The part of `change` (B, ...) orthogonal to `basis` (B, N, k): what is kept does not move, to first order."""
    flat = change.flatten(1).unsqueeze(-1)  # B N 1
    return (flat - basis @ (basis.transpose(1, 2) @ flat)).view_as(change)


def anchored_prediction(x0: Tensor, edited: Tensor, reference: Tensor, weight: float, basis: Tensor | None) -> Tensor:
    """D' = x0 + w P (D(x, c') - D(x_ref, c)), P the projection off what is to be kept."""
    change = edited - reference
    if basis is not None:
        change = project_off(change, basis)
    return x0 + weight * change
