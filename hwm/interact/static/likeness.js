// How like the true simulator's pictures the model's still are: curves of the last minute, and figures of now.

import { $ } from "./ui.js";

const SECONDS = 60; // of the world's time that the curves show
const WIDTH = 240; // of the drawing, in its own units
const HEIGHT = 40;
const CURVES = {
  perceptual: { low: 0, high: 2, digits: 2 }, // ranges grow with what is seen
  psnr: { low: 10, high: 25, digits: 1 },
};

export class Likeness {
  #seen = []; // messages of the server, by step
  #fps = 10;

  connected(fps) {
    this.#fps = fps;
    this.clear();
  }

  clear() {
    this.#seen = [];
    this.#show();
  }

  /** The newest message, or null. */
  get last() {
    return this.#seen.at(-1) ?? null;
  }

  /** A message of type "likeness". */
  take(message) {
    this.cut(message.n - 1);
    this.#seen.push(message);
    this.#seen = this.#seen.filter(({ n }) => n > message.n - SECONDS * this.#fps);
    this.#show();
  }

  /** Forget what came after step `n`, to which the world went back. */
  cut(n) {
    this.#seen = this.#seen.filter((one) => one.n <= n);
  }

  #show() {
    $("likeness").hidden = this.#seen.length === 0;
    if (!this.#seen.length) return;
    for (const name of Object.keys(CURVES)) this.#curve(name);
    const { sharpness, liveliness } = this.#seen.at(-1);
    const share = (value) => (value === undefined ? "–" : `${Math.round(100 * value)} %`);
    $("l-sharpness").textContent = share(sharpness);
    $("l-liveliness").textContent = share(liveliness);
  }

  #curve(name) {
    const points = this.#seen.filter((one) => one[name] !== undefined);
    $(`l-${name}-part`).hidden = points.length === 0;
    if (!points.length) return;
    const values = points.map((one) => one[name]);
    const { low, high, digits } = CURVES[name];
    const [least, most] = [Math.min(low, ...values), Math.max(high, ...values)];
    const last = this.#seen.at(-1).n;
    const at = ({ n }) => WIDTH * (1 - (last - n) / (SECONDS * this.#fps));
    const height = (value) => HEIGHT - 2 - ((HEIGHT - 4) * (value - least)) / (most - least);
    const line = points.map((one, i) => `${at(one).toFixed(1)},${height(values[i]).toFixed(1)}`).join(" ");
    $(`l-${name}-line`).setAttribute("points", line);
    $(`l-${name}`).textContent = values.at(-1).toFixed(digits);
  }
}
