// The rows of Slider Board: words, strength, what is kept, on or off. The widget `board` holds them as JSON, which is what
// is saved and queued (docs/slider_board.md); these rows are drawn from it and write it. Nothing is queued.

import { app } from "../../scripts/app.js";
import "./shown_inputs.js"; // whose button comes before the rows, whichever module is loaded first
import { after, is, isLinked, widgetOf } from "./graph.js";
import { Panel, asOneStep, element, setOne, signed } from "./panel.js";
import { t } from "./words.js";

/** @typedef {{words: string, strength: number, keep: string, on: boolean}} Row */

const VERSION = 1, MOST = 8, LOWEST = -3, HIGHEST = 3, STEP = 0.05; // as in nodes/slider_rows.py
const ROW = 30, KEEP = 62, REST = 66; // pixels of a row, of its second line, and of all below the rows
const WIDTH = 440; // pixels, at least, that a row needs
const STYLE = `
  .row, .add { display: flex; gap: 6px; align-items: center; height: ${ROW}px; }
  .row[data-on="false"] .words, .row[data-on="false"] .strength { opacity: 0.5; }
  input[type="text"], input[type="number"] { height: 24px; padding: 0 6px; }
  input[type="checkbox"] { flex: none; width: 16px; height: 16px; }
  input[type="range"] { flex: 1 1 90px; min-width: 60px; }
  .words { flex: 1.4 1 120px; }
  .number { flex: none; width: 60px; }
  button { height: 24px; min-width: 24px; padding: 0 6px; }
  button[aria-expanded="true"], button.used { border-color: var(--p-primary-color, #60a5fa); }
  textarea { display: block; width: 100%; height: ${KEEP - 8}px; margin-bottom: 8px; padding: 4px 6px; resize: none; }
  .add input { flex: 1; }
`;

/** Whether a slider of the JSON has these keys alone, with values that a row can show. */
function isRow(/** @type {any} */ { words, strength = 1, keep = "", on = true, ...others }) {
  const known = typeof words === "string" && typeof strength === "number" && typeof keep === "string" && typeof on === "boolean";
  return known && Object.keys(others).length === 0;
}

/** Rows as the server reads them; null for a text that these rows cannot show. @returns {Row[] | null} */
export function rowsOf(/** @type {unknown} */ text) {
  try {
    const { version, sliders } = JSON.parse(String(text));
    if (version !== VERSION || !Array.isArray(sliders) || sliders.length > MOST) return null;
    return sliders.every(isRow) ? sliders.map((row) => ({ strength: 1, keep: "", on: true, ...row })) : null;
  } catch {
    return null;
  }
}

export const textOf = (/** @type {Row[]} */ rows) => JSON.stringify({ version: VERSION, sliders: rows });

/** What strength 1 of a row shows, as the server names its direction. */
export const nameOf = (/** @type {Row} */ { words }) => words.slice(words.lastIndexOf("|") + 1).trim();

/** All of a board but its strengths. */
const withoutStrengths = (/** @type {Row[]} */ rows) => textOf(rows.map((row) => ({ ...row, strength: 0 })));

const limited = (/** @type {number} */ strength) => Math.max(LOWEST, Math.min(HIGHEST, Number(strength.toFixed(4))));

class Board extends Panel {
  constructor(/** @type {any} */ node) {
    super(node, "sliders", STYLE);
    /** @type {Row[] | null} */
    this.rows = [];
    /** What is drawn: the text of the rows, or why there are none. */
    this.drawn = "";
    /** @type {Set<number>} numbers of the rows whose second line is open */
    this.open = new Set();
    this.list = element("div", { role: "group", "aria-label": t("Sliders") });
    this.words = element("input", { type: "text", placeholder: t("What to change, such as: smiling"), "aria-label": t("Words of a new slider") });
    const add = element("button", { type: "button" }, t("Add slider"));
    this.adding = element("div", { class: "add" }, this.words, add);
    this.root.append(this.list, this.adding, this.status);
    add.addEventListener("click", () => this.add());
    this.words.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
      if (event.key === "Enter" && !event.isComposing) this.add();
    });
    const json = widgetOf(node, "board");
    if (json) json.options.hidden = true; // both renderers read it; Nodes 2.0 does not see another object in its place
    after(node, "onConfigure", () => this.refresh());
    this.refresh();
  }

  height() {
    return (this.rows?.length ?? 0) * ROW + this.open.size * KEEP + REST;
  }

  /** Draw the rows that the widget holds, as far as they are not drawn already. */
  refresh() {
    super.refresh();
    const linked = isLinked(this.node, "board"), rows = linked ? [] : rowsOf(widgetOf(this.node, "board")?.value);
    const toDraw = linked ? "linked" : rows ? textOf(rows) : "refused";
    if (toDraw === this.drawn) return;
    const before = this.rows, areDrawn = this.drawn.startsWith("{");
    this.drawn = toDraw;
    if (rows && before && areDrawn && !linked && withoutStrengths(rows) === withoutStrengths(before)) {
      rows.forEach(({ strength }, number) => (before[number].strength = strength));
      this.drawStrengths();
      return;
    }
    this.rows = rows;
    this.adding.style.display = linked || !rows ? "none" : "";
    this.say(linked ? t("The sliders come from the node connected to 'board'. Change them there, or remove the link.") : "");
    if (rows) this.draw();
    else this.refuse();
  }

  /** Say that the text of the widget is no board, and offer to begin again. */
  refuse() {
    const again = element("button", { type: "button" }, t("Start with an empty board"));
    again.addEventListener("click", () => asOneStep(() => setOne(this.node, "board", textOf([]))));
    this.list.replaceChildren(again);
    this.say(t("These sliders cannot be shown: 'board' is damaged or from a newer version. Update the pack, or start with an empty board."));
    this.fit();
  }

  draw() {
    const rows = this.rows ?? [];
    this.open = new Set([...this.open].filter((number) => number < rows.length));
    this.list.replaceChildren(...rows.flatMap((row, number) => this.lines(row, number)));
    this.drawStrengths();
    this.fit();
  }

  /** Write the strengths into the rows that are drawn. */
  drawStrengths() {
    [...this.list.querySelectorAll(".row")].forEach((line, number) => {
      const strength = this.rows?.[number].strength ?? 0;
      for (const field of line.querySelectorAll(".strength")) field.value = String(strength);
      line.querySelector(".range").setAttribute("aria-valuetext", signed(strength));
    });
  }

  /** A row and, where it is open, the line below it. */
  lines(/** @type {Row} */ row, /** @type {number} */ number) {
    const on = element("input", { type: "checkbox", title: t("On or off") });
    const words = element("input", { class: "words", type: "text", "aria-label": t("Words of slider {number}", { number: number + 1 }) });
    const limits = { min: String(LOWEST), max: String(HIGHEST), step: String(STEP) };
    const range = element("input", { class: "strength range", type: "range", ...limits });
    const exact = element("input", { class: "strength number", type: "number", ...limits });
    const keep = element("button", { type: "button", title: t("What must stay as it is"), "aria-expanded": String(this.open.has(number)) }, t("keep"));
    const gone = element("button", { type: "button", title: t("Remove this slider") }, "×");
    const line = element("div", { class: "row", "data-on": String(row.on) }, on, words, range, exact, keep, gone);
    const area = this.keepArea(row, number, keep);
    const showWords = () => {
      words.value = words.title = row.words;
      on.ariaLabel = t("On: {words}", row);
      range.ariaLabel = t("Strength: {words}", row);
      exact.ariaLabel = t("Strength as a number: {words}", row);
      gone.ariaLabel = t("Remove: {words}", row);
      area.ariaLabel = t("What must stay as it is with: {words}", row);
    };
    showWords();
    on.checked = row.on;
    keep.classList.toggle("used", row.keep.trim() !== "");

    on.addEventListener("change", () => {
      line.dataset.on = String((row.on = on.checked));
      this.write();
    });
    words.addEventListener("change", () => {
      row.words = words.value.trim() || row.words; // an empty row would be refused; the button removes it
      showWords(); // drawn anew, the row would lose the focus
      this.write();
    });
    range.addEventListener("input", () => {
      row.strength = limited(Number(range.value));
      this.drawStrengths();
      this.set();
    });
    range.addEventListener("change", () => this.write());
    exact.addEventListener("change", () => {
      if (exact.value !== "" && Number.isFinite(Number(exact.value))) row.strength = limited(Number(exact.value));
      this.drawStrengths();
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
    return this.open.has(number) ? [line, area] : [line];
  }

  /** The field below a row for what must stay as it is. */
  keepArea(/** @type {Row} */ row, /** @type {number} */ number, /** @type {HTMLElement} */ button) {
    const area = element("textarea", {
      "data-row": String(number),
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
    if (!this.rows) return;
    if (!words) {
      this.say(t("Type first what to change, such as: smiling"));
      return;
    }
    if (this.rows.length >= MOST) {
      this.say(t("A board has at most {most} sliders. Connect its 'inversion' to a second Slider Board.", { most: MOST }));
      return;
    }
    this.rows.push({ words, strength: 1, keep: "", on: true });
    this.words.value = "";
    this.write();
    this.draw();
    this.say(t("{words} is added. Press Run to see it.", { words }));
  }

  /** Keep the rows in the widget. */
  set() {
    this.drawn = textOf(this.rows ?? []);
    setOne(this.node, "board", this.drawn);
  }

  /** Keep the rows in the widget, as one step that can be undone. */
  write() {
    asOneStep(() => this.set());
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
