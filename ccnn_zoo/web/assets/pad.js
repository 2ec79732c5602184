// A pad to draw on, by mouse, finger or arrow keys. What is drawn becomes a picture as digits are scanned: white ink
// on black, in the middle of a square, of which it takes the share that the network is used to.

const SIDE = 224;
const PEN = 22;
const STEP = 10;

export class Pad {
  /** `finished` is called with a picture's Blob whenever a stroke ends. */
  constructor(canvas, finished) {
    Object.assign(this, { canvas, finished, pen: null, filled: 1, at: [canvas.width / 2, canvas.height / 4] });
    this.context = canvas.getContext("2d", { willReadFrequently: true });
    this.clear();
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.pen = this.place(event);
      this.line(this.pen, this.pen);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!this.pen) return;
      for (const one of event.getCoalescedEvents?.() ?? [event]) {
        const next = this.place(one);
        this.line(this.pen, next);
        this.pen = next;
      }
    });
    for (const end of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(end, () => {
        if (this.pen) this.finish();
        this.pen = null;
      });
    }
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("keyup", (event) => {
      if (event.key.startsWith("Arrow") && !event.shiftKey) this.finish();
    });
  }

  clear() {
    this.context.fillStyle = "#000";
    this.context.fillRect(0, 0, this.canvas.width, this.canvas.height);
  }

  place({ clientX, clientY }) {
    const box = this.canvas.getBoundingClientRect();
    const [x, y] = [(clientX - box.left) / box.width, (clientY - box.top) / box.height];
    return [x * this.canvas.width, y * this.canvas.height];
  }

  line(from, to) {
    Object.assign(this.context, { strokeStyle: "#fff", lineWidth: PEN, lineCap: "round", lineJoin: "round" });
    this.context.beginPath();
    this.context.moveTo(...from);
    this.context.lineTo(...to);
    this.context.stroke();
  }

  key(event) {
    const [x, y] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [];
    if (x === undefined) return;
    event.preventDefault();
    const inside = (value, side) => Math.min(Math.max(value, PEN), side - PEN);
    const { width, height } = this.canvas;
    const next = [inside(this.at[0] + STEP * x, width), inside(this.at[1] + STEP * y, height)];
    if (!event.shiftKey) this.line(this.at, next);
    this.at = next;
  }

  finish() {
    const box = this.ink();
    if (!box) return;
    const square = new OffscreenCanvas(SIDE, SIDE);
    const context = square.getContext("2d");
    context.fillStyle = "#000";
    context.fillRect(0, 0, SIDE, SIDE);
    const scale = (SIDE * this.filled) / Math.max(box.width, box.height);
    const [wide, high] = [box.width * scale, box.height * scale];
    const { left, top, width, height } = box;
    context.drawImage(this.canvas, left, top, width, height, (SIDE - wide) / 2, (SIDE - high) / 2, wide, high);
    square.convertToBlob().then(this.finished);
  }

  /** The rectangle that holds all ink, or null. */
  ink() {
    const { width, height } = this.canvas;
    const { data } = this.context.getImageData(0, 0, width, height);
    let [left, top, right, bottom] = [width, height, -1, -1];
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        if (data[4 * (y * width + x)] < 128) continue;
        [left, right] = [Math.min(left, x), Math.max(right, x)];
        [top, bottom] = [Math.min(top, y), Math.max(bottom, y)];
      }
    }
    return right < 0 ? null : { left, top, width: right - left + 1, height: bottom - top + 1 };
  }
}
