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

/**
 * The node and the output that an input is linked to in the same graph.
 * @returns {{node: any, slot: number} | null}
 */
export function sourceOf(/** @type {any} */ node, /** @type {string} */ name) {
  let input = node.inputs?.find((/** @type {any} */ one) => one.name === name);
  for (let link; input?.link != null; ) {
    link = linkOf(node.graph, input.link);
    const source = link && node.graph.getNodeById(link.origin_id);
    if (!source) return null;
    if (!isReroute(source)) return { node: source, slot: link.origin_slot };
    input = source.inputs[0];
  }
  return null;
}

/**
 * The nodes of the same graph whose input `name` is linked to an output.
 * @returns {any[]}
 */
export function readersOf(/** @type {any} */ node, /** @type {number} */ slot, /** @type {string} */ name) {
  const readers = [];
  for (const id of node.outputs?.[slot]?.links ?? []) {
    const link = linkOf(node.graph, id);
    const reader = link && node.graph.getNodeById(link.target_id);
    if (isReroute(reader)) readers.push(...readersOf(reader, 0, name));
    else if (reader?.inputs?.[link.target_slot]?.name === name) readers.push(reader);
  }
  return readers;
}
