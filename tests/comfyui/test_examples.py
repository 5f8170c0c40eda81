"""docs/examples/ and docs/pipelines.md run as they are: with torch and diffusers alone, or a running ComfyUI alone."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.environment import ROOT

EXAMPLE = ROOT / "docs" / "examples" / "diffusers_model.py"
WORKFLOW = ROOT / "docs" / "examples" / "workflow_api.json"
EDIT_FOLDER = ROOT / "docs" / "examples" / "edit_folder.py"
WORDS = ["--source", "a portrait of a person, neutral", "--target", "a portrait of a person, smiling"]
# Refuses to import ComfyUI, then runs the example as the main program.
WITHOUT_COMFYUI = """
import importlib.abc, runpy, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("comfy", "comfy_api", "folder_paths", "latent_preview"):
            raise ImportError("ComfyUI was imported: " + name)

sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_diffusers_example(tmp_path):
    strip = tmp_path / "strip.png"
    command = [sys.executable, "-c", WITHOUT_COMFYUI, str(EXAMPLE), str(strip)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    evaluations = int(re.search(r"evaluations of the search: (\d+)", done.stdout)[1])
    assert 20 <= evaluations <= 200
    assert float(re.search(r"zero-strength difference: (\S+)", done.stdout)[1]) <= 1e-5
    with Image.open(strip) as picture:
        tiles = [picture.crop((128 * i, 14, 128 * (i + 1), 142)) for i in range(5)]
    assert len({tile.tobytes() for tile in tiles}) == 5
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 60


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def saved(comfy, prompt: dict) -> Image.Image:
    """Run a prompt whose node "save" saves one picture."""
    file = comfy.run(prompt).outputs["save"]["images"][0]
    return Image.open(io.BytesIO(comfy.client.view(file))).convert("RGB")


@pytest.fixture(scope="module")
def portraits(comfy, tmp_path_factory) -> Path:
    """A folder with two drawn portraits."""
    folder = tmp_path_factory.mktemp("portraits")
    for seed in (7, 8):
        draw = node("LatentDirections_DemoPortrait", seed=seed)
        save = node("SaveImage", images=["draw", 0], filename_prefix="portrait")
        saved(comfy, {"draw": draw, "save": save}).save(folder / f"{seed}.png")
    return folder


def edit_folder(comfy, *options: str) -> subprocess.CompletedProcess:
    """The example in a Python without any package."""
    command = [sys.executable, "-I", "-S", str(EDIT_FOLDER), "--server", comfy.client.url, *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def through_the_vae(comfy, path: Path) -> np.ndarray:
    """The pixels of a picture after VAE Encode and VAE Decode alone."""
    prompt = {
        "load": node("LatentDirections_LoadDemoModel"),
        "picture": node("LoadImage", image=comfy.client.upload(path)),
        "encode": node("VAEEncode", pixels=["picture", 0], vae=["load", 2]),
        "decode": node("VAEDecode", samples=["encode", 0], vae=["load", 2]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="round_trip"),
    }
    return np.asarray(saved(comfy, prompt))


def test_a_folder_at_strength_0_and_1(comfy, portraits, tmp_path):
    still, moved = tmp_path / "still", tmp_path / "moved"
    for folder, strength in ((still, "0"), (moved, "1")):
        done = edit_folder(comfy, str(portraits), str(folder), *WORDS, "--strength", strength)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [str(folder / "7.png"), str(folder / "8.png")]
    for name in ("7.png", "8.png"):
        encoded = through_the_vae(comfy, portraits / name)
        assert np.array_equal(pixels(still / name), encoded)
        assert (pixels(moved / name) != encoded).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--server", "http://127.0.0.1:1"], "ComfyUI cannot be reached at http://127.0.0.1:1"),
        (["--target", WORDS[1]], "'source' and 'target' are the same"),
        (["--checkpoint", "missing.safetensors"], "CheckpointLoaderSimple: Value not in list"),
        (["--cfg", "1", "--keep", "no bar in this line"], "LatentDirections_FindDirections: "),
    ],
    ids=["no server", "equal words", "no such checkpoint", "an error of a node"],
)
def test_a_folder_that_cannot_be_edited(comfy, portraits, tmp_path, options, message):
    done = edit_folder(comfy, str(portraits), str(tmp_path / "out"), *WORDS, *options)
    assert done.returncode == 1
    assert done.stderr.startswith("error: 7.png: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("results", ["photos", "photos/../photos"])
def test_the_results_never_replace_the_pictures(portraits, tmp_path, results):
    photos = shutil.copytree(portraits, tmp_path / "photos")
    before = {path.name: path.read_bytes() for path in photos.iterdir()}
    command = [sys.executable, "-I", "-S", str(EDIT_FOLDER), str(photos), str(tmp_path / results), *WORDS]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "the results would replace the pictures" in done.stderr
    assert {path.name: path.read_bytes() for path in photos.iterdir()} == before


def test_two_pictures_of_one_result_are_refused(comfy, portraits, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.png", "A.jpg"):
        shutil.copy(portraits / "7.png", photos / name)
    done = edit_folder(comfy, str(photos), str(tmp_path / "out"), *WORDS)
    assert done.returncode == 1
    assert done.stderr == "error: A.jpg and a.png would have the same result. Rename one of them.\n"
    assert not (tmp_path / "out").exists()


def test_a_run_that_is_removed_from_the_queue_ends_the_wait(comfy, portraits, tmp_path):
    def queue() -> dict:
        return json.loads(comfy.client.request("/queue"))

    def wait_until(is_so) -> None:
        end = time.monotonic() + 60
        while not is_so(queue()):
            assert time.monotonic() < end
            time.sleep(0.05)

    photos = tmp_path / "photos"
    photos.mkdir()
    shutil.copy(portraits / "7.png", photos)
    long = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    long["picture"]["inputs"]["image"] = comfy.client.upload(portraits / "7.png")
    long["sample"]["inputs"]["steps"] = 10_000
    comfy.client.request("/prompt", json.dumps({"prompt": long}).encode())
    command = [sys.executable, "-I", "-S", str(EDIT_FOLDER), "--server", comfy.client.url, str(photos)]
    try:
        with subprocess.Popen([*command, str(tmp_path / "out"), *WORDS], stderr=subprocess.PIPE, text=True) as process:
            wait_until(lambda queue: queue["queue_pending"])
            comfy.client.request("/queue", b'{"clear": true}')
            said = process.communicate(timeout=60)[1]
    finally:
        comfy.client.request("/interrupt", b"{}")
        wait_until(lambda queue: not queue["queue_running"])
    assert process.returncode == 1
    assert said.startswith("error: 7.png: The run was removed from ComfyUI's queue")


def blocks(language: str) -> list[str]:
    """The code blocks of docs/pipelines.md in a language."""
    page = (ROOT / "docs" / "pipelines.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)


def holds(answer, shown) -> bool:
    """Whether an answer of the server has everything that a page shows of it; of lists any of the items.

    What the page shows as empty must be empty.
    """
    if shown in ({}, []):
        return answer == shown
    if isinstance(shown, dict):
        return all(key in answer and holds(answer[key], value) for key, value in shown.items())
    if isinstance(shown, list):
        return all(any(holds(item, value) for item in answer) for value in shown)
    return answer == shown


def commands_of_pipelines(comfy, portraits, folder, **changes) -> subprocess.CompletedProcess:
    """The script of the page, run in a folder; with other inputs of nodes in its workflow where there are some."""
    shutil.copy(portraits / "7.png", folder / "photo.png")
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    for key, inputs in changes.items():
        workflow[key]["inputs"] |= inputs
    (folder / WORKFLOW.name).write_text(json.dumps(workflow), encoding="utf-8")
    (commands,) = blocks("bash")
    script = commands.replace("http://127.0.0.1:8188", comfy.client.url)
    return subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize(
    ("changes", "said", "message"),
    [
        ({"slide": {"strength": 9}}, "Refused: ", "Value 9.0 bigger than max of 3.0"),
        ({"find": {"keep": "glasses"}}, "Failed: ", "Line 1 of 'keep' is 'glasses'"),
    ],
    ids=["refused", "failed"],
)
def test_the_commands_of_pipelines_end_with_what_the_server_says(comfy, portraits, tmp_path, changes, said, message):
    done = commands_of_pipelines(comfy, portraits, tmp_path, **changes)
    assert done.returncode == 1
    assert done.stderr.startswith(said)
    assert message in done.stderr
    assert not (tmp_path / "edited.png").exists()


def test_the_commands_of_pipelines(comfy, portraits, tmp_path):
    done = commands_of_pipelines(comfy, portraits, tmp_path)
    assert done.returncode == 0, done.stderr
    difference = pixels(tmp_path / "edited.png").astype(int) - through_the_vae(comfy, portraits / "7.png")
    assert 0 < (abs(difference).max(axis=2) > 16).sum() < 64 * 64 / 4  # the mouth, and not the whole picture


def test_the_errors_of_pipelines(comfy, portraits):
    """What the page shows of a refused and of a failed run is what the server says."""
    refused, failed = map(json.loads, blocks("json"))
    prompt = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    prompt["picture"]["inputs"]["image"] = comfy.client.upload(portraits / "7.png")

    def queue() -> dict:
        return json.loads(comfy.client.request("/prompt", json.dumps({"prompt": prompt}).encode()))

    prompt["slide"]["inputs"]["strength"] = 9
    with pytest.raises(urllib.error.HTTPError) as caught:
        queue()
    assert caught.value.code == 400
    assert holds(json.loads(caught.value.read()), refused)
    prompt["slide"]["inputs"]["strength"] = 1
    prompt["find"]["inputs"]["keep"] = "glasses"
    key = queue()["prompt_id"]
    while not (history := json.loads(comfy.client.request(f"/history/{key}"))):
        time.sleep(0.1)
    assert holds(history[key], failed)
