// The gallery of Preview Directions: a tile for each direction, with its pictures below, at and above strength 0. A click on
// a tile sets `index` of the slider that the list names. A Quick Slider and the Prepare Quick Slider before it are set
// together. Nothing is queued. An artist's own names of directions, and the order of the tiles, are kept in the workflow.

import { fieldOf } from "./graph.js";
import { asOneStep, element, named, setOne, signed } from "./panel.js";
import { ResultPanel, addPanels, addressOf } from "./result_panel.js";
import { t } from "./words.js";

/**
 * A direction as nodes/inspect.py sends it.
 * @typedef {{name: string, key: string, change: number, pictures: import("./result_panel.js").Picture[]}} Found
 */

const TALLEST = 400; // pixels of the tiles before they scroll
const TILE_WIDTH = 170; // pixels, at least
const BAR = 26; // pixels of a list above the tiles
const NAMES = "names", ORDER = "order"; // properties of the node
const BY_CHANGE = "change";
const DOUBLE_CLICK = 300; // milliseconds in which a click on a name becomes a double click
const STYLE = `
  .tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(${TILE_WIDTH - 10}px, 1fr)); gap: 6px;
    max-height: ${TALLEST}px; overflow: auto; padding: 2px; }
  .tile { position: relative; min-width: 0; }
  .choose { display: block; width: 100%; padding: 3px; border: 2px solid transparent; border-radius: 6px; text-align: left; }
  .choose:hover { border-color: var(--border-color, #4e4e4e); }
  .choose[aria-pressed="true"] { border-color: var(--p-primary-color, #60a5fa); }
  .name { display: block; overflow: hidden; white-space: nowrap; text-overflow: ellipsis; padding: 0 24px 2px 2px; }
  .pictures { display: flex; gap: 2px; }
  img { flex: 1; min-width: 0; width: 100%; border-radius: 2px; }
  .rename { position: absolute; top: 4px; right: 4px; padding: 0 4px; border: 0; background: none; opacity: 0; }
  .tile:hover .rename { opacity: 1; }
  @media (hover: none) { .rename { opacity: 1; } }
  .tile input { position: absolute; inset: 2px 2px auto; width: calc(100% - 4px); height: 22px; padding: 0 4px; }
`;

/** How much a direction changes the picture, in percent. */
const percent = (/** @type {number} */ change) => (100 * change).toFixed(change < 0.1 ? 1 : 0);

class Gallery extends ResultPanel {
  constructor(/** @type {any} */ node) {
    super(node, "gallery", t("A click sets"), STYLE);
    /** @type {Found[]} */
    this.found = [];
    /** What is drawn: the directions, their names and their order, as text. */
    this.drawn = "";
    /** @type {number | undefined} width of a picture over its height, once one is loaded */
    this.aspect = undefined;
    const orders = [element("option", { value: "" }, t("as found")), element("option", { value: BY_CHANGE }, t("by change"))];
    this.order = element("select", { id: "order" }, ...orders);
    this.order.addEventListener("change", () => asOneStep(() => (node.properties[ORDER] = this.order.value)));
    this.orderBar = element("div", { class: "bar" }, element("label", { for: "order" }, t("Order")), this.order);
    this.tiles = element("div", { class: "tiles", role: "group", "aria-label": t("Directions") });
    this.root.append(this.orderBar, this.tiles, this.status);
  }

  height() {
    const width = this.node.size[0] - 28;
    const columns = Math.max(1, Math.floor((width + 6) / (TILE_WIDTH - 4)));
    const tile = (width / columns - 20) / 3 / (this.aspect ?? 1) + 40;
    const bars = this.found.length > 1 ? 2 * BAR : BAR;
    return Math.min(TALLEST, tile * Math.ceil(this.found.length / columns) + 8) + bars + 64;
  }

  show(/** @type {Found[]} */ found) {
    if (JSON.stringify(found) === JSON.stringify(this.found)) return;
    this.found = found;
    this.say("");
    this.refresh();
    this.fit();
  }

  /** What a direction is called: by the artist, else as it was found. */
  nameOf(/** @type {Found} */ { key, name }) {
    return this.node.properties[NAMES]?.[key] ?? name;
  }

  /** Call a direction otherwise; an empty name gives the found one back. */
  rename(/** @type {Found} */ { key, name }, /** @type {string} */ text) {
    const { [key]: _, ...others } = this.node.properties[NAMES] ?? {};
    asOneStep(() => (this.node.properties[NAMES] = text && text !== name ? { ...others, [key]: text } : others));
  }

  /** Draw the tiles in the order that is chosen; `index` of a direction is its place among those found. */
  draw() {
    const indices = [...this.found.keys()];
    if (this.node.properties[ORDER] === BY_CHANGE) indices.sort((one, other) => this.found[other].change - this.found[one].change);
    this.tiles.replaceChildren(...indices.map((index) => this.tile(index)));
  }

  tile(/** @type {number} */ index) {
    const found = this.found[index];
    const images = found.pictures.map((picture) => {
      const at = signed(picture.strength);
      const image = element("img", { alt: at, title: at, draggable: "false" });
      image.addEventListener("load", () => (this.aspect ??= image.naturalWidth / image.naturalHeight));
      image.addEventListener("error", () => this.say(t("The server no longer has these pictures. Run again to see them.")));
      image.src = addressOf(picture);
      return image;
    });
    const strengths = found.pictures.map(({ strength }) => signed(strength)).join(", ");
    const values = { index, name: this.nameOf(found), percent: percent(found.change), strengths };
    const label = t("Index {index}: {name}. Changes the picture by {percent} %. Pictures at strengths {strengths}.", values);
    const hint = t("Double-click the name, or press F2, to rename it.");
    const choose = element("button", {
      class: "choose", type: "button", "data-index": String(index), "aria-label": label, title: `${label} ${hint}`, "aria-keyshortcuts": "F2",
    });
    const name = element("span", { class: "name" }, t("{name}, {percent} %", values));
    choose.append(name, element("span", { class: "pictures" }, ...images));
    const rename = element("button", { class: "rename", type: "button", tabindex: "-1", title: t("Rename"), "aria-label": t("Rename") }, "✎");
    const tile = element("div", { class: "tile" }, choose, rename);
    const ask = () => this.askForName(tile, found);
    choose.addEventListener("click", (/** @type {MouseEvent} */ { target, detail }) => {
      clearTimeout(this.choosing);
      if (target !== name) this.choose(index);
      else if (detail < 2) this.choosing = setTimeout(() => this.choose(index), DOUBLE_CLICK);
    });
    choose.addEventListener("keydown", (/** @type {KeyboardEvent} */ { key }) => key === "F2" && ask());
    name.addEventListener("dblclick", ask);
    rename.addEventListener("click", ask);
    return tile;
  }

  /** Show a field in place of a tile's name. Enter and leaving the field keep what is typed, Escape does not. */
  askForName(/** @type {any} */ tile, /** @type {Found} */ found) {
    const place = [...this.tiles.children].indexOf(tile);
    const field = element("input", { type: "text", maxlength: "100", placeholder: found.name, "aria-label": t("Name of the direction") });
    field.value = this.nameOf(found);
    tile.append(field);
    field.focus();
    field.select();
    const end = (/** @type {boolean} */ isKept) => {
      if (!field.isConnected || field.hidden) return;
      field.hidden = true; // it loses the focus when it is removed, which would end it once more
      field.remove();
      if (isKept) this.rename(found, field.value.trim());
      this.refresh();
    };
    field.addEventListener("blur", () => end(true));
    field.addEventListener("keydown", (/** @type {KeyboardEvent} */ { key, isComposing }) => {
      if (isComposing || (key !== "Enter" && key !== "Escape")) return;
      end(key === "Enter");
      this.tiles.children[place].querySelector(".choose").focus();
    });
  }

  choose(/** @type {number} */ index) {
    const nodes = this.chosen().flatMap((target) => target.nodes);
    const linked = nodes.filter((node) => !fieldOf(node, "index"));
    asOneStep(() => nodes.forEach((node) => setOne(node, "index", index)));
    if (!nodes.length) this.sayNothingToSet(t("No slider is given these directions. Connect them to a Direction Slider."));
    else if (linked.length) this.say(t("'index' of {nodes} comes from a link. Change it there.", { nodes: named(linked) }));
    else this.say(t("Index {index} is chosen for {nodes}. Press Run to see it.", { index, nodes: named(nodes) }));
  }

  refresh() {
    super.refresh();
    const order = this.node.properties[ORDER] ?? "", toDraw = JSON.stringify([this.found, order, this.found.map((one) => this.nameOf(one))]);
    if (toDraw !== this.drawn && !this.tiles.querySelector("input")) { // a name that is being typed is not disturbed
      this.draw();
      this.drawn = toDraw;
    }
    this.order.value = order;
    this.orderBar.style.display = this.found.length > 1 ? "" : "none";
    const values = this.chosen().flatMap(({ nodes }) => nodes.map((node) => fieldOf(node, "index")?.widget.value));
    for (const tile of this.tiles.querySelectorAll(".choose")) {
      tile.setAttribute("aria-pressed", String(values.includes(Number(tile.dataset.index))));
    }
  }
}

addPanels("PreviewDirections", "gallery", Gallery);
