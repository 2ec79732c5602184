// Everything by which a picture comes in (drop, paste, file, camera, pad), one after another, and what came of it.

import { Pad } from "./pad.js";
import { Refused, decoded } from "./pictures.js";
import { $, drawn, element, say, show } from "./show.js";

const KEPT = 48; // pictures so far that stay to be looked at again
const CAMERA_PAUSE = 150; // milliseconds between two pictures of the camera

export class Page {
  /** `classify` takes a picture's Blob and its decoded form, and returns what `show` takes. */
  constructor(classify) {
    this.classify = classify;
    this.queue = Promise.resolve();
    this.last = null;
    this.stream = null;
    $("file").addEventListener("change", () => {
      this.addAll($("file").files);
      $("file").value = "";
    });
    addEventListener("paste", (event) => this.addAll(event.clipboardData.files));
    addEventListener("dragover", (event) => {
      event.preventDefault();
      $("stage").classList.add("over");
    });
    addEventListener("dragleave", () => $("stage").classList.remove("over"));
    addEventListener("drop", (event) => {
      event.preventDefault();
      $("stage").classList.remove("over");
      this.addAll(event.dataTransfer.files);
    });
    $("camera").addEventListener("click", () => this.camera());
    $("draw").addEventListener("click", () => this.turn($("pad").hidden ? "pad" : "preview"));
    $("clear").addEventListener("click", () => this.pad.clear());
    this.pad = new Pad($("pad"), (blob) => this.add(blob, "a drawing", "pad"));
  }

  /** Let example pictures be chosen: [{file, name}]. */
  offer(examples) {
    $("examples").hidden = examples.length === 0;
    $("examples").querySelector("ul").replaceChildren(
      ...examples.map(({ file, name }) => {
        const button = element("button", { type: "button" });
        button.append(element("img", { src: file, alt: name, title: name }));
        button.addEventListener("click", async () => this.add(await (await fetch(file)).blob(), name));
        return element("li", {}, button);
      }),
    );
  }

  addAll(files) {
    for (const file of files) this.add(file, file.name);
  }

  /** Put a picture into the queue; it is shown when its turn comes. */
  add(blob, name, view = "preview") {
    this.queue = this.queue.then(() => this.look(blob, name, view));
    return this.queue;
  }

  /** Look at the last picture again, e.g. with another network. */
  again() {
    if (this.last) this.add(...this.last);
  }

  async look(blob, name, view, keep = true) {
    let bitmap = null;
    try {
      bitmap = await decoded(blob);
      if (keep) this.last = [blob, name, view];
      const answer = await this.classify(blob, bitmap);
      if (view !== "video") this.turn(view);
      drawn($("preview"), bitmap, 1024);
      $("preview").hidden = view !== "preview";
      show(answer);
      say("");
      if (keep) this.remember(blob, name, view, bitmap, answer);
    } catch (error) {
      say(error instanceof Refused ? `${name}: ${error.message}` : `${name}: this failed (${error.message})`, true);
    } finally {
      bitmap?.close();
    }
  }

  remember(blob, name, view, bitmap, answer) {
    const button = element("button", { type: "button", title: name });
    const picture = element("canvas", { ariaHidden: "true" });
    drawn(picture, bitmap, 104);
    button.append(picture, element("span", { text: answer.classes[0].label }));
    button.addEventListener("click", () => {
      this.queue = this.queue.then(() => this.look(blob, name, "preview", false));
    });
    const list = $("history").querySelector("ul");
    list.prepend(element("li", {}, button));
    while (list.children.length > KEPT) list.lastChild.remove();
    $("history").hidden = false;
  }

  /** Show the picture, the pad or the camera's picture in the stage. */
  turn(view) {
    for (const name of ["preview", "pad", "video"]) $(name).hidden = name !== view;
    if (view === "preview" && !this.last) $("preview").hidden = true;
    $("hint").hidden = view !== "preview" || Boolean(this.last);
    $("clear").hidden = view !== "pad";
    $("draw").ariaPressed = String(view === "pad");
    $("camera").ariaPressed = String(view === "video");
    if (view !== "video") this.dark();
    if (view === "pad") $("pad").focus();
  }

  dark() {
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    this.stream = null;
  }

  async camera() {
    if (this.stream) return this.turn("preview");
    try {
      if (!navigator.mediaDevices) throw new Error("it gives none to pages without https");
      this.stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    } catch (error) {
      return say(`This browser gives no camera (${error.message || error.name}).`, true);
    }
    this.turn("video");
    $("video").srcObject = this.stream;
    await $("video").play();
    while (this.stream) {
      const frame = new OffscreenCanvas($("video").videoWidth, $("video").videoHeight);
      frame.getContext("2d").drawImage($("video"), 0, 0);
      const blob = await frame.convertToBlob();
      this.queue = this.queue.then(() => this.stream && this.look(blob, "the camera's picture", "video", false));
      await this.queue;
      await new Promise((resolve) => setTimeout(resolve, CAMERA_PAUSE));
    }
  }
}
