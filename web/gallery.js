// The gallery of Preview Directions: a tile for each direction, with its pictures below, at and above strength 0.
//
// A click on a tile sets `index` of one slider: the one that the list above the tiles names, of those in the same graph
// that are given the same directions. A Quick Slider and the Prepare Quick Slider before it are set together. Nothing is
// queued. The tiles come from the last run of the node; the page keeps them as it keeps the pictures of other nodes: not
// in the workflow.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { after, is, isLinked, isOurs, locatorOf, readersOf, sourceOf, widgetOf } from "./graph.js";

/** @typedef {{strength: number, filename: string, subfolder: string, type: string}} Picture */
/** @typedef {{name: string, pictures: Picture[]}} Found */
/** @typedef {{key: string, label: string, nodes: any[]}} Target nodes whose `index` is set together */

const TARGET = "gallery_sets"; // the property of the node that says which slider a click sets
const ALL = "all";
const TALLEST = 400; // pixels of the tiles before they scroll
const TILE_WIDTH = 170; // pixels, at least
const STYLE = `
  :host { display: block; color: var(--input-text, #ddd); font: 12px/1.3 sans-serif; }
  .bar { display: flex; gap: 6px; align-items: center; padding: 2px 2px 4px; }
  .bar label { flex: none; }
  select { flex: 1; min-width: 0; color: inherit; background: var(--comfy-input-bg, #222); font: inherit;
    border: 1px solid var(--border-color, #4e4e4e); border-radius: 4px; padding: 2px; }
  .tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(${TILE_WIDTH - 10}px, 1fr)); gap: 6px;
    max-height: ${TALLEST}px; overflow: auto; padding: 2px; }
  button { display: block; padding: 3px; color: inherit; background: var(--comfy-input-bg, #222); font: inherit;
    border: 2px solid transparent; border-radius: 6px; cursor: pointer; text-align: left; min-width: 0; }
  button:hover { border-color: var(--border-color, #4e4e4e); }
  button:focus-visible, select:focus-visible { outline: 2px solid var(--p-primary-color, #60a5fa); outline-offset: 1px; }
  button[aria-pressed="true"] { border-color: var(--p-primary-color, #60a5fa); }
  .name { display: block; overflow: hidden; white-space: nowrap; text-overflow: ellipsis; padding: 0 2px 2px; }
  .pictures { display: flex; gap: 2px; }
  img { flex: 1; min-width: 0; width: 100%; border-radius: 2px; }
  .status { min-height: 2.6em; padding: 4px 2px 0; }
`;

/** @type {Set<Gallery>} */
const galleries = new Set();
const refreshAll = () => galleries.forEach((gallery) => gallery.refresh());

/** An element with attributes and what is in it. */
function element(/** @type {string} */ tag, /** @type {Record<string, string>} */ attributes, /** @type {any[]} */ ...inside) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...inside);
  return made;
}

const signed = (/** @type {number} */ strength) => (strength > 0 ? "+" : "") + Number(strength.toFixed(2));

/** A node and all behind it that take their directions from it, as far as they have an `index`. */
function together(/** @type {any} */ node) {
  const behind = is(node, "PrepareQuickSlider") ? readersOf(node, 0, "directions").flatMap(together) : [];
  return isOurs(node.comfyClass) && widgetOf(node, "index") ? [node, ...behind] : behind;
}

/**
 * What a click can set.
 * @returns {Target[]}
 */
function targetsOf(/** @type {any} */ node) {
  let source = sourceOf(node, "directions");
  while (source && is(source.node, "PrepareQuickSlider")) source = sourceOf(source.node, "directions");
  const heads = source ? readersOf(source.node, source.slot, "directions") : [];
  return heads
    .map(together)
    .filter((nodes) => nodes.length)
    .map((nodes) => {
      const last = nodes.at(-1);
      return { key: String(nodes[0].id), label: `${last.title} #${last.id}`, nodes };
    })
    .sort((one, other) => Number(one.key) - Number(other.key));
}

class Gallery {
  constructor(/** @type {any} */ node) {
    this.node = node;
    /** @type {Found[]} */
    this.found = [];
    this.host = document.createElement("div");
    const root = this.host.attachShadow({ mode: "open" }); // its styles and those of the page keep apart
    this.list = /** @type {HTMLSelectElement} */ (element("select", { id: "sets" }));
    this.list.addEventListener("change", () => {
      node.properties[TARGET] = this.list.value;
      this.refresh();
    });
    this.bar = element("div", { class: "bar" }, element("label", { for: "sets" }, "A click sets"), this.list);
    this.tiles = element("div", { class: "tiles", role: "group", "aria-label": "Directions" });
    this.status = element("div", { class: "status", role: "status" });
    root.append(element("style", {}, STYLE), this.bar, this.tiles, this.status);
    // The page's own shortcuts are for the canvas, not for a button or a list that has the focus.
    this.host.addEventListener("keydown", (event) => event.key !== "Tab" && !event.ctrlKey && !event.metaKey && event.stopPropagation());
    const height = () => this.height();
    this.widget = node.addDOMWidget("gallery", "latent_directions_gallery", this.host, {
      serialize: false,
      hideOnZoom: false,
      getMinHeight: height,
      getMaxHeight: height,
    });
    this.widget.serialize = false; // no value of its own in a saved graph
    galleries.add(this);
    after(node, "onRemoved", () => galleries.delete(this));
  }

  /** Pixels that the classic canvas gives to all of it. */
  height() {
    const width = this.node.size[0] - 28;
    const columns = Math.max(1, Math.floor((width + 6) / (TILE_WIDTH - 4)));
    const tile = (width / columns - 20) / 3 / (this.aspect ?? 1) + 40;
    return Math.min(TALLEST, tile * Math.ceil(this.found.length / columns) + 8) + 90;
  }

  show(/** @type {Found[]} */ found) {
    if (JSON.stringify(found) === JSON.stringify(this.found)) return;
    this.found = found;
    this.status.textContent = "";
    this.tiles.replaceChildren(...found.map((direction, index) => this.tile(direction, index)));
    this.refresh();
    const missing = this.node.computeSize()[1] - this.node.size[1];
    if (missing > 0) this.node.setSize([this.node.size[0], this.node.size[1] + missing]);
  }

  tile(/** @type {Found} */ { name, pictures }, /** @type {number} */ index) {
    const images = pictures.map((picture) => {
      const { filename, subfolder, type, strength } = picture;
      const image = /** @type {HTMLImageElement} */ (element("img", { alt: signed(strength), title: signed(strength), draggable: "false" }));
      image.addEventListener("load", () => (this.aspect ??= image.naturalWidth / image.naturalHeight));
      image.addEventListener("error", () => (this.status.textContent = "The server no longer has these pictures. Run again to see them."));
      image.src = api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
      return image;
    });
    const strengths = pictures.map(({ strength }) => signed(strength)).join(", ");
    const label = `Choose direction ${index}: ${name}. Pictures at strengths ${strengths}.`;
    const words = element("span", { class: "name" }, `${index}: ${name}`);
    const button = element("button", { type: "button", "aria-label": label, title: label }, words, element("span", { class: "pictures" }, ...images));
    button.addEventListener("click", () => this.choose(index));
    return button;
  }

  /** What the list says that a click sets; the first slider until something is chosen. */
  chosen() {
    const targets = targetsOf(this.node), wanted = this.node.properties[TARGET];
    if (wanted === ALL) return targets;
    return [targets.find(({ key }) => key === wanted) ?? targets[0]].filter(Boolean);
  }

  choose(/** @type {number} */ index) {
    const nodes = this.chosen().flatMap((target) => target.nodes);
    const linked = nodes.filter((node) => isLinked(node, "index"));
    app.canvas?.emitBeforeChange?.();
    for (const node of nodes) {
      if (linked.includes(node)) continue;
      const widget = widgetOf(node, "index");
      widget.value = index;
      widget.callback?.(index, app.canvas, node);
      node.setDirtyCanvas?.(true, true);
    }
    app.canvas?.emitAfterChange?.();
    this.status.textContent = this.outcome(index, nodes, linked);
    refreshAll();
  }

  outcome(/** @type {number} */ index, /** @type {any[]} */ nodes, /** @type {any[]} */ linked) {
    const names = (/** @type {any[]} */ some) => some.map((node) => `${node.title} #${node.id}`).join(", ");
    if (!nodes.length) return "No slider is given these directions. Connect them to a Direction Slider.";
    if (linked.length) return `'index' of ${names(linked)} comes from a link. Change it there.`;
    return `Direction ${index} is chosen for ${names(nodes)}. Run to see it.`;
  }

  /** Show which direction is chosen, and what a click sets. */
  refresh() {
    const targets = targetsOf(this.node), chosen = this.chosen();
    const options = targets.map(({ key, label }) => element("option", { value: key }, label));
    if (targets.length > 1) options.push(element("option", { value: ALL }, "all of them"));
    this.list.replaceChildren(...options);
    this.list.value = chosen.length > 1 ? ALL : (chosen[0]?.key ?? "");
    this.bar.style.display = targets.length > 1 ? "" : "none";
    const values = chosen.flatMap(({ nodes }) => nodes.map((node) => widgetOf(node, "index").value));
    [...this.tiles.children].forEach((tile, index) => tile.setAttribute("aria-pressed", String(values.includes(index))));
  }
}

/** @type {WeakMap<object, Gallery>} */
const galleryOf = new WeakMap();

/** Show what a node's last run found: the text that it sends to the page. */
function show(/** @type {any} */ node, /** @type {any} */ output) {
  const [text] = output?.gallery ?? [];
  if (typeof text !== "string") return;
  if (!galleryOf.has(node)) galleryOf.set(node, new Gallery(node));
  galleryOf.get(node)?.show(JSON.parse(text));
}

const previews = new Set();

app.registerExtension({
  name: "LatentDirections.Gallery",
  nodeCreated(/** @type {any} */ node) {
    if (!isOurs(node.comfyClass)) return;
    after(node, "onConnectionsChange", () => queueMicrotask(refreshAll)); // when the page has made the link
    const index = widgetOf(node, "index");
    if (index) after(index, "callback", refreshAll);
    if (!is(node, "PreviewDirections")) return;
    previews.add(node);
    after(node, "onRemoved", () => previews.delete(node));
    after(node, "onExecuted", (/** @type {any} */ output) => show(node, output));
  },
  // A workflow comes back to its tab, with what its nodes have shown.
  onNodeOutputsUpdated(/** @type {Record<string, any>} */ outputs) {
    for (const node of previews) if (node.graph) show(node, outputs?.[locatorOf(node)]);
  },
});
