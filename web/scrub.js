// The pictures of Slider Strip, which follow a slider: the one under them, and the strength of the slider that the list names:
// `strength` of a node, or a row of the Slider Board that the strip's directions come from.
// These two always say the same. All pictures are decoded when they arrive, so that nothing is loaded while a slider moves.
//
// Pictures belong to the settings of the run that made them, but for the strength that the strip itself moves. The settings
// of a run are taken when it is queued, and compared with what the nodes say later.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { nameOf, rowsOf, textOf } from "./board.js";
import { after, allNodes, executionIdOf, fieldOf, is, locatorOf, nodesUpTo, settingsOf, sourceOf } from "./graph.js";
import { asOneStep, element, named, refreshAll, setOne, signed } from "./panel.js";
import { ResultPanel, addPanels, addressOf, finderOf } from "./result_panel.js";
import { t } from "./words.js";

/** @typedef {{index: number, name: string, frames: import("./result_panel.js").Picture[]}} Strip */
/** @typedef {Record<string, unknown>} Values */
/**
 * `without` takes the strength out of the settings of its node.
 * @typedef {import("./result_panel.js").Target & {read: () => number, write: (strength: number) => void,
 *   without: (settings: Values) => Values}} Slider
 */
/** @typedef {Record<string, Values>} Settings of nodes, by their locators */

const TALLEST = 320; // pixels of the picture
const SAME = 0.005; // strengths that are nearer than that are written the same
const STYLE = `
  .picture { position: relative; }
  canvas { display: block; width: 100%; max-height: ${TALLEST}px; object-fit: contain; border-radius: 4px; }
  [type="range"] { display: block; width: calc(100% - 4px); margin: 6px 2px; }
  .row { display: flex; gap: 8px; align-items: center; padding: 0 2px; }
  :host([data-old]) canvas { opacity: 0.35; }
  .old { position: absolute; inset: auto 0 0; padding: 6px 8px; background: rgb(0 0 0 / 75%); color: #fff; border-radius: 0 0 4px 4px; }
  .old:empty { display: none; }
  output { flex: 1; text-align: center; }
  button { touch-action: none; }
`;

/** What is shown before a run, and where pictures cannot be loaded. @type {Strip} */
const NONE = { index: 0, name: "", frames: [] };

const MOST_KEPT = 100; // runs whose settings are remembered
/** The settings of runs by their ids, of each strip by its execution id. @type {Map<string, Record<string, Settings>>} */
const queued = new Map();
/** The settings that pictures were made with, by the file of the first. @type {Map<string, Settings>} */
const madeWith = new Map();

/** Set an entry of a map, and drop the oldest where there are too many. */
function remember(/** @type {Map<string, any>} */ map, /** @type {string} */ key, /** @type {any} */ value) {
  map.set(key, value);
  if (map.size > MOST_KEPT) map.delete([...map.keys()][0]);
}

/** Give the memory of pictures back. */
const close = (/** @type {ImageBitmap[]} */ bitmaps) => bitmaps.forEach((bitmap) => bitmap.close());

/** The settings of a node and of all before it. @returns {Settings} */
const settingsUpTo = (/** @type {any} */ node) =>
  Object.fromEntries(nodesUpTo(node).map((one) => [locatorOf(one), settingsOf(one)]));

/** The nodes that an encoded picture comes through to a node, the last first. @returns {any[]} */
function chainTo(/** @type {any} */ node) {
  const chain = new Set();
  for (let at = sourceOf(node, "inversion"); at && !chain.has(at.node); at = sourceOf(at.node, "inversion")) chain.add(at.node);
  return [...chain];
}

/** Settings of a Slider Board without the strengths of some rows, by their numbers. @returns {Values} */
function withoutRows(/** @type {Values} */ settings, /** @type {(number: number) => boolean} */ isLeftOut) {
  const rows = rowsOf(settings.board)?.map((row, number) => (isLeftOut(number) ? { ...row, strength: 0 } : row));
  return { ...settings, board: rows ? textOf(rows) : settings.board };
}

/** Do what ComfyUI's own Run button does. */
function queueWorkflow() {
  const commands = app.extensionManager?.command;
  if (commands?.execute) commands.execute("Comfy.QueuePrompt");
  else app.queuePrompt(0);
}

/** Strips that hold pictures. @type {Set<Scrub>} */
const withPictures = new Set();

class Scrub extends ResultPanel {
  constructor(/** @type {any} */ node) {
    super(node, "scrub", t("The slider moves"), STYLE);
    this.strip = this.coming = NONE; // the one whose pictures are shown, and the one whose pictures are loaded
    /** @type {ImageBitmap[]} */
    this.bitmaps = [];
    /** @type {number[] | undefined} */
    this.strengths = undefined;
    /** @type {number | undefined} width of a picture over its height */
    this.aspect = undefined;
    /** @type {number | undefined} the strength that a sentence below is about */
    this.settled = undefined;
    this.before = false;
    this.canvas = element("canvas", { role: "img" });
    this.range = element("input", { type: "range", min: "0", step: "1", "aria-label": t("Strength") });
    this.output = element("output", {});
    this.button = element("button", { type: "button", title: t("Hold it, or the key B, to see the picture before the change") }, t("Before"));
    const run = element("button", { type: "button", title: t("Queue the workflow, as ComfyUI's own Run button does") }, t("Run"));
    run.addEventListener("click", queueWorkflow);
    const row = element("div", { class: "row" }, this.button, this.output, run);
    this.old = element("div", { class: "old", role: "status" });
    this.root.append(element("div", { class: "picture" }, this.canvas, this.old), this.range, row, this.status);
    this.listen();
  }

  listen() {
    after(this.node, "onRemoved", () => this.forget());
    this.range.addEventListener("input", () => this.move(Number(this.range.value)));
    this.range.addEventListener("change", () => this.settle());
    this.host.dataset.captureWheel = "true"; // what ComfyUI leaves to an element with the focus
    this.canvas.addEventListener("mousedown", (/** @type {Event} */ event) => {
      event.preventDefault(); // a press elsewhere than on a field would take the focus away
      this.range.focus();
    });
    this.host.addEventListener("wheel", (event) => {
      if (document.activeElement !== this.host || event.ctrlKey || event.metaKey) return; // it is the canvas's
      event.preventDefault();
      event.stopPropagation();
      this.move(Number(this.range.value) - Math.sign(event.deltaY || event.deltaX));
      clearTimeout(this.settling);
      this.settling = setTimeout(() => this.settle(), 300);
    }, { passive: false });
    const hold = (/** @type {boolean} */ held) => () => this.hold(held);
    this.button.addEventListener("pointerdown", hold(true));
    for (const end of ["pointerup", "pointerleave", "pointercancel", "blur"]) this.button.addEventListener(end, hold(false));
    const isHeld = (/** @type {KeyboardEvent} */ event) =>
      event.key.toLowerCase() === "b" || (event.key === " " && event.composedPath()[0] === this.button);
    this.host.addEventListener("keydown", (event) => isHeld(event) && !event.ctrlKey && !event.metaKey && this.hold(true));
    this.host.addEventListener("keyup", (event) => isHeld(event) && this.hold(false));
  }

  height() {
    return Math.min(TALLEST, (this.node.size[0] - 24) / (this.aspect ?? 1)) + 132;
  }

  async show(/** @type {Strip} */ strip) {
    if (JSON.stringify(strip) === JSON.stringify(this.coming)) return;
    const frames = [...strip.frames].sort((one, other) => one.strength - other.strength);
    this.coming = strip;
    if (!madeWith.has(strip.frames[0].filename)) remember(madeWith, strip.frames[0].filename, settingsUpTo(this.node));
    let bitmaps;
    try {
      bitmaps = await Promise.all(frames.map(async (frame) => {
        const answer = await fetch(addressOf(frame));
        return createImageBitmap(await answer.blob());
      }));
    } catch {
      if (this.coming !== strip) return;
      this.forget();
      this.refresh();
      this.say(t("The server no longer has these pictures. Run again to see them."));
      return;
    }
    if (this.coming !== strip) return close(bitmaps); // another run was faster
    close(this.bitmaps);
    for (const one of withPictures) if (!allNodes().includes(one.node)) one.forget(); // the page does not say that they are gone
    withPictures.add(this);
    [this.strip, this.bitmaps, this.strengths] = [strip, bitmaps, frames.map(({ strength }) => strength)];
    this.aspect = this.bitmaps[0].width / this.bitmaps[0].height;
    [this.canvas.width, this.canvas.height] = [this.bitmaps[0].width, this.bitmaps[0].height];
    this.range.max = String(frames.length - 1);
    this.range.value = String(this.nearest(1));
    this.refresh();
    this.fit();
  }

  /** Show nothing, as before a run. */
  forget() {
    clearTimeout(this.settling);
    withPictures.delete(this);
    close(this.bitmaps);
    [this.strip, this.coming, this.bitmaps, this.strengths] = [NONE, NONE, [], undefined];
    this.canvas.getContext("2d").clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.canvas.removeAttribute("aria-label");
    this.output.textContent = "";
    this.settled = undefined;
  }

  /** The frame whose strength is nearest. */
  nearest(/** @type {number} */ strength) {
    const away = (this.strengths ?? []).map((one) => Math.abs(one - strength));
    return away.indexOf(Math.min(...away));
  }

  /**
   * Sliders of the direction that the strip shows, whose strength can be set; first the one that its runs move.
   * @returns {Slider[]}
   */
  targets() {
    const sliders = super.targets().map(({ key, label, nodes }) => {
      const shown = nodes.filter((node) => this.isShown(node));
      const read = () => Number(fieldOf(shown[0], "strength")?.widget.value);
      const write = (/** @type {number} */ strength) => shown.forEach((node) => setOne(node, "strength", strength));
      const without = (/** @type {Values} */ settings) => ({ ...settings, strength: null });
      return { key, label, nodes: shown, read, write, without };
    });
    const chain = chainTo(this.node).reverse(); // the server moves the last slider of the direction
    const place = (/** @type {Slider} */ { nodes }) => Math.max(...nodes.map((node) => chain.indexOf(node)));
    return [...sliders.filter(({ nodes }) => nodes.length), ...this.rowOfBoard()].sort((one, other) => place(other) - place(one));
  }

  isShown(/** @type {any} */ node) {
    const { index } = settingsOf(node), isSame = index === this.strip.index;
    const sameLink = typeof index === "string" && index === settingsOf(this.node).index;
    return fieldOf(node, "strength") && (isSame || sameLink);
  }

  /**
   * Where the directions come from a Slider Board: its row that the strip shows.
   * @returns {Slider[]}
   */
  rowOfBoard() {
    const board = finderOf(this.node)?.node;
    const rows = board && is(board, "SliderBoard") ? rowsOf(fieldOf(board, "board")?.widget.value) : null;
    if (!rows) return [];
    const row = rows.filter(({ on }) => on)[this.strip.index];
    if (!row || nameOf(row) !== this.strip.name) return [];
    const label = t("{words} on {board}", { words: nameOf(row), board: named([board]) });
    const write = (/** @type {number} */ strength) => {
      row.strength = strength;
      setOne(board, "board", textOf(rows));
    };
    const without = (/** @type {Values} */ settings) => withoutRows(settings, (number) => number === rows.indexOf(row));
    return [{ key: locatorOf(board), label, nodes: [board], read: () => row.strength, write, without }];
  }

  /**
   * Nodes whose settings have changed since the run that made the pictures, but for the strength that the strip moves.
   * @returns {any[]}
   */
  changed() {
    const then = madeWith.get(this.strip.frames[0]?.filename), finder = sourceOf(this.node, "directions")?.node;
    if (!then) return [];
    const chain = chainTo(this.node);
    const ours = this.targets().flatMap(({ nodes, without }) => nodes.map((node) => ({ node, without })));
    // The server moves the last slider of exactly this direction, not one whose direction was prepared in between.
    const isMoved = (/** @type {any} */ node) => node === finder || sourceOf(node, "directions")?.node === finder;
    const moved = chain.filter(isMoved).map((node) => ours.find((one) => one.node === node)).find(Boolean);
    const before = nodesUpTo(this.node);
    const givesOnlyDirections = (/** @type {any} */ board) => !before.some((reader) => (reader.inputs ?? []).some((/** @type {any} */ { name }) => {
      const source = sourceOf(reader, name);
      return source !== null && source.node === board && board.outputs[source.slot].name !== "directions";
    }));
    return before.filter((node) => {
      const isApart = node !== moved?.node && is(node, "SliderBoard") && givesOnlyDirections(node); // whatever its strengths
      const text = (/** @type {Values} */ settings) => {
        if (node === moved?.node) return JSON.stringify(moved?.without(settings));
        return JSON.stringify(isApart ? withoutRows(settings, () => true) : settings);
      };
      return text(settingsOf(node)) !== text(then[locatorOf(node)] ?? {});
    });
  }

  /** The sliders that the list names. @returns {Slider[]} */
  sliders() {
    return /** @type {Slider[]} */ (this.chosen());
  }

  /** Go to a frame, and with it the sliders. */
  move(/** @type {number} */ frame) {
    if (!this.strengths) return;
    const at = Math.max(0, Math.min(this.strengths.length - 1, frame));
    this.range.value = String(at);
    for (const { write } of this.sliders()) write(this.strengths[at]);
    this.draw(this.strengths[at]);
  }

  /** Once a movement has ended: make it one step that can be undone, and say what it has done. */
  settle() {
    if (!this.strengths || !allNodes().includes(this.node)) return;
    const sliders = this.sliders(), strength = this.strengths[Number(this.range.value)];
    asOneStep(() => sliders.forEach(({ write }) => write(strength)));
    this.settled = strength;
    const values = { strength: signed(strength), sliders: sliders.map(({ label }) => label).join(", ") };
    if (sliders.length) this.say(t("Strength {strength} is set for {sliders}. Press Run to sample this picture.", values));
    else this.sayNothingToSet(t("No slider of this direction is there to set. Connect the directions to a Direction Slider."));
  }

  hold(/** @type {boolean} */ held) {
    if (held === this.before) return;
    this.before = held;
    this.refresh();
  }

  /** Draw the frame at the range, and write the strength that is meant. */
  draw(/** @type {number} */ strength) {
    if (!this.strengths) return;
    if (strength !== this.settled) this.say("");
    const frame = this.before ? this.nearest(0) : Number(this.range.value), seen = this.strengths[frame];
    this.canvas.getContext("2d").drawImage(this.bitmaps[frame], 0, 0);
    const values = { strength: signed(strength), seen: signed(seen) }, isSeen = this.before || Math.abs(seen - strength) < SAME;
    const text = isSeen ? values.seen : t("{strength} (picture at {seen})", values);
    this.output.textContent = text;
    this.range.setAttribute("aria-valuetext", t("Strength {text}", { text }));
    const label = this.old.textContent ? t("The picture at strength {seen}, from before a change", values) : t("The picture at strength {seen}", values);
    this.canvas.setAttribute("aria-label", label);
  }

  /** Say and show where the pictures are from before a change. */
  showAge() {
    const changed = this.changed(), nodes = named(changed);
    const sentence = changed.length ? t("These pictures are from before a change in {nodes}. Press Run to see it.", { nodes }) : "";
    if (this.old.textContent !== sentence) this.old.textContent = sentence;
    this.host.toggleAttribute("data-old", changed.length > 0);
  }

  /** Follow the slider that the list names. */
  refresh() {
    super.refresh();
    this.showAge();
    if (!this.strengths) return;
    const strength = this.sliders()[0]?.read() ?? this.strengths[Number(this.range.value)];
    this.range.value = String(this.nearest(strength));
    this.draw(strength);
  }
}

addPanels("SliderStrip", "scrub", Scrub);

app.registerExtension({
  name: "LatentDirections.SettingsOfStrips",
  setup() {
    const { queuePrompt } = api;
    if (typeof queuePrompt !== "function") return;
    let answered = Promise.resolve();
    api.queuePrompt = function (/** @type {any[]} */ ...values) {
      const here = allNodes().filter((node) => is(node, "SliderStrip"));
      const settings = Object.fromEntries(here.map((node) => [executionIdOf(node), settingsUpTo(node)]));
      const answer = queuePrompt.apply(this, values);
      answered = answer.then(({ prompt_id }) => remember(queued, prompt_id, settings), () => {});
      return answer;
    };
    api.addEventListener("executed", async ({ detail }) => {
      const [text] = detail?.output?.scrub ?? [];
      if (typeof text !== "string") return;
      await answered; // the first results can be faster than the answer that names the run
      const settings = queued.get(detail.prompt_id)?.[String(detail.display_node ?? detail.node)];
      if (settings) remember(madeWith, JSON.parse(text).frames[0].filename, settings);
      refreshAll();
    });
  },
});
