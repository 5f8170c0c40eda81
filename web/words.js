// The words of the page in the language that is set in ComfyUI. The English text is the key, as in gettext.

/** @type {Record<string, string>} English text: text in the language of the page */
const translations = {};

/**
 * A text of the page in its language, with {names} replaced by values.
 * @param {string} english
 * @param {Record<string, unknown>} [values]
 */
export function t(english, values = {}) {
  const text = translations[english] ?? english;
  return text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}
