// A canvas that shows the newest picture, sharp at the screen's own resolution, interpolated or in its true pixels.

const LARGEST = 1280; // pixels of the canvas: finer costs time and shows nothing more

export class Picture {
  #canvas;
  #context;
  #bitmap = null;
  #smooth = true;

  constructor(canvas) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d");
    new ResizeObserver(() => this.#fit()).observe(canvas);
  }

  set smooth(on) {
    this.#smooth = on;
    this.#draw();
  }

  /** Show a decoded picture, which is now this canvas's own. */
  show(bitmap) {
    this.#bitmap?.close();
    this.#bitmap = bitmap;
    this.#draw();
  }

  clear() {
    this.#bitmap?.close();
    this.#bitmap = null;
    this.#context.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
  }

  #fit() {
    const { clientWidth, clientHeight } = this.#canvas;
    const scale = Math.min(devicePixelRatio, LARGEST / Math.max(clientWidth, clientHeight, 1));
    const width = Math.max(1, Math.round(clientWidth * scale));
    const height = Math.max(1, Math.round(clientHeight * scale));
    if (this.#canvas.width === width && this.#canvas.height === height) return;
    this.#canvas.width = width;
    this.#canvas.height = height;
    this.#draw();
  }

  #draw() {
    if (!this.#bitmap) return;
    this.#context.imageSmoothingEnabled = this.#smooth;
    this.#context.imageSmoothingQuality = "high"; // bicubic, where bilinear would show its diamonds
    this.#context.drawImage(this.#bitmap, 0, 0, this.#canvas.width, this.#canvas.height);
  }
}
