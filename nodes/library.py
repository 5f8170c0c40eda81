"""Save Direction and Load Direction: directions as safetensors files in models/latent_directions."""

from __future__ import annotations

import io as streams
import os
from pathlib import Path

import folder_paths
from comfy_api.latest import io, ui
from torch import Tensor

from ..core import direction_files
from ..core.errors import DirectionFileError
from .errors import InputError, with_advice
from .inputs import INDEX, check_inputs, in_short
from .pictures import picture_of
from .progress import show_line
from .sockets import DirectionsSocket

FOLDER = "latent_directions"
SUFFIX = ".safetensors"
RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{device}{n}" for device in ("COM", "LPT") for n in range(1, 10))}  # Windows
LONGEST_NAME = 1000  # bytes of a whole name
LONGEST_PART = 200  # bytes of each part of a name; file systems allow 255
THUMBNAIL = 256  # pixels of the longest side
JPEG_QUALITY = 85
NO_FILE = (
    "'file' is empty, so there is no direction to load. Save one with Save Direction, press 'Refresh files' on Load"
    " Direction, and choose it."
)


def register_folder() -> None:
    """Make models/latent_directions known to ComfyUI; folders from extra_model_paths.yaml stay first."""
    paths, _ = folder_paths.folder_names_and_paths.get(FOLDER, ([], set()))
    own = os.path.join(folder_paths.models_dir, FOLDER)
    folder_paths.folder_names_and_paths[FOLDER] = (paths or [own], {SUFFIX})


class SaveDirection(io.ComfyNode):
    """Writes one direction to a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs of the node."""
        return io.Schema(
            node_id="LatentDirections_SaveDirection",
            display_name="Save Direction",
            category="latent directions",
            search_aliases=["export direction", "save slider", "store direction", "keep direction", "save concept"],
            description=(
                "Saves a direction to models/latent_directions, so that finding it again is not needed. An existing"
                " file is never overwritten: a number is added to the name."
            ),
            inputs=[
                DirectionsSocket.Input("directions", tooltip="From Find Directions."),
                INDEX,
                io.String.Input(
                    "name",
                    default="direction",
                    tooltip="File name. Folders may be given with '/', such as 'smile/anna'.",
                ),
                io.Image.Input(
                    "thumbnail",
                    optional=True,
                    tooltip=(
                        "A picture that goes into the file, small. Everybody who gets the file can see it: leave this"
                        " unconnected if nobody should see your picture."
                    ),
                ),
            ],
            outputs=[
                DirectionsSocket.Output(display_name="directions", tooltip="The directions that came in, unchanged."),
                io.String.Output(display_name="file", tooltip="The file that was written, with its folder."),
            ],
            is_output_node=True,
        )

    @classmethod
    @with_advice()
    def execute(cls, directions, index, name, thumbnail=None) -> io.NodeOutput:
        """Save under a free name and say which."""
        check_inputs(cls, locals())
        if not 0 <= index < len(directions):
            msg = f"'index' is {index}, but there are {len(directions)} directions. Choose 0 to {len(directions) - 1}."
            raise InputError(msg)
        root = Path(folder_paths.get_folder_paths(FOLDER)[0])
        path = _free_path(root, name)
        direction_files.save(directions[index], path, None if thumbnail is None else _small_jpeg(thumbnail))
        file = path.relative_to(root).as_posix()
        show_line(file)
        return io.NodeOutput(directions, file, ui=ui.PreviewText(file))


class LoadDirection(io.ComfyNode):
    """Reads one direction from a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs of the node; the files are listed afresh at every call."""
        return io.Schema(
            node_id="LatentDirections_LoadDirection",
            display_name="Load Direction",
            category="latent directions",
            search_aliases=["import direction", "load slider", "open direction", "direction library", "load concept"],
            description=(
                "Loads a direction saved by Save Direction. It fits models of the same family and pictures of the same"
                " size; Transfer Direction brings it to another size."
            ),
            inputs=[
                io.Combo.Input(
                    "file",
                    options=folder_paths.get_filename_list(FOLDER),
                    optional=True,  # so that a graph can be queued before anything is saved, and `execute` says so
                    tooltip="A file in models/latent_directions. 'Refresh files' lists what was saved since.",
                )
            ],
            outputs=[
                DirectionsSocket.Output(
                    display_name="directions",
                    tooltip="The direction in the file, for Direction Slider or Transfer Direction.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, file=None) -> bool:
        """Names the input so that a file saved by the same prompt passes; `execute` checks everything itself."""
        return True

    @classmethod
    def fingerprint_inputs(cls, file=None) -> float:
        """Run again when the file has changed."""
        path = folder_paths.get_full_path(FOLDER, file) if file else None
        return os.path.getmtime(path) if path else float("nan")

    @classmethod
    @with_advice()
    def execute(cls, file=None) -> io.NodeOutput:
        """Find the file inside the pack's folders and read it."""
        if not file and file != 0:
            raise InputError(NO_FILE)
        if not isinstance(file, str):
            msg = f"'file' is {in_short(file)}, which is no file name. Choose a file that Save Direction has made."
            raise InputError(msg)
        for root in folder_paths.get_folder_paths(FOLDER) if "\0" not in file else ():
            path = Path(root, file)
            if folder_paths.is_within_directory(root, str(path)) and _is_file(path):
                return io.NodeOutput([direction_files.load(path)])
        msg = f"There is no direction file '{in_short(file)}' in models/latent_directions."
        raise DirectionFileError(msg)


def _small_jpeg(image: Tensor) -> bytes:
    """The first picture of an IMAGE as a small JPEG, with nothing in it but the picture."""
    picture, stream = picture_of(image), streams.BytesIO()
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    picture.save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()


def _is_file(path: Path) -> bool:
    """Whether there is such a file; a name that is too long or no text is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _free_path(root: Path, name: str) -> Path:
    """root/name.safetensors, or the first free root/name_00002.safetensors and so on; never outside root."""
    relative = name.strip().removesuffix(SUFFIX)
    path = Path(root, relative + SUFFIX)
    bad = set(relative) & set('<>:"\\|?*') or any(ord(c) < 32 for c in relative)
    for part in relative.split("/"):
        bad = bad or not part or part.endswith((".", " ")) or len(part.encode()) > LONGEST_PART
        bad = bad or part.split(".")[0].rstrip().upper() in RESERVED
    if bad or len(relative.encode()) > LONGEST_NAME or not folder_paths.is_within_directory(str(root), str(path)):
        msg = (
            f"'name' is {in_short(name)!r}, which cannot be a file name inside models/latent_directions. Use letters,"
            f" digits, '-' and '_', '/' for folders, and at most {LONGEST_PART} bytes for each folder and for the file"
            " name (a letter outside ASCII takes 2 to 4)."
        )
        raise InputError(msg)
    for folder in path.parents:
        if _is_file(folder):
            msg = f"'name' is {in_short(name)!r}, but '{folder.name}' is a file and no folder. Choose another name."
            raise InputError(msg)
    number = 2
    while path.exists():
        path = Path(root, f"{relative}_{number:05d}{SUFFIX}")
        number += 1
    return path


NODES = [SaveDirection, LoadDirection]
