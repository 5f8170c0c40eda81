// Which inputs a node shows. What is hidden keeps its value, in the saved workflow and in what is queued.
//
// 1. Advanced inputs are hidden until "Show advanced" is pressed. Nodes 2.0 does that by itself; here it is done for the
//    classic canvas. Both keep the choice in the node's `showAdvanced`, which the page saves with the workflow.
// 2. Find Directions shows what the chosen method uses, on both renderers. The server knows what that is
//    (nodes/identify_shown_inputs.py), and what to call the methods in plain words.
//
// 3. An input that a panel of the pack shows in another form is hidden by its `options.hidden`, as Nodes 2.0 does.
//
// An input with a link is always shown.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { after, is, isLinked, isOurs, widgetOf } from "./graph.js";
import { t } from "./words.js";

/** @typedef {import("./graph.js").Node} Node */
/** @typedef {import("./graph.js").Widget} Widget */

const ALWAYS_SHOW = "Comfy.Node.AlwaysShowAdvancedWidgets"; // a setting of the page
/** The inputs that each method uses, and all inputs that some method uses. @type {Map<string, Set<string>>} */
const usedBy = new Map();
/** @type {Set<string>} */
const usedBySome = new Set();
/** What the page calls each method; what is stored and queued is its name. @type {Map<string, string>} */
const labels = new Map();
let alwaysShown = false;
/** The method that a node shows the inputs of. @type {WeakMap<Node, unknown>} */
const shownMethod = new WeakMap();

async function askForMethods() {
  try {
    const answer = await api.fetchApi("/latent_directions/method_inputs");
    if (!answer.ok) return;
    for (const [method, { label, inputs }] of Object.entries(await answer.json())) {
      labels.set(method, label);
      usedBy.set(method, new Set(inputs));
      for (const input of inputs) usedBySome.add(input);
    }
  } catch {
    // without an answer all inputs are shown
  }
}

/** Whether the chosen method does without an input; no where the method is not known. */
function isUnused(/** @type {Node} */ node, /** @type {Widget} */ widget) {
  if (!is(node, "FindDirections") || !usedBySome.has(widget.name) || isLinked(node, "method")) return false;
  const used = usedBy.get(String(shownMethod.get(node)));
  return used !== undefined && !used.has(widget.name);
}

/** Whether "Show advanced" decides about a widget. */
function isBehindButton(/** @type {Node} */ node, /** @type {Widget} */ widget) {
  return Boolean(widget.options?.advanced) && !isLinked(node, widget.name) && !isUnused(node, widget);
}

/** Whether the classic canvas leaves a widget out. */
function isHidden(/** @type {Node} */ node, /** @type {Widget} */ widget) {
  if (isLinked(node, widget.name)) return false;
  return Boolean(widget.options?.hidden) || isUnused(node, widget) || (isBehindButton(node, widget) && !node.showAdvanced && !alwaysShown);
}

/** Give a property of a widget a value that is asked for anew each time, and that copies of the widget do not get. */
function define(/** @type {Widget} */ widget, /** @type {string} */ name, /** @type {() => any} */ get) {
  Object.defineProperty(widget, name, { get, set() {}, configurable: true, enumerable: false });
}

/** Change what is shown, and the height of the node by what the change takes; a node without a text box has no spare height. */
function resizing(/** @type {any} */ node, /** @type {() => void} */ change) {
  const spare = node.size[1] - node.computeSize()[1];
  change();
  const grows = node.widgets.some((/** @type {any} */ widget) => widget.computeLayoutSize && node.isWidgetVisible(widget));
  node.setSize([node.size[0], node.computeSize()[1] + (grows ? Math.max(0, spare) : 0)]);
  node.setDirtyCanvas?.(true, true);
}

/** Keep the sockets of hidden inputs from lying over those of others; at 0 the node's own sockets come first. */
function tuckAway(/** @type {any} */ node) {
  for (const widget of node.widgets) if (widget.hidden) widget.y = 0;
}

function addButton(/** @type {any} */ node) {
  const press = () => resizing(node, () => (node.showAdvanced = !node.showAdvanced));
  // Nodes 2.0 has a button of its own
  const button = node.addWidget("button", "show_advanced", null, press, { serialize: false, canvasOnly: true });
  button.serialize = false; // no value of its own in a saved graph
  define(button, "label", () => (node.showAdvanced ? t("Hide advanced") : t("Show advanced")));
  define(button, "hidden", () => alwaysShown || !node.widgets.some((/** @type {Widget} */ w) => isBehindButton(node, w)));
}

/** Tell Nodes 2.0, which reads `options.hidden`, what the method does without. */
function hideUnused(/** @type {any} */ node) {
  let changed = false;
  for (const widget of node.widgets ?? []) {
    if (!usedBySome.has(widget.name)) continue;
    const hidden = isUnused(node, widget) && !isLinked(node, widget.name);
    changed ||= Boolean(widget.options.hidden) !== hidden;
    widget.options.hidden = hidden;
  }
  if (changed && /** @type {any} */ (globalThis).LiteGraph?.vueNodesMode) node.widgets = [...node.widgets]; // draws the node anew
}

function followMethod(/** @type {any} */ node) {
  const method = widgetOf(node, "method");
  if (!method) return;
  method.options.getOptionLabel = (/** @type {string | null} */ name) => t(labels.get(String(name)) ?? String(name ?? ""));
  const show = () => {
    shownMethod.set(node, method.value);
    hideUnused(node);
  };
  after(method, "callback", () => resizing(node, show));
  after(node, "onConfigure", show);
  after(node, "onConnectionsChange", show);
  show();
}

app.registerExtension({
  name: "LatentDirections.ShownInputs",
  async init() {
    alwaysShown = Boolean(app.extensionManager?.setting?.get?.(ALWAYS_SHOW));
    app.ui?.settings?.addEventListener?.(`${ALWAYS_SHOW}.change`, (/** @type {CustomEvent} */ event) => {
      alwaysShown = Boolean(event.detail?.value);
      app.canvas?.setDirty?.(true, true);
    });
    await askForMethods();
  },
  nodeCreated(/** @type {any} */ node) {
    if (!isOurs(node.comfyClass) || !node.widgets?.length) return;
    if (is(node, "FindDirections")) followMethod(node);
    const hasAdvanced = node.widgets.some((/** @type {Widget} */ widget) => widget.options?.advanced);
    if (!hasAdvanced && !is(node, "FindDirections")) return;
    for (const widget of node.widgets) define(widget, "hidden", () => isHidden(node, widget));
    after(node, "onDrawForeground", () => tuckAway(node));
    if (hasAdvanced) addButton(node);
    node.setSize([node.size[0], node.computeSize()[1]]);
  },
});
