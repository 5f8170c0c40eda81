"""Write the translations in ComfyUI's format, locales/<language>/*.json: python scripts/locales.py.

English comes from the schemas of the nodes and from what web/*.js hands to `t`. Every other language has one file to
edit, locales/<language>.json, in which the English text is the key, so that a text which is changed in the code must
be translated anew.
"""

import asyncio
import json
import re
import sys
from pathlib import Path

if not __package__:  # started as a program
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.environment import ROOT, add_comfyui_to_path, enter, register_package

FOLDER = ROOT / "locales"
LANGUAGES = sorted(path.stem for path in FOLDER.glob("*.json"))
ENGLISH = "en"
PAGE_KEY = "latentDirections"  # of the texts of web/*.js in main.json, see web/words.js
CALL = re.compile(r"""(?<![\w.])t\(\s*("(?:[^"\\]|\\.)*")""")  # of the function `t` of web/words.js with a text


class TranslationsError(Exception):
    """A file of translations does not fit the texts of the code; the message says what to correct."""


def node_texts() -> dict:
    """The texts of all nodes in the layout of nodeDefs.json."""
    from latent_directions.nodes import LatentDirectionsExtension, library

    library.register_folder()
    nodes = asyncio.run(LatentDirectionsExtension().get_node_list())
    return {schema.node_id: _texts_of(schema) for schema in (node.define_schema() for node in nodes)}


def _texts_of(schema) -> dict:
    inputs = {given.id: {"name": given.display_name or given.id, "tooltip": given.tooltip} for given in schema.inputs}
    if any(getattr(given, "control_after_generate", False) for given in schema.inputs):
        inputs["control_after_generate"] = {"name": "control after generate"}  # a widget that ComfyUI adds
    outputs = {}
    for number, output in enumerate(schema.outputs):
        name = {"name": output.display_name} if output.display_name else {}  # else ComfyUI shows the type
        outputs[str(number)] = name | {"tooltip": output.tooltip}
    texts = {"display_name": schema.display_name, "description": schema.description}
    return texts | {"inputs": inputs, "outputs": outputs}


def page_texts() -> list[str]:
    """The English texts of web/*.js, and what the page calls the methods of Find Directions."""
    from latent_directions.core.methods import METHODS

    written = (path.read_text(encoding="utf-8") for path in sorted((ROOT / "web").glob("*.js")))
    texts = [json.loads(text) for code in written for text in CALL.findall(code)]
    return list(dict.fromkeys([*texts, *(method.label for method in METHODS.values() if method.label)]))


def used_texts(nodes: dict) -> dict[str, list[str]]:
    """All English texts by the section of locales/<language>.json that has their translation."""
    used = {"nodes": [], "inputs": [], "outputs": [], "tooltips": []}
    for node in nodes.values():
        used["nodes"].append(node["display_name"])
        used["tooltips"].append(node["description"])
        for section in ("inputs", "outputs"):
            for slot in node[section].values():
                used[section] += [slot["name"]] if "name" in slot else []
                used["tooltips"] += [slot["tooltip"]] if "tooltip" in slot else []
    return {section: list(dict.fromkeys(texts)) for section, texts in used.items()}


def differences(used: dict[str, list[str]], words: dict[str, dict[str, str]]) -> list[str]:
    """What is without a translation, and which translations are of no text."""
    found = []
    for section, texts in used.items():
        found += [f"{section}: not translated: {text}" for text in texts if text not in words[section]]
        found += [f"{section}: no longer used: {text}" for text in words[section] if text not in texts]
    return found


def translated(nodes: dict, words: dict[str, dict[str, str]]) -> dict:
    """The texts of all nodes in another language."""

    def slots(node: dict, section: str) -> dict:
        in_section = {"name": words[section], "tooltip": words["tooltips"]}
        return {
            key: {kind: in_section[kind][text] for kind, text in slot.items()} for key, slot in node[section].items()
        }

    return {
        node_id: {
            "display_name": words["nodes"][node["display_name"]],
            "description": words["tooltips"][node["description"]],
            "inputs": slots(node, "inputs"),
            "outputs": slots(node, "outputs"),
        }
        for node_id, node in nodes.items()
    }


def words_of(language: str) -> dict[str, dict[str, str]]:
    """The translations into a language, by section."""
    return json.loads((FOLDER / f"{language}.json").read_text(encoding="utf-8"))


def files() -> dict[Path, dict]:
    """What is to be in the files that ComfyUI reads.

    Raises:
        TranslationsError: a translation is missing or no longer used; the message names all of a language.
    """
    nodes = node_texts()
    used = used_texts(nodes) | {"page": page_texts()}
    made = {FOLDER / ENGLISH / "nodeDefs.json": nodes}
    for language in LANGUAGES:
        words = words_of(language)
        if found := differences(used, words):
            message = f"Correct locales/{language}.json:\n" + "\n".join(found)
            raise TranslationsError(message)
        made[FOLDER / language / "nodeDefs.json"] = translated(nodes, words)
        made[FOLDER / language / "main.json"] = {PAGE_KEY: words["page"]}
    return made


def main() -> None:
    """Write the files."""
    add_comfyui_to_path(enter(), ROOT / ".run" / "locales")
    register_package()
    try:
        made = files()
    except TranslationsError as error:
        sys.exit(str(error))
    for path, content in made.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
