// What the modules of this page share: the names of the pack's nodes, and the ways through a graph.

import { app } from "../../scripts/app.js";

export const PREFIX = "LatentDirections_";

/**
 * A node of the page, with what the modules here use of it.
 * @typedef {object} Node
 * @property {number | string} id
 * @property {string} [title]
 * @property {string} [type]
 * @property {string} [comfyClass]
 * @property {Graph} [graph]
 * @property {Widget[]} [widgets]
 * @property {{name: string, link: number | null, widget?: {name: string}}[]} [inputs]
 * @property {{name: string, links: number[] | null}[]} [outputs]
 * @property {boolean} [showAdvanced] kept in the workflow by the page itself
 * @property {number[]} size
 */

/** @typedef {{id: string, nodes: Node[], getNodeById: Function, getLink?: Function, links: any}} Graph */

/** @typedef {{name: string, type: string, value: any, options: any, hidden?: boolean, callback?: Function}} Widget */

/** Whether a type of node is of this pack. */
export const isOurs = (/** @type {unknown} */ type) => String(type ?? "").startsWith(PREFIX);

/** Whether a node is the one of this pack that is called `name`. */
export const is = (/** @type {Node} */ node, /** @type {string} */ name) => node.comfyClass === PREFIX + name;

/** The widget of a node by its name. */
export const widgetOf = (/** @type {Node} */ node, /** @type {string} */ name) =>
  node.widgets?.find((widget) => widget.name === name);

/** Whether the value of a widget comes from a link in place of the widget. */
export function isLinked(/** @type {Node} */ node, /** @type {string} */ name) {
  return node.inputs?.some((input) => input.widget?.name === name && input.link != null) ?? false;
}

/** Call `then` after a method of a node, which keeps what the page has set there. */
export function after(/** @type {any} */ object, /** @type {string} */ method, /** @type {Function} */ then) {
  const before = object[method];
  object[method] = function (/** @type {any[]} */ ...values) {
    const result = before?.apply(this, values);
    then(...values);
    return result;
  };
}

/**
 * The node with an execution id, which is a path such as "5:3" for a node inside a subgraph.
 * @returns {Node | null}
 */
export function nodeOf(/** @type {unknown} */ id) {
  let graph = app.rootGraph ?? app.graph;
  let node = null;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById?.(/^\d+$/.test(part) ? Number(part) : part) ?? null;
    graph = node?.subgraph;
  }
  return node;
}

/** The name by which the page keeps what a node has shown. */
export function locatorOf(/** @type {any} */ node) {
  const inRoot = node.graph?.isRootGraph ?? node.graph === (app.rootGraph ?? app.graph);
  return inRoot ? String(node.id) : `${node.graph?.id}:${node.id}`;
}

const linkOf = (/** @type {any} */ graph, /** @type {any} */ id) => graph.getLink?.(id) ?? graph.links?.get?.(id) ?? graph.links?.[id];
const isReroute = (/** @type {any} */ node) => node?.type === "Reroute";

/** All nodes of the workflow, also those inside subgraphs. @returns {any[]} */
export function allNodes() {
  const root = app.rootGraph ?? app.graph;
  return root ? [root, ...(root.subgraphs?.values() ?? [])].flatMap(({ nodes }) => nodes) : [];
}

/** The nodes that stand for a subgraph in the graphs around it; none for the workflow's own graph. @returns {any[]} */
const boxesOf = (/** @type {any} */ graph) => allNodes().filter(({ subgraph }) => subgraph && subgraph === graph);

/** The one node that stands for a subgraph; null where there are several, or none. */
function boxOf(/** @type {any} */ graph) {
  const boxes = boxesOf(graph);
  return boxes.length === 1 ? boxes[0] : null;
}

/** Whether a node is inside a subgraph that the workflow has several times, so that its links lead to several places. */
export const isShared = (/** @type {Node} */ node) => boxesOf(node.graph).length > 1;

/** The id of a node in a run, as `nodeOf` reads it. @returns {string} */
export function executionIdOf(/** @type {Node} */ node) {
  const box = boxOf(node.graph);
  return box ? `${executionIdOf(box)}:${node.id}` : String(node.id);
}

/**
 * Where the value of a node's input is set: its own widget, or the one of a subgraph's box that is shown in its place; null
 * where a link gives the value.
 * @returns {{node: any, widget: Widget} | null}
 */
export function fieldOf(/** @type {any} */ node, /** @type {string} */ name) {
  const link = node.inputs?.find((/** @type {any} */ input) => input.widget?.name === name)?.link;
  if (link == null) {
    const widget = widgetOf(node, name);
    return widget ? { node, widget } : null;
  }
  const { originIsIoNode, origin_slot } = linkOf(node.graph, link) ?? {}, box = originIsIoNode ? boxOf(node.graph) : null;
  const input = box?.inputs[origin_slot]?.widget?.name;
  return input ? fieldOf(box, input) : null;
}

/** The node and the output at the start of a link. @returns {{node: any, slot: number} | null} */
function startOf(/** @type {any} */ graph, /** @type {any} */ id) {
  const link = id == null ? null : linkOf(graph, id);
  if (!link) return null;
  if (link.originIsIoNode) {
    const box = boxOf(graph);
    return box ? startOf(box.graph, box.inputs[link.origin_slot]?.link) : null;
  }
  const node = graph.getNodeById(link.origin_id);
  if (node?.subgraph) return startOf(node.subgraph, node.subgraph.outputNode.slots[link.origin_slot]?.linkIds[0]);
  if (isReroute(node)) return startOf(graph, node.inputs[0]?.link);
  return node ? { node, slot: link.origin_slot } : null;
}

/**
 * The node and the output that an input is linked to, also out of a subgraph or into one.
 * @returns {{node: any, slot: number} | null}
 */
export function sourceOf(/** @type {any} */ node, /** @type {string} */ name) {
  return startOf(node.graph, node.inputs?.find((/** @type {any} */ input) => input.name === name)?.link);
}

/** The nodes at the ends of links that lead to an input `name`. @returns {any[]} */
function endsOf(/** @type {any} */ graph, /** @type {any[]} */ ids, /** @type {string} */ name) {
  return ids.flatMap((id) => {
    const link = linkOf(graph, id);
    if (!link) return [];
    if (link.targetIsIoNode) {
      const box = boxOf(graph);
      return box ? readersOf(box, link.target_slot, name) : [];
    }
    const node = graph.getNodeById(link.target_id);
    if (node?.subgraph) return endsOf(node.subgraph, node.subgraph.inputNode.slots[link.target_slot]?.linkIds ?? [], name);
    if (isReroute(node)) return readersOf(node, 0, name);
    return node?.inputs?.[link.target_slot]?.name === name ? [node] : [];
  });
}

/**
 * The nodes whose input `name` is linked to an output, also out of a subgraph or into one.
 * @returns {any[]}
 */
export function readersOf(/** @type {any} */ node, /** @type {number} */ slot, /** @type {string} */ name) {
  return [...new Set(endsOf(node.graph, node.outputs?.[slot]?.links ?? [], name))];
}

/** A node and all nodes that come before it in a run. @returns {any[]} */
export function nodesUpTo(/** @type {any} */ node) {
  const found = new Set([node]);
  for (const one of found) {
    for (const input of one.inputs ?? []) {
      const source = sourceOf(one, input.name);
      if (source) found.add(source.node); // a set goes on to what is added while it is gone through
    }
  }
  return [...found];
}

/**
 * What the result of a node depends on, besides the results of the nodes before it: values, links, and whether it is bypassed.
 * @returns {Record<string, unknown>}
 */
export function settingsOf(/** @type {any} */ node) {
  const boxes = [];
  for (let box = boxOf(node.graph); box; box = boxOf(box.graph)) boxes.push(box);
  /** @type {Record<string, unknown>} */
  const settings = { mode: [node, ...boxes].map(({ mode }) => mode) };
  for (const { name, options } of node.widgets ?? []) {
    if (options?.serialize !== false) settings[name] = fieldOf(node, name)?.widget.value; // what a run is given
  }
  for (const { name } of node.inputs ?? []) {
    const source = sourceOf(node, name);
    if (source) settings[name] = `${locatorOf(source.node)} ${source.slot}`;
  }
  return settings;
}
