// What the page shows. Names come from networks and files of strangers: they become text, never markup.

export const $ = (name) => document.getElementById(name);

/** Make an element; what it says is text. */
export function element(tag, { text, className, ...properties } = {}, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  Object.assign(made, properties);
  made.append(...children);
  return made;
}

export function say(text, trouble = false) {
  $("status").textContent = text;
  $("status").classList.toggle("trouble", trouble);
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;

function bar(name, share, shown) {
  const fill = element("span", { className: "fill" });
  fill.style.width = `${100 * Math.min(Math.max(share, 0), 1)}%`;
  return [
    element("span", { className: "name", text: name, title: name }),
    element("span", { className: "track", ariaHidden: "true" }, fill),
    element("span", { className: "share", text: shown }),
  ];
}

/**
 * Show an answer.
 *
 * classes: [{label, probability}], the most probable first. branches: [{label, probability}] or null.
 * facts: [[what, how much]]. notes: sentences.
 */
export function show({ classes, branches, facts, notes }) {
  $("answer").hidden = false;
  $("top").textContent = classes[0].label;
  $("bars").replaceChildren(
    ...classes.map(({ label, probability }) => element("li", {}, ...bar(label, probability, percent(probability)))),
  );
  $("notes").replaceChildren(...(notes ?? []).map((text) => element("li", { text })));
  $("members").hidden = !branches;
  $("members").querySelector("ul").replaceChildren(
    ...(branches ?? []).map(({ label, probability }) =>
      element(
        "li",
        { text: label, className: label === classes[0].label ? "" : "other" },
        ...(probability === undefined ? [] : [element("small", { text: percent(probability) })]),
      ),
    ),
  );
  $("facts").replaceChildren(
    ...facts.flatMap(([what, value]) => [element("dt", { text: what }), element("dd", { text: value })]),
  );
}

/** Draw a picture into a canvas, no larger than `side`. */
export function drawn(canvas, bitmap, side) {
  const scale = Math.min(1, side / Math.max(bitmap.width, bitmap.height));
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  canvas.classList.toggle("small", Math.max(bitmap.width, bitmap.height) < 128);
  canvas.hidden = false;
}

/** Doubt in words, from what a file or a service gives; what it does not give is left out. */
export function doubts({ entropy, classes, unlike }) {
  const facts = [];
  if (entropy !== undefined) facts.push(["Doubt", `${entropy.toFixed(2)} nats of ${Math.log(classes).toFixed(2)}`]);
  if (unlike !== undefined) facts.push(["Unlike the known pictures", `more than ${Math.round(unlike)} % of them`]);
  return facts;
}

export const UNLIKE = 99; // the percentile from which the command line says so, too
export const UNLIKE_NOTE = "This is not like the pictures that the network was trained on: do not trust its answer.";
