// The rows of Slider Board: words, strength, what is kept, on or off. The widget `board` holds them as JSON, which is what
// is saved and queued (docs/slider_board.md); these rows are drawn from it and write it. Nothing is queued.

import { app } from "../../scripts/app.js";
import { after, is, isLinked, widgetOf } from "./graph.js";
import { element, setAll, setOne, signed } from "./panel.js";
import { t } from "./words.js";

/** @typedef {{words: string, strength: number, keep: string, on: boolean}} Row */

const VERSION = 1, MOST = 8, LOWEST = -3, HIGHEST = 3, STEP = 0.05; // as in nodes/slider_rows.py
const ROW = 30, KEEP = 62, REST = 66; // pixels of a row, of its second line, and of all below the rows
const WIDTH = 440; // pixels, at least, that a row needs
const STYLE = `
  :host { display: block; color: var(--input-text, #ddd); font: 12px/1.3 sans-serif; }
  .row, .add { display: flex; gap: 6px; align-items: center; height: ${ROW}px; }
  .row[data-on="false"] .words, .row[data-on="false"] .strength { opacity: 0.5; }
  input, button, textarea { color: inherit; background: var(--comfy-input-bg, #222); font: inherit;
    border: 1px solid var(--border-color, #4e4e4e); border-radius: 4px; box-sizing: border-box; }
  input[type="text"], input[type="number"] { height: 24px; padding: 0 6px; min-width: 0; }
  input[type="checkbox"], input[type="range"] { accent-color: var(--p-primary-color, #60a5fa); margin: 0; flex: none; }
  input[type="checkbox"] { width: 16px; height: 16px; }
  input[type="range"] { flex: 1 1 90px; min-width: 60px; }
  .words { flex: 1.4 1 120px; }
  .number { flex: none; width: 60px; }
  button { flex: none; height: 24px; min-width: 24px; padding: 0 6px; cursor: pointer; }
  button[aria-expanded="true"], button.used { border-color: var(--p-primary-color, #60a5fa); }
  textarea { display: block; width: 100%; height: ${KEEP - 8}px; margin-bottom: 8px; padding: 4px 6px; resize: none; }
  .add input { flex: 1; }
  :focus-visible { outline: 2px solid var(--p-primary-color, #60a5fa); outline-offset: 1px; }
  .status { min-height: 1.4em; padding: 4px 2px 0; }
`;

/** Whether a slider of the JSON has these keys alone, with values that a row can show. */
function isRow(/** @type {any} */ { words, strength = 1, keep = "", on = true, ...others }) {
  const known = typeof words === "string" && typeof strength === "number" && typeof keep === "string" && typeof on === "boolean";
  return known && Object.keys(others).length === 0;
}

/** Rows as the server reads them; null for a text that these rows cannot show. @returns {Row[] | null} */
function rowsOf(/** @type {unknown} */ text) {
  try {
    const { version, sliders } = JSON.parse(String(text));
    if (version !== VERSION || !Array.isArray(sliders) || sliders.length > MOST) return null;
    return sliders.every(isRow) ? sliders.map((row) => ({ strength: 1, keep: "", on: true, ...row })) : null;
  } catch {
    return null;
  }
}

const textOf = (/** @type {Row[]} */ rows) => JSON.stringify({ version: VERSION, sliders: rows });

class Board {
  constructor(/** @type {any} */ node) {
    this.node = node;
    /** @type {Row[] | null} */
    this.rows = [];
    /** @type {Set<number>} numbers of the rows whose second line is open */
    this.open = new Set();
    this.host = document.createElement("div");
    this.root = this.host.attachShadow({ mode: "open" }); // its styles and those of the page keep apart
    this.list = element("div", { role: "group", "aria-label": t("Sliders") });
    this.words = element("input", { type: "text", placeholder: t("What to change, such as: smiling"), "aria-label": t("Words of a new slider") });
    const add = element("button", { type: "button" }, t("Add slider"));
    this.adding = element("div", { class: "add" }, this.words, add);
    this.status = element("div", { class: "status", role: "status" });
    this.root.append(element("style", {}, STYLE), this.list, this.adding, this.status);
    add.addEventListener("click", () => this.add());
    this.words.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
      if (event.key === "Enter" && !event.isComposing) this.add();
    });
    // The page's own shortcuts are for the canvas, not for a field that has the focus.
    this.host.addEventListener("keydown", (event) => {
      if (event.key !== "Tab" && !((event.ctrlKey || event.metaKey) && event.key === "Enter")) event.stopPropagation();
    });
    const height = () => this.height();
    const options = { serialize: false, hideOnZoom: false, getMinHeight: height, getMaxHeight: height };
    const widget = node.addDOMWidget("sliders", "latent_directions_sliders", this.host, options);
    widget.serialize = false; // no value of its own in a saved graph
    const json = widgetOf(node, "board");
    if (json) {
      json.options = { ...json.options, hidden: true };
      after(json, "callback", () => this.read());
    }
    after(node, "onConfigure", () => this.read());
    after(node, "onConnectionsChange", () => queueMicrotask(() => this.read()));
    this.read();
  }

  /** Pixels of all of it. */
  height() {
    return (this.rows?.length ?? 0) * ROW + this.open.size * KEEP + REST;
  }

  /** Draw the rows that the widget holds, unless they are drawn already. */
  read() {
    const linked = isLinked(this.node, "board"), rows = linked ? [] : rowsOf(widgetOf(this.node, "board")?.value);
    this.adding.style.display = linked || !rows ? "none" : "";
    this.status.textContent = linked ? t("The sliders come from a link.") : "";
    if (!rows) this.refuse();
    else if (this.rows && this.list.childElementCount && textOf(rows) === textOf(this.rows)) return;
    this.rows = rows;
    if (rows) this.draw();
  }

  /** Say that the text of the widget is no board, and offer to begin again. */
  refuse() {
    const again = element("button", { type: "button" }, t("Start with an empty board"));
    again.addEventListener("click", () => {
      this.rows = [];
      this.write();
      this.draw();
      this.read();
    });
    this.list.replaceChildren(again);
    this.status.textContent = t("'board' is not the JSON of a slider board that this version can show. It is kept as it is.");
    this.fit();
  }

  draw() {
    const rows = this.rows ?? [];
    this.open = new Set([...this.open].filter((number) => number < rows.length));
    this.list.replaceChildren(...rows.flatMap((row, number) => this.drawn(row, number)));
    this.fit();
  }

  /** A row and, where it is open, the line below it. */
  drawn(/** @type {Row} */ row, /** @type {number} */ number) {
    const on = element("input", { type: "checkbox", title: t("On or off"), "aria-label": t("On: {words}", row) });
    const words = element("input", { class: "words", type: "text", title: row.words, "aria-label": t("Words of slider {number}", { number: number + 1 }) });
    const limits = { min: String(LOWEST), max: String(HIGHEST), step: String(STEP) };
    const range = element("input", { class: "strength", type: "range", ...limits, "aria-label": t("Strength: {words}", row) });
    const exact = element("input", { class: "strength number", type: "number", ...limits, "aria-label": t("Strength as a number: {words}", row) });
    const keep = element("button", { type: "button", title: t("What must not change along"), "aria-expanded": String(this.open.has(number)) }, t("keep"));
    const gone = element("button", { type: "button", title: t("Remove this slider"), "aria-label": t("Remove: {words}", row) }, "×");
    const line = element("div", { class: "row", "data-on": String(row.on) }, on, words, range, exact, keep, gone);
    on.checked = row.on;
    words.value = row.words;
    range.value = exact.value = String(row.strength);
    keep.classList.toggle("used", row.keep.trim() !== "");
    range.setAttribute("aria-valuetext", signed(row.strength));

    on.addEventListener("change", () => {
      line.dataset.on = String((row.on = on.checked));
      this.write();
    });
    words.addEventListener("change", () => {
      const text = words.value.trim();
      if (!text) words.value = row.words; // an empty row would be refused; the button removes it
      else row.words = text;
      this.write();
      this.draw();
    });
    const move = (/** @type {number} */ strength) => {
      row.strength = Math.max(LOWEST, Math.min(HIGHEST, Number(strength.toFixed(4))));
      range.setAttribute("aria-valuetext", signed(row.strength));
    };
    range.addEventListener("input", () => {
      move(Number(range.value));
      exact.value = String(row.strength);
      setOne(this.node, "board", textOf(this.rows ?? []));
    });
    range.addEventListener("change", () => this.write());
    exact.addEventListener("change", () => {
      if (exact.value !== "" && Number.isFinite(Number(exact.value))) move(Number(exact.value));
      range.value = exact.value = String(row.strength);
      this.write();
    });
    keep.addEventListener("click", () => {
      if (!this.open.delete(number)) this.open.add(number);
      this.draw();
      this.list.querySelector(this.open.has(number) ? `textarea[data-row="${number}"]` : `[data-keep="${number}"]`)?.focus();
    });
    keep.dataset.keep = String(number);
    gone.addEventListener("click", () => {
      this.rows?.splice(number, 1);
      this.open = new Set([...this.open].filter((one) => one !== number).map((one) => (one > number ? one - 1 : one)));
      this.write();
      this.draw();
      this.words.focus();
    });
    return this.open.has(number) ? [line, this.keepLine(row, number, keep)] : [line];
  }

  keepLine(/** @type {Row} */ row, /** @type {number} */ number, /** @type {HTMLElement} */ button) {
    const area = element("textarea", {
      "data-row": String(number), "aria-label": t("What must not change along with: {words}", row),
      placeholder: t("keep: one pair a line, with | without, such as: with glasses | without glasses"),
    });
    area.value = row.keep;
    area.addEventListener("change", () => {
      row.keep = area.value;
      button.classList.toggle("used", row.keep.trim() !== "");
      this.write();
    });
    return area;
  }

  add() {
    const words = this.words.value.trim();
    if (!words || !this.rows) return;
    if (this.rows.length >= MOST) {
      this.status.textContent = t("A board has at most {most} sliders. Connect its 'inversion' to a second Slider Board.", { most: MOST });
      return;
    }
    this.rows.push({ words, strength: 1, keep: "", on: true });
    this.words.value = "";
    this.write();
    this.draw();
    this.status.textContent = t("{words} is added. Run to see it.", { words });
  }

  /** Keep the rows in the widget, as one step that can be undone. */
  write() {
    setAll([this.node], "board", textOf(this.rows ?? []));
  }

  /** Make the node as high as the rows need. */
  fit() {
    const { node } = this, [width, height] = node.computeSize();
    node.setSize([Math.max(node.size[0], width, WIDTH), height]);
    node.setDirtyCanvas?.(true, true);
  }
}

app.registerExtension({
  name: "LatentDirections.SliderBoard",
  nodeCreated(/** @type {any} */ node) {
    if (is(node, "SliderBoard") && typeof node.addDOMWidget === "function") new Board(node);
  },
});
