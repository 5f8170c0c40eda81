// A panel: what a node shows that is not one of ComfyUI's widgets, with a line for sentences below it.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { after, allNodes, fieldOf, isOurs, widgetOf } from "./graph.js";

const STYLE = `
  :host { display: block; color: var(--input-text, #ddd); font: 12px/1.3 sans-serif; }
  input, select, button, textarea { color: inherit; background: var(--comfy-input-bg, #222); font: inherit; min-width: 0;
    border: 1px solid var(--border-color, #4e4e4e); border-radius: 4px; box-sizing: border-box; }
  button { flex: none; padding: 2px 8px; cursor: pointer; }
  [type="checkbox"], [type="range"] { accent-color: var(--p-primary-color, #60a5fa); margin: 0; }
  :focus-visible { outline: 2px solid var(--p-primary-color, #60a5fa); outline-offset: 1px; }
  .status { min-height: 1.4em; padding: 4px 2px 0; }
`;
const TEXT_FIELDS = 'input[type="text"], input[type="number"], textarea';
const isTextField = (/** @type {Event} */ event) => /** @type {Element} */ (event.composedPath()[0]).matches(TEXT_FIELDS);

/** The panels of nodes, also of those that are in no workflow: copies, and nodes of a workflow that was left. @type {WeakMap<any, Panel>} */
const panels = new WeakMap();
export const panelOf = (/** @type {any} */ node) => panels.get(node);
export const refreshAll = () => allNodes().forEach((node) => panelOf(node)?.refresh());

/** An element with attributes and what is in it. @returns {any} */
export function element(/** @type {string} */ tag, /** @type {Record<string, string>} */ attributes, /** @type {any[]} */ ...inside) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...inside);
  return made;
}

export const signed = (/** @type {number} */ strength) => (strength > 0 ? "+" : "") + Number(strength.toFixed(2));

/** Nodes as a sentence names them. */
export const named = (/** @type {any[]} */ nodes) => nodes.map((node) => `${node.title} #${node.id}`).join(", ");

/** Make a change of the workflow one step that can be undone. */
export function asOneStep(/** @type {() => void} */ change) {
  app.canvas?.emitBeforeChange?.();
  try {
    change();
  } finally {
    app.canvas?.emitAfterChange?.();
    refreshAll();
  }
}

/** Set an input of a node, where its value is set. */
export function setOne(/** @type {any} */ node, /** @type {string} */ name, /** @type {unknown} */ value) {
  const field = fieldOf(node, name);
  if (!field) return;
  field.widget.value = value;
  field.widget.callback?.(value, app.canvas, field.node);
  field.node.setDirtyCanvas?.(true, true);
}

export class Panel {
  /** The panel of a node, in a widget called `name`. */
  constructor(/** @type {any} */ node, /** @type {string} */ name, /** @type {string} */ style) {
    this.node = node;
    this.host = document.createElement("div");
    this.host.dataset.panel = name;
    this.root = this.host.attachShadow({ mode: "open" }); // its styles and those of the page keep apart
    this.status = element("div", { class: "status", role: "status" });
    this.root.append(element("style", {}, STYLE + style));
    // By this the page knows a text field, whose undo is not that of the workflow.
    Object.defineProperty(this.host, "type", { get: () => (this.root.activeElement?.matches(TEXT_FIELDS) ? "textarea" : undefined) });
    // The page's own shortcuts are for the canvas, not for an element that has the focus: but for those with Ctrl, such as
    // undo, which are a field's own only where text is typed.
    this.host.addEventListener("keydown", (event) => {
      const withControl = (event.ctrlKey || event.metaKey) && (event.key === "Enter" || !isTextField(event));
      if (event.key !== "Tab" && !withControl) event.stopPropagation();
      // The page runs the workflow at Ctrl+Enter, with what is typed.
      if (event.key === "Enter" && withControl && isTextField(event)) event.composedPath()[0].dispatchEvent(new Event("change"));
    });
    // Else the page would copy and paste nodes.
    for (const kind of ["copy", "cut", "paste"]) {
      this.host.addEventListener(kind, (event) => isTextField(event) && event.stopPropagation());
    }
    const height = () => this.height();
    const options = { serialize: false, hideOnZoom: false, getMinHeight: height, getMaxHeight: height };
    const widget = node.addDOMWidget(name, `latent_directions_${name}`, this.host, options);
    widget.serialize = false; // no value of its own in a saved graph
    panels.set(node, this);
  }

  /** Pixels that the classic canvas gives to all of it. */
  height() {
    return 100;
  }

  /** Write a sentence under what is shown; a screen reader reads it out. */
  say(/** @type {string} */ sentence) {
    this.status.textContent = sentence;
  }

  /** Make the node as high as the panel needs. */
  fit() {
    const missing = this.node.computeSize()[1] - this.node.size[1];
    if (missing > 0) this.node.setSize([this.node.size[0], this.node.size[1] + missing]);
  }

  /** Show what the nodes say now. */
  refresh() {
    // When a workflow is loaded, as by undo, Nodes 2.0 keeps the element of the node that had this id before.
    if (this.host.isConnected || this.node.graph !== app.canvas?.graph) return;
    document.querySelector(`[data-node-id="${this.node.id}"] [data-panel="${this.host.dataset.panel}"]`)?.replaceWith(this.host);
  }
}

app.registerExtension({
  name: "LatentDirections.Panels",
  setup() {
    api.addEventListener("graphChanged", refreshAll);
  },
  nodeCreated(/** @type {any} */ node) {
    if (!isOurs(node.comfyClass)) return;
    after(node, "onConnectionsChange", () => queueMicrotask(refreshAll)); // when the page has made the link
    for (const name of ["index", "strength", "board"]) {
      const widget = widgetOf(node, name);
      if (widget) after(widget, "callback", refreshAll);
    }
  },
});
