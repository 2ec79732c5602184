// The static page: the network runs in this browser.

import { Engine } from "./engine.js";
import { Page } from "./page.js";
import { $, UNLIKE, UNLIKE_NOTE, doubts, element, say } from "./show.js";

const SHOWN = 5;
let [site, opened] = [null, null];

function classesOf(network, probabilities) {
  const order = probabilities.map((_, index) => index).sort((a, b) => probabilities[b] - probabilities[a] || a - b);
  return order.slice(0, SHOWN).map((index) => ({ label: network.labels[index], probability: probabilities[index] }));
}

async function classify(blob, bitmap) {
  const engine = await opened;
  const network = engine.network;
  const { probabilities, branches, entropy, unlike, took } = await engine.classify(bitmap);
  const classes = classesOf(network, probabilities);
  const facts = doubts({ entropy, unlike, classes: network.labels.length });
  if (branches) {
    const same = branches.filter(({ index }) => network.labels[index] === classes[0].label).length;
    facts.push(["Branches that say the same", `${same} of ${branches.length}`]);
  }
  facts.push(["Time", `${took < 10 ? took.toFixed(1) : took.toFixed(0)} ms`], ["Runs on", engine.word], ...engine.note);
  return {
    classes,
    branches: branches?.map(({ index, probability }) => ({ label: network.labels[index], probability })) ?? null,
    facts,
    notes: unlike >= UNLIKE ? [UNLIKE_NOTE] : [],
  };
}

/** Open one network of the site; the last one is let go. */
function choose(index) {
  const network = site.networks[index];
  const before = opened;
  document.title = `${network.name} · ccnn-zoo`;
  say(`Loading ${network.name}, ${(network.bytes / 1e6).toFixed(1)} MB …`);
  opened = (async () => {
    const old = await before?.catch(() => null);
    await old?.session.release();
    return Engine.open(network, site.webgpu);
  })();
  opened.then(
    () => say($("answer").hidden ? "Ready." : ""),
    (error) => say(`${network.name} cannot be opened: ${error.message ?? error}`, true),
  );
  $("draw").hidden = !network.digits;
  page.pad.filled = network.digits;
  page.offer(site.examples.filter((example) => example.networks.includes(index)));
  if (!network.digits && !$("pad").hidden) page.turn("preview");
}

const page = new Page(classify);
try {
  site = await (await fetch(new URL("./site.json", import.meta.url))).json();
  $("network").replaceChildren(...site.networks.map(({ name }, value) => element("option", { text: name, value })));
  $("choice").hidden = site.networks.length < 2;
  $("network").addEventListener("change", () => {
    choose(Number($("network").value));
    page.again();
  });
  choose(0);
} catch (error) {
  say(`This page is not whole: ${error.message}`, true);
}
