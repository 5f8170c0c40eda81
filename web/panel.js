// A panel inside a node: what its last run has sent to the page, and a list of the sliders that it sets.
//
// The page keeps what a run has sent as it keeps the pictures of other nodes: not in the workflow. Which slider the list
// names is kept in the workflow.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { PREFIX, after, is, isOurs, locatorOf, readersOf, sourceOf, widgetOf } from "./graph.js";
import { t } from "./words.js";

/** @typedef {{strength: number, filename: string, subfolder: string, type: string}} Picture */
/** @typedef {{key: string, label: string, nodes: any[]}} Target nodes that are set together */

const SETS = "sets"; // the property of the node that says which slider the panel sets
const ALL = "all";
const STYLE = `
  :host { display: block; color: var(--input-text, #ddd); font: 12px/1.3 sans-serif; }
  .bar { display: flex; gap: 6px; align-items: center; padding: 2px 2px 4px; }
  .bar label { flex: none; }
  select, button { color: inherit; background: var(--comfy-input-bg, #222); font: inherit; }
  select { flex: 1; min-width: 0; border: 1px solid var(--border-color, #4e4e4e); border-radius: 4px; padding: 2px; }
  :focus-visible { outline: 2px solid var(--p-primary-color, #60a5fa); outline-offset: 1px; }
  .status { min-height: 2.6em; padding: 4px 2px 0; }
`;

/** @type {Set<Panel>} */
const panels = new Set();
const refreshAll = () => panels.forEach((panel) => panel.refresh());

/** An element with attributes and what is in it. @returns {any} */
export function element(/** @type {string} */ tag, /** @type {Record<string, string>} */ attributes, /** @type {any[]} */ ...inside) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...inside);
  return made;
}

export const signed = (/** @type {number} */ strength) => (strength > 0 ? "+" : "") + Number(strength.toFixed(2));

export const addressOf = (/** @type {Picture} */ { filename, subfolder, type }) =>
  api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);

/** Nodes as a sentence names them. */
export const named = (/** @type {any[]} */ nodes) => nodes.map((node) => `${node.title} #${node.id}`).join(", ");

/** A node and all behind it that take their directions from it, as far as they have an `index`. @returns {any[]} */
function together(/** @type {any} */ node) {
  const behind = is(node, "PrepareQuickSlider") ? readersOf(node, 0, "directions").flatMap(together) : [];
  return isOurs(node.comfyClass) && widgetOf(node, "index") ? [node, ...behind] : behind;
}

/**
 * The sliders of the same graph that are given the same directions as a node.
 * @returns {Target[]}
 */
function targetsOf(/** @type {any} */ node) {
  let source = sourceOf(node, "directions");
  while (source && is(source.node, "PrepareQuickSlider")) source = sourceOf(source.node, "directions");
  const heads = source ? readersOf(source.node, source.slot, "directions") : [];
  return heads
    .filter((head) => head !== node)
    .map(together)
    .filter((nodes) => nodes.length)
    .map((nodes) => ({ key: String(nodes[0].id), label: named([nodes.at(-1)]), nodes }))
    .sort((one, other) => Number(one.key) - Number(other.key));
}

/** Set a widget of nodes, as one step that can be undone. */
export function setAll(/** @type {any[]} */ nodes, /** @type {string} */ name, /** @type {unknown} */ value) {
  app.canvas?.emitBeforeChange?.();
  for (const node of nodes) setOne(node, name, value);
  app.canvas?.emitAfterChange?.();
  refreshAll();
}

export function setOne(/** @type {any} */ node, /** @type {string} */ name, /** @type {unknown} */ value) {
  const widget = widgetOf(node, name);
  if (!widget) return;
  widget.value = value;
  widget.callback?.(value, app.canvas, node);
  node.setDirtyCanvas?.(true, true);
}

export class Panel {
  /** The panel of a node, in a widget called `name`; `word` says what the list is for. */
  constructor(/** @type {any} */ node, /** @type {string} */ name, /** @type {string} */ word, /** @type {string} */ style) {
    this.node = node;
    this.host = document.createElement("div");
    this.root = this.host.attachShadow({ mode: "open" }); // its styles and those of the page keep apart
    this.list = element("select", { id: "sets" });
    this.list.addEventListener("change", () => {
      node.properties[SETS] = this.list.value;
      this.refresh();
    });
    this.bar = element("div", { class: "bar" }, element("label", { for: "sets" }, word), this.list);
    this.status = element("div", { class: "status", role: "status" });
    this.root.append(element("style", {}, STYLE + style), this.bar);
    // The page's own shortcuts are for the canvas, not for a button or a list that has the focus.
    this.host.addEventListener("keydown", (event) => {
      if (event.key !== "Tab" && !event.ctrlKey && !event.metaKey) event.stopPropagation();
    });
    const height = () => this.height();
    const options = { serialize: false, hideOnZoom: false, getMinHeight: height, getMaxHeight: height };
    const widget = node.addDOMWidget(name, `latent_directions_${name}`, this.host, options);
    widget.serialize = false; // no value of its own in a saved graph
    panels.add(this);
    after(node, "onRemoved", () => panels.delete(this));
  }

  /** Pixels that the classic canvas gives to all of it. */
  height() {
    return 100;
  }

  /** Write a sentence under what is shown; a screen reader reads it out. */
  say(/** @type {string} */ sentence) {
    this.status.textContent = sentence;
  }

  /** Take what a run has sent. */
  show(/** @type {any} */ _sent) {}

  /** Make the node as high as the panel needs. */
  fit() {
    const missing = this.node.computeSize()[1] - this.node.size[1];
    if (missing > 0) this.node.setSize([this.node.size[0], this.node.size[1] + missing]);
  }

  /** What the panel can set. */
  targets() {
    return targetsOf(this.node);
  }

  /** What the list says that it sets; the first slider until something is chosen. */
  chosen() {
    const targets = this.targets(), wanted = this.node.properties[SETS];
    if (wanted === ALL) return targets;
    return [targets.find(({ key }) => key === wanted) ?? targets[0]].filter(Boolean);
  }

  /** Fill the list; it is left out where there is nothing to choose. */
  refresh() {
    const targets = this.targets(), chosen = this.chosen();
    const options = targets.map(({ key, label }) => element("option", { value: key }, label));
    if (targets.length > 1) options.push(element("option", { value: ALL }, t("all of them")));
    this.list.replaceChildren(...options);
    this.list.value = chosen.length > 1 ? ALL : (chosen[0]?.key ?? "");
    this.bar.style.display = targets.length > 1 ? "" : "none";
  }
}

/** Give the nodes of a kind a panel, once a run of theirs has sent `key` to the page. */
export function addPanels(/** @type {string} */ kind, /** @type {string} */ key, /** @type {new (node: any) => Panel} */ Kind) {
  /** @type {Map<any, Panel | null>} */
  const nodes = new Map();
  const show = (/** @type {any} */ node, /** @type {any} */ output) => {
    const [text] = output?.[key] ?? [];
    if (typeof text !== "string") return;
    const panel = nodes.get(node) ?? new Kind(node);
    nodes.set(node, panel);
    panel.show(JSON.parse(text));
  };
  app.registerExtension({
    name: `LatentDirections.${kind}`,
    nodeCreated(/** @type {any} */ node) {
      if (node.comfyClass !== PREFIX + kind) return;
      nodes.set(node, null);
      after(node, "onRemoved", () => nodes.delete(node));
      after(node, "onExecuted", (/** @type {any} */ output) => show(node, output));
    },
    // A workflow comes back to its tab, with what its nodes have shown.
    onNodeOutputsUpdated(/** @type {Record<string, any>} */ outputs) {
      for (const node of nodes.keys()) if (node.graph) show(node, outputs?.[locatorOf(node)]);
    },
  });
}

app.registerExtension({
  name: "LatentDirections.Panels",
  nodeCreated(/** @type {any} */ node) {
    if (!isOurs(node.comfyClass)) return;
    after(node, "onConnectionsChange", () => queueMicrotask(refreshAll)); // when the page has made the link
    for (const name of ["index", "strength"]) {
      const widget = widgetOf(node, name);
      if (widget) after(widget, "callback", refreshAll);
    }
  },
});
