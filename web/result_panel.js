// A panel of what a node's last run has sent to the page, with a list of the sliders that it sets.
//
// The page keeps what a run has sent as it keeps the pictures of other nodes: not in the workflow. Which slider the list
// names is kept in the workflow.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { after, allNodes, is, isOurs, isShared, locatorOf, readersOf, sourceOf, widgetOf } from "./graph.js";
import { Panel, asOneStep, element, named, panelOf } from "./panel.js";
import { t } from "./words.js";

/** @typedef {{strength: number, filename: string, subfolder: string, type: string}} Picture */
/** @typedef {{key: string, label: string, nodes: any[]}} Target nodes that are set together */

const SETS = "sets"; // the property of the node that says which slider the panel sets
const ALL = "all";
const STYLE = `
  .bar { display: flex; gap: 6px; align-items: center; padding: 2px 2px 4px; }
  .bar label { flex: none; }
  select { flex: 1; padding: 2px; }
  .status { min-height: 2.6em; }
`;

export const addressOf = (/** @type {Picture} */ { filename, subfolder, type }) =>
  api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);

/** A node and all behind it that take their directions from it, as far as they have an `index`. @returns {any[]} */
function together(/** @type {any} */ node) {
  const behind = is(node, "PrepareQuickSlider") ? readersOf(node, 0, "directions").flatMap(together) : [];
  return isOurs(node.comfyClass) && widgetOf(node, "index") ? [node, ...behind] : behind;
}

/** The node and the output that a node's directions come from, before any Prepare Quick Slider. */
export function finderOf(/** @type {any} */ node) {
  let source = sourceOf(node, "directions");
  while (source && is(source.node, "PrepareQuickSlider")) source = sourceOf(source.node, "directions");
  return source;
}

export class ResultPanel extends Panel {
  /** The panel of a node, in a widget called `name`; `word` says what the list is for. */
  constructor(/** @type {any} */ node, /** @type {string} */ name, /** @type {string} */ word, /** @type {string} */ style) {
    super(node, name, STYLE + style);
    this.list = element("select", { id: "sets" });
    this.list.addEventListener("change", () => asOneStep(() => (node.properties[SETS] = this.list.value)));
    this.bar = element("div", { class: "bar" }, element("label", { for: "sets" }, word), this.list);
    this.root.append(this.bar);
  }

  /** Take what a run has sent. */
  show(/** @type {any} */ _sent) {}

  /**
   * What the panel can set: the sliders that are given the same directions.
   * @returns {Target[]}
   */
  targets() {
    const source = finderOf(this.node), heads = source ? readersOf(source.node, source.slot, "directions") : [];
    return heads
      .filter((head) => head !== this.node)
      .map(together)
      .filter((nodes) => nodes.length)
      .map((nodes) => ({ key: locatorOf(nodes[0]), label: named([nodes.at(-1)]), nodes }))
      .sort((one, other) => Number(one.nodes[0].id) - Number(other.nodes[0].id));
  }

  /** What the list says that it sets; the first slider until something is chosen. */
  chosen() {
    const targets = this.targets(), wanted = this.node.properties[SETS];
    if (wanted === ALL) return targets;
    return [targets.find(({ key }) => key === wanted) ?? targets[0]].filter(Boolean);
  }

  /** Say why there is nothing to set; `sentence` where no link is the reason. */
  sayNothingToSet(/** @type {string} */ sentence) {
    if (!isShared(this.node)) this.say(sentence);
    else this.say(t("The workflow has this subgraph several times, so its sliders cannot be set from here. Set them by hand."));
  }

  /** Fill the list; it is left out where there is nothing to choose. */
  refresh() {
    super.refresh();
    const targets = this.targets(), chosen = this.chosen();
    const options = targets.map(({ key, label }) => element("option", { value: key }, label));
    if (targets.length > 1) options.push(element("option", { value: ALL }, t("all of them")));
    this.list.replaceChildren(...options);
    this.list.value = chosen.length > 1 ? ALL : (chosen[0]?.key ?? "");
    this.bar.style.display = targets.length > 1 ? "" : "none";
  }
}

/** Give the nodes of a kind a panel, once a run of theirs has sent `key` to the page. */
export function addPanels(/** @type {string} */ kind, /** @type {string} */ key, /** @type {new (node: any) => ResultPanel} */ Kind) {
  const show = (/** @type {any} */ node, /** @type {any} */ output) => {
    const [text] = output?.[key] ?? [];
    if (typeof text !== "string") return;
    const panel = /** @type {ResultPanel | undefined} */ (panelOf(node)) ?? new Kind(node);
    panel.show(JSON.parse(text));
  };
  app.registerExtension({
    name: `LatentDirections.${kind}`,
    nodeCreated(/** @type {any} */ node) {
      if (is(node, kind)) after(node, "onExecuted", (/** @type {any} */ output) => show(node, output));
    },
    // A workflow comes back to its tab, with what its nodes have shown.
    onNodeOutputsUpdated(/** @type {Record<string, any>} */ outputs) {
      for (const node of allNodes()) if (is(node, kind)) show(node, outputs?.[locatorOf(node)]);
    },
  });
}
