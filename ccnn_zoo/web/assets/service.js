// The page of `ccnn serve`: a picture goes to the service, and the page shows what it says.

import { Page } from "./page.js";
import { Refused } from "./pictures.js";
import { $, UNLIKE, UNLIKE_NOTE, doubts, element, say } from "./show.js";

const ROOT = new URL("../", import.meta.url); // of the service: this file is page/service.js
let labels = [];

async function classify(blob) {
  const started = performance.now();
  const headers = { "Content-Type": "application/octet-stream" };
  const answer = await fetch(new URL("classify?top_k=5", ROOT), { method: "POST", body: blob, headers });
  const took = performance.now() - started;
  const said = await answer.json();
  if (!answer.ok) throw new Refused(`${said.error} (${answer.status})`);
  const { predictions, branches, entropy, agreement, ood, prediction_set: set, abstained } = said; // or null
  const facts = doubts({ entropy: entropy ?? undefined, unlike: ood?.percentile, classes: labels.length });
  if (set) facts.push(["One of", set.join(", ")]);
  if (branches) {
    const same = Math.round(agreement * branches.length);
    facts.push(["Branches that say the same", `${same} of ${branches.length}`]);
  }
  facts.push(["Time", `${took.toFixed(0)} ms, there and back`]);
  return {
    classes: predictions,
    branches: branches?.map((label) => ({ label })) ?? null,
    facts,
    notes: [...(ood?.percentile >= UNLIKE ? [UNLIKE_NOTE] : []), ...(abstained ? [`Ask a person: ${abstained}.`] : [])],
  };
}

const page = new Page(classify);
document.querySelector("footer p").append(" ", element("a", { href: new URL("docs", ROOT), text: "What it takes and gives" }));
try {
  const about = await (await fetch(ROOT, { headers: { Accept: "application/json" } })).json();
  labels = about.labels;
  document.title = `${about.model} · ccnn serve`;
  page.pad.filled = 20 / 28;
  $("draw").hidden = labels.join() !== "0,1,2,3,4,5,6,7,8,9";
  say(`Ready: ${about.model}, ${labels.length} classes.`);
} catch (error) {
  say(`The service does not answer: ${error.message}`, true);
}
