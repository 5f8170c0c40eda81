// What ComfyUI's page does not do by itself for the nodes of this pack, on the classic canvas and on Nodes 2.0:
//
// 1. A wiring that cannot work is refused before it is queued, with a sentence (the rules are in nodes/wiring.py).
// 2. The sentence of a run that failed is shown in a toast; the page's own says that "this node threw an error".
// 3. After a run a node shows its result: its picture in place of the last live preview, and its line of text.
// 4. Load Direction has a button that lists the files anew.
//
// If a frontend lacks an API that is used here, only that one feature is missing.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { PREFIX, isOurs, locatorOf, nodeOf } from "./graph.js";
import { t } from "./words.js";

const SECONDS = 20; // that a toast stays
// The folder of this pack, by which the errors of its modules are known.
const FOLDER = decodeURIComponent(new URL(import.meta.url).pathname).split("/extensions/")[1]?.split("/")[0];

function toast(/** @type {string} */ summary, /** @type {string} */ detail) {
  app.extensionManager?.toast?.add?.({ severity: "error", summary, detail, life: SECONDS * 1000 });
}

/** Write a line on a node, in place of its last one, as ComfyUI's server does by its message "progress_text". */
function say(/** @type {unknown} */ id, /** @type {string} */ text) {
  api.dispatchCustomEvent?.("progress_text", { nodeId: String(id), text });
}

/** The widget of a node's line of text; the page makes it with the first line. */
const lineOf = (/** @type {any} */ node) => node?.widgets?.find((/** @type {any} */ widget) => widget.name === "$$node-text-preview");

/** Replace what a node said while it ran; a node without a line gets none, since it takes room. */
function sayInstead(/** @type {unknown} */ id, /** @type {string} */ text) {
  if (lineOf(nodeOf(id))) say(id, text);
}

/** Give the text on a node as much height as it takes; the classic canvas cuts it off after two lines. */
function fitText(/** @type {any} */ node, /** @type {string} */ text) {
  const widget = lineOf(node);
  if (!widget?.options?.getMinHeight) return;
  widget.options.getMinHeight = () => {
    const charactersPerLine = Math.max(20, (node.size[0] - 56) / 6); // between the widget's margins
    return Math.min(200, 42 + 16 * Math.ceil(text.length / charactersPerLine));
  };
  node.setDirtyCanvas?.(true, true);
}

// 1. Refuse wiring before queueing ---------------------------------------------------------------------------------

/** What the server knows to be wrong with a prompt; nothing where it does not answer. */
async function problemsOf(/** @type {any} */ prompt, /** @type {unknown} */ outputs) {
  if (!Object.values(prompt ?? {}).some((node) => isOurs(node?.class_type))) return [];
  try {
    const body = JSON.stringify({ prompt, outputs: outputs ?? null });
    const headers = { "Content-Type": "application/json" };
    const answer = await api.fetchApi("/latent_directions/check", { method: "POST", headers, body });
    const found = answer.ok ? await answer.json() : [];
    return Array.isArray(found) ? found : [];
  } catch {
    return [];
  }
}

/** The error that the page's own check of a prompt ends with, so that the page marks node and input, and opens its panel. */
function refusal(/** @type {any[]} */ problems, /** @type {any} */ prompt) {
  /** @type {Record<string, any>} */
  const nodeErrors = {};
  for (const { node, input, message } of problems) {
    nodeErrors[node] ??= { class_type: prompt[node].class_type, dependent_outputs: [], errors: [] };
    nodeErrors[node].errors.push({
      type: "custom_validation_failed",
      message: "Custom validation failed for node",
      details: `${input} - ${message}`,
      extra_info: { input_name: input },
    });
  }
  const error = { type: "prompt_outputs_failed_validation", message: problems[0].message, details: "", extra_info: {} };
  const Refused = /** @type {any} */ (window).comfyAPI?.api?.PromptExecutionError;
  return Refused ? new Refused({ error, node_errors: nodeErrors }, 400) : new Error(problems[0].message);
}

function checkBeforeQueueing() {
  const queuePrompt = api.queuePrompt;
  if (typeof queuePrompt !== "function") return;
  api.queuePrompt = async function (/** @type {any[]} */ ...[number, data, options, ...rest]) {
    const prompt = data?.output;
    const problems = await problemsOf(prompt, options?.partialExecutionTargets);
    const known = problems.filter((problem) => prompt[problem?.node] && problem.input && problem.message);
    if (known.length) {
      for (const { node, input, message } of known) {
        toast(`${nodeOf(node)?.title ?? prompt[node].class_type}: ${input}`, message);
      }
      throw refusal(known, prompt);
    }
    return queuePrompt.call(this, number, data, options, ...rest);
  };
}

// 2. Sentences of failed runs --------------------------------------------------------------------------------------

/** An error of a node of this pack, or one that this pack raised inside another node, such as a sampler. */
function isOurError(/** @type {any} */ { node_type, exception_type }) {
  const module = FOLDER && `${FOLDER.replaceAll(".", "_x_")}.`;
  return isOurs(node_type) || Boolean(module && /\.errors\.\w+$/.test(exception_type) && exception_type.includes(module));
}

function showErrors() {
  api.addEventListener("execution_error", (/** @type {any} */ { detail }) => {
    if (!detail || !isOurError(detail)) return;
    toast(nodeOf(detail.node_id)?.title ?? detail.node_type, String(detail.exception_message ?? "").trim());
    if (isOurs(detail.node_type)) sayInstead(detail.node_id, t("failed"));
  });
  api.addEventListener("execution_interrupted", (/** @type {any} */ { detail }) => {
    if (isOurs(detail?.node_type)) sayInstead(detail.node_id, t("cancelled"));
  });
}

// 3. Results in place of previews ----------------------------------------------------------------------------------

/** Take away the live preview of a node; the page would show it in place of the result until the node starts again. */
function dropPreview(/** @type {any} */ node) {
  const locator = locatorOf(node);
  // The page keeps previews twice, in app.nodePreviewImages and, for Nodes 2.0, in its store "nodeOutput".
  const pinia = /** @type {any} */ (document.getElementById("vue-app"))?.__vue_app__?.config?.globalProperties?.$pinia;
  try {
    pinia?._s?.get("nodeOutput")?.revokePreviewsByLocatorId?.(locator);
  } catch {
    // another frontend: the classic canvas is served by the next line
  }
  if (app.nodePreviewImages) delete app.nodePreviewImages[locator];
  node.preview = undefined;
  node.images = undefined; // makes the classic canvas load the result
  node.setDirtyCanvas?.(true, true);
}

function showResults() {
  api.addEventListener("executed", (/** @type {any} */ { detail }) => {
    const id = detail?.display_node ?? detail?.node;
    const node = id == null ? null : nodeOf(id);
    if (!node || !isOurs(node.comfyClass ?? node.type)) return;
    if (detail.output?.images?.length) dropPreview(node);
    // The server has sent the line while the node ran; a result out of the cache comes without it.
    const [text] = detail.output?.text ?? [];
    if (typeof text !== "string") return;
    say(id, text);
    fitText(node, text);
  });
}

// 4. The button of Load Direction ----------------------------------------------------------------------------------

function addRefreshButton(/** @type {any} */ node) {
  const file = node.widgets?.find((/** @type {any} */ widget) => widget.name === "file");
  if (file && file.value === undefined) file.value = ""; // when the list is empty, the classic canvas would show "undefined"
  if (typeof app.refreshComboInNodes !== "function") return;
  const refresh = async () => {
    await app.refreshComboInNodes?.();
    if (file && !file.value) file.value = file.options?.values?.[0] ?? ""; // as every list starts with its first entry
  };
  const button = node.addWidget("button", "Refresh files", null, refresh, { serialize: false });
  if (!button) return;
  button.label = t("Refresh files");
  button.serialize = false; // no value of its own in a saved graph
}

app.registerExtension({
  name: "LatentDirections",
  setup() {
    checkBeforeQueueing();
    showErrors();
    showResults();
  },
  nodeCreated(/** @type {any} */ node) {
    if (node.comfyClass === `${PREFIX}LoadDirection`) addRefreshButton(node);
    if (node.comfyClass === `${PREFIX}EditReport`) node.size[0] = Math.max(node.size[0], 320); // room for sentences
  },
});
