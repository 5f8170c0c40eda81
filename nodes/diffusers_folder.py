"""Folders in the layout of the diffusers library: which there are, and what is read from one.

Files come from strangers. Nothing outside the chosen folder is read, no code of the folder is run, nothing is
fetched, and weights are taken from safetensors files alone: a pickled file can run code when it is opened.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import folder_paths

from ..core.errors import printable
from .errors import InputError
from .inputs import in_short, quoted

KIND = "diffusers"  # ComfyUI's name of models/diffusers
INDEX = "model_index.json"
LARGEST_CONFIG = 16 * 2**20  # bytes of a json file
# The model on pixels that comes with the pack: its name in the list, and where it is.
SHIPPED = "demo DDPM, portraits of 32 x 32 pixels (comes with Latent Directions)"
SHIPPED_FOLDER = Path(__file__).resolve().parents[1] / "demo" / "weights" / "ddpm"
VARIANTS = ("", "fp16", "bf16")  # in the order in which they are taken
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def folder_names() -> list[str]:
    """The folders below models/diffusers with a model_index.json, relative to it, and at last the one of the pack."""
    return [*sorted(name for root in _roots() for name in _names_below(root)), SHIPPED]


def _roots() -> list[str]:
    return [root for root in folder_paths.get_folder_paths(KIND) if os.path.isdir(root)]


def _names_below(root: str) -> list[str]:
    return [os.path.relpath(found, start=root) for found, _, files in os.walk(root, followlinks=True) if INDEX in files]


def _path_of(name: str) -> Path | None:
    """Where the folder of a name in the list is; None where the list has none."""
    if name == SHIPPED:
        return SHIPPED_FOLDER
    return next((Path(root, name) for root in _roots() if name in _names_below(root)), None)


@dataclass(frozen=True)
class DiffusersFolder:
    """A folder of models/diffusers, or the one that comes with the pack.

    Attributes:
        name: as it is in the list.
        path: where it is.
        classes: of each part of the model, such as "unet", the name of the class that it was saved from.
    """

    name: str
    path: Path
    classes: dict[str, str]

    @classmethod
    def named(cls, name) -> DiffusersFolder:
        """The folder of this name in the list; InputError where the list has none, or it describes no model."""
        if not isinstance(name, str) or not name:
            msg = (
                "'folder' is empty, so there is no model to load. Put the folder of a diffusers model into"
                " models/diffusers, press the key R on the canvas, and choose it."
            )
            raise InputError(msg)
        path = _path_of(name)
        if path is None:
            msg = (
                f"'folder' is {quoted(name)}, but there is no folder of that name with a {INDEX} in models/diffusers."
                " Choose one of the list; a diffusers model is the whole folder, not a single file."
            )
            raise InputError(msg)
        parts = {
            part: value[1]
            for part, value in _read_json(path / INDEX, name).items()
            if isinstance(value, list) and len(value) == 2 and all(isinstance(item, str) for item in value)
        }
        return cls(name, path, parts)

    def refused(self, reason: str) -> InputError:
        """An error that names the folder: 'folder' is 'name', <reason>."""
        return InputError(f"'folder' is {quoted(self.name)}, {reason}")

    def part(self, name: str) -> Path:
        """Where a part of the model is: a sub-folder, or the folder itself in old layouts."""
        return self.path / name if (self.path / name).is_dir() else self.path

    def config(self, part: str, file: str = "config.json") -> dict:
        """The settings of a part; InputError where they are missing or cannot be read."""
        path = self.part(part) / file
        if not path.is_file():
            reason = f"whose {part} has no {file}. Copy the whole folder of the model again."
            raise self.refused(reason)
        return _read_json(path, self.name)

    def class_of(self, part: str, file: str = "config.json") -> str | None:
        """The name of a part's class, by its own settings or, where they do not say, by those of the folder."""
        return self.config(part, file).get("_class_name") or self.classes.get(part)

    def weights(self, part: str, stem: str) -> tuple[list[Path], str]:
        """The safetensors files of a part and their variant ("" or "fp16", say).

        Raises:
            InputError: there are only pickled weights or none, or a list of files names one outside the folder.
        """
        folder = self.part(part)
        for variant in VARIANTS:
            dotted = f".{variant}" if variant else ""
            whole = folder / f"{stem}{dotted}.safetensors"
            if whole.is_file():
                return [whole], variant
            pieces = folder / f"{stem}.safetensors.index{dotted}.json"
            if pieces.is_file():
                return self._pieces(pieces), variant
        pickled = [file.name for file in folder.iterdir() if file.suffix in PICKLED] if folder.is_dir() else []
        reason = (
            f"whose {part} has only pickled weights ({in_short(pickled[0])}). A pickled file can run code when it is"
            " opened, so it is not: get the model's .safetensors files, or convert it with diffusers'"
            " save_pretrained."
            if pickled
            else f"whose {part} has no weights ({stem}.safetensors). Copy the whole folder of the model again."
        )
        raise self.refused(reason)

    def _pieces(self, index: Path) -> list[Path]:
        names = _read_json(index, self.name).get("weight_map")
        names = set(names.values()) if isinstance(names, dict) else set()
        for name in names or [None]:
            plain = isinstance(name, str) and Path(name).name == name and name.endswith(".safetensors")
            if not plain or not (index.parent / name).is_file():
                reason = (
                    f"whose {in_short(index.name)} names {quoted(name)}, which is no safetensors file beside it. Copy"
                    " the whole folder of the model again."
                )
                raise self.refused(reason)
        return [index.parent / name for name in sorted(names)]

    @contextmanager
    def readable(self, part: str) -> Iterator[None]:
        """Around what reads a part with its library: a sentence where that fails, and no request to any server."""
        import huggingface_hub.constants as hub
        import torch

        offline, hub.HF_HUB_OFFLINE = hub.HF_HUB_OFFLINE, True
        try:
            yield
        except (InputError, MemoryError, torch.OutOfMemoryError):
            raise
        except ImportError as error:
            msg = f"A library that this model needs is missing ({error}). Install it into ComfyUI's Python with pip."
            raise InputError(msg) from error
        except Exception as error:  # what a library says of a stranger's file can be anything
            said = printable(f"{type(error).__name__}: {error}", 300)
            reason = f"whose {part} cannot be read ({said}). Copy the whole folder of the model again."
            raise self.refused(reason) from error
        finally:
            hub.HF_HUB_OFFLINE = offline


def _read_json(path: Path, name: str) -> dict:
    """A json object of a file; InputError where it is none."""
    try:
        if path.stat().st_size > LARGEST_CONFIG:
            msg = "it is too large"
            raise ValueError(msg)
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            msg = "it is no object of names and values"
            raise ValueError(msg)
    except (OSError, ValueError, RecursionError) as error:
        msg = (
            f"'folder' is {quoted(name)}, whose {in_short(path.name)} cannot be read ({printable(str(error), 200)})."
            " Copy the whole folder of the model again."
        )
        raise InputError(msg) from error
    return value
