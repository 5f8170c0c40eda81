// The gallery of Preview Directions: a tile for each direction, with its pictures below, at and above strength 0. A click on
// a tile sets `index` of the slider that the list names. A Quick Slider and the Prepare Quick Slider before it are set
// together. Nothing is queued.

import { fieldOf } from "./graph.js";
import { asOneStep, element, named, setOne, signed } from "./panel.js";
import { ResultPanel, addPanels, addressOf } from "./result_panel.js";
import { t } from "./words.js";

/** @typedef {{name: string, pictures: import("./result_panel.js").Picture[]}} Found */

const TALLEST = 400; // pixels of the tiles before they scroll
const TILE_WIDTH = 170; // pixels, at least
const STYLE = `
  .tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(${TILE_WIDTH - 10}px, 1fr)); gap: 6px;
    max-height: ${TALLEST}px; overflow: auto; padding: 2px; }
  button { display: block; padding: 3px; border: 2px solid transparent; border-radius: 6px; text-align: left; }
  button:hover { border-color: var(--border-color, #4e4e4e); }
  button[aria-pressed="true"] { border-color: var(--p-primary-color, #60a5fa); }
  .name { display: block; overflow: hidden; white-space: nowrap; text-overflow: ellipsis; padding: 0 2px 2px; }
  .pictures { display: flex; gap: 2px; }
  img { flex: 1; min-width: 0; width: 100%; border-radius: 2px; }
`;

class Gallery extends ResultPanel {
  constructor(/** @type {any} */ node) {
    super(node, "gallery", t("A click sets"), STYLE);
    /** @type {Found[]} */
    this.found = [];
    /** @type {number | undefined} width of a picture over its height, once one is loaded */
    this.aspect = undefined;
    this.tiles = element("div", { class: "tiles", role: "group", "aria-label": t("Directions") });
    this.root.append(this.tiles, this.status);
  }

  height() {
    const width = this.node.size[0] - 28;
    const columns = Math.max(1, Math.floor((width + 6) / (TILE_WIDTH - 4)));
    const tile = (width / columns - 20) / 3 / (this.aspect ?? 1) + 40;
    return Math.min(TALLEST, tile * Math.ceil(this.found.length / columns) + 8) + 90;
  }

  show(/** @type {Found[]} */ found) {
    if (JSON.stringify(found) === JSON.stringify(this.found)) return;
    this.found = found;
    this.say("");
    this.tiles.replaceChildren(...found.map((direction, index) => this.tile(direction, index)));
    this.refresh();
    this.fit();
  }

  tile(/** @type {Found} */ { name, pictures }, /** @type {number} */ index) {
    const images = pictures.map((picture) => {
      const at = signed(picture.strength);
      const image = element("img", { alt: at, title: at, draggable: "false" });
      image.addEventListener("load", () => (this.aspect ??= image.naturalWidth / image.naturalHeight));
      image.addEventListener("error", () => this.say(t("The server no longer has these pictures. Run again to see them.")));
      image.src = addressOf(picture);
      return image;
    });
    const strengths = pictures.map(({ strength }) => signed(strength)).join(", ");
    const label = t("Choose direction {index}: {name}. Pictures at strengths {strengths}.", { index, name, strengths });
    const button = element("button", { type: "button", "aria-label": label, title: label });
    button.append(element("span", { class: "name" }, `${index}: ${name}`), element("span", { class: "pictures" }, ...images));
    button.addEventListener("click", () => this.choose(index));
    return button;
  }

  choose(/** @type {number} */ index) {
    const nodes = this.chosen().flatMap((target) => target.nodes);
    const linked = nodes.filter((node) => !fieldOf(node, "index"));
    asOneStep(() => nodes.forEach((node) => setOne(node, "index", index)));
    if (!nodes.length) this.sayNothingToSet(t("No slider is given these directions. Connect them to a Direction Slider."));
    else if (linked.length) this.say(t("'index' of {nodes} comes from a link. Change it there.", { nodes: named(linked) }));
    else this.say(t("Direction {index} is chosen for {nodes}. Run to see it.", { index, nodes: named(nodes) }));
  }

  refresh() {
    super.refresh();
    const values = this.chosen().flatMap(({ nodes }) => nodes.map((node) => fieldOf(node, "index")?.widget.value));
    [...this.tiles.children].forEach((tile, index) => tile.setAttribute("aria-pressed", String(values.includes(index))));
  }
}

addPanels("PreviewDirections", "gallery", Gallery);
