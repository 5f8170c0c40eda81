// The words of the page in the language that is set there. The English text is the key: what has no translation is shown in
// English. locales/<language>.json has the others, which ComfyUI's server gives out together with those of all packs.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const LANGUAGE = "Comfy.Locale"; // a setting of the page
const OURS = "latentDirections"; // the key of this pack in locales/<language>/main.json
/** @type {Record<string, string>} */
let translations = {};

/** A text in the language of the page, with `values` in the places that the English text has as {name}. */
export function t(/** @type {string} */ text, /** @type {Record<string, unknown>} */ values = {}) {
  return (translations[text] ?? text).replace(/\{(\w+)\}/g, (place, name) => String(values[name] ?? place));
}

async function load(/** @type {unknown} */ language) {
  translations = {};
  if (!language || language === "en") return;
  try {
    const answer = await api.fetchApi("/i18n");
    if (answer.ok) translations = (await answer.json())[String(language)]?.[OURS] ?? {};
  } catch {
    // without an answer the words are English
  }
}

app.registerExtension({
  name: "LatentDirections.Words",
  async init() {
    app.ui?.settings?.addEventListener?.(`${LANGUAGE}.change`, (/** @type {CustomEvent} */ event) => load(event.detail?.value));
    await load(app.extensionManager?.setting?.get?.(LANGUAGE));
  },
});
