"""Help pages have pictures, troubleshooting quotes messages of the pack, pictures of docs/ hold their workflows."""

import ast
import json
import re

import pytest
from PIL import Image

from scripts.environment import ROOT

PAGES = sorted((ROOT / "web" / "docs").glob("*.md"))


def test_every_node_has_a_help_page(comfy):
    nodes = {name for name in comfy.client.object_info() if name.startswith("LatentDirections_")}
    assert nodes <= {page.stem for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_help_page_has_a_picture(page):
    names = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    assert names
    for name in names:
        with Image.open(page.parent / name) as picture:
            picture.verify()


def test_pictures_of_help_pages_are_small():
    assert sum(path.stat().st_size for path in (ROOT / "web" / "docs" / "pictures").iterdir()) < 1_500_000


def message_of(node: ast.expr) -> str:
    """A text in the code, with "..." for each value that is put into it."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    return "".join(part.value if isinstance(part, ast.Constant) else "..." for part in parts)


def test_headings_of_troubleshooting_are_messages_of_the_pack():
    files = [path for folder in ("core", "nodes") for path in (ROOT / folder).glob("*.py")]
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    texts = [
        message_of(node)
        for node in nodes
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
    ]
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", page, re.MULTILINE)
    assert headings
    assert [heading for heading in headings if not any(heading in text for text in texts)] == []


def test_links_between_documents_lead_to_files():
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("demo/*.md")]
    for page in pages:
        targets = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
        local = [target for target in targets if not target.startswith("http")]
        assert [target for target in local if not (page.parent / target).exists()] == [], page


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "workflows").glob("*.png")), ids=lambda path: path.stem)
def test_a_picture_to_drag_in_holds_its_template(path):
    """Where it does not: python scripts/workflow_pictures.py."""
    with Image.open(path) as picture:
        held = json.loads(picture.info["workflow"])
    assert held == json.loads((ROOT / "example_workflows" / f"{path.stem}.json").read_text(encoding="utf-8"))


def test_the_server_gives_out_the_pictures(comfy):
    """The page puts the folder of the help pages before the address of a picture."""
    for path in (ROOT / "web" / "docs" / "pictures").iterdir():
        address = f"/extensions/latent-directions/docs/pictures/{path.name}"
        assert comfy.client.request(address) == path.read_bytes()
