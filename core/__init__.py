"""Directions in the latent of a diffusion model, and the exact return to a picture, for any denoiser.

`Denoiser` wraps a model, `invert` encodes a picture, the `METHODS` look for moves of a `Search`, and an
`AnchoredPrediction` moves the picture and leads a sampler back to it. `Jacobian`, `self_check` and `partial_svd` serve
any differentiable function. It needs torch alone; `direction_files` also safetensors, `contact_sheet` also Pillow,
`charts` also matplotlib. ARCHITECTURE.md describes the modules, docs/examples/ uses them.
"""

from .anchor import AnchoredPrediction, NoiseMove, NoisePaths, WordsMove, moved_noise
from .denoiser import Denoiser
from .errors import LatentDirectionsError
from .inversion import invert
from .methods import METHODS
from .operators import Jacobian
from .search import Search, Settings
from .self_check import self_check
from .svd import partial_svd

__all__ = [
    "METHODS",
    "AnchoredPrediction",
    "Denoiser",
    "Jacobian",
    "LatentDirectionsError",
    "NoiseMove",
    "NoisePaths",
    "WordsMove",
    "Search",
    "Settings",
    "invert",
    "moved_noise",
    "partial_svd",
    "self_check",
]
