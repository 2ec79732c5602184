// Where a page names an ONNX file of the site, link to it and to Netron, by the address from which the page was opened.
"use strict";

function link(address, text) {
  const anchor = document.createElement("a");
  anchor.href = address;
  anchor.textContent = text;
  return anchor;
}

for (const place of document.querySelectorAll("[data-onnx]")) {
  const file = new URL(place.dataset.onnx, document.baseURI);
  const here = /^(localhost|127\..*|\[::1\]|.*\.local)$/.test(file.hostname);
  const seen = file.protocol === "https:" && !here;
  place.replaceChildren(link(file.href, file.pathname.split("/").pop()), ": ");
  if (seen) {
    place.append(link(`https://netron.app/?url=${encodeURIComponent(file.href)}`, "open it in Netron"));
  } else {
    place.append(
      "this page has no public https address, so Netron cannot fetch the file; download it, and drop it on ",
      link("https://netron.app", "netron.app"),
    );
  }
}
