// What is measured while playing: frames a second and how long things take, from the page's own clock.

import { $, quantile } from "./ui.js";

const RECENT_MS = 2500; // frames a second are those of so long
const RECENT_STEPS = 50; // and the other figures of so many steps
const KEPT = 20_000;

export class Figures {
  drawn = 0; // pictures of steps
  latencies = []; // a step sent -> its first picture drawn, ms
  keyLatencies = []; // a key pressed -> the first picture drawn of a step sent after that, ms
  #times = []; // when pictures of steps were drawn
  #server = []; // [step, queue, decode] ms of the last steps

  /** A picture of a step was drawn. */
  picture(now) {
    this.drawn += 1;
    this.#times.push(now);
    while (now - this.#times[0] > RECENT_MS) this.#times.shift();
  }

  /** It was the step's first. */
  step(step, header, now) {
    if (step) {
      this.latencies.push(now - step.sent);
      for (const pressed of step.pressed) this.keyLatencies.push(now - pressed);
    }
    for (const kept of [this.latencies, this.keyLatencies]) if (kept.length > KEPT) kept.splice(0, KEPT / 2);
    this.#server.push([header.step_ms, header.queue_ms, header.decode_ms]);
    if (this.#server.length > RECENT_STEPS) this.#server.shift();
  }

  /** Frames a second of late; null while there are none. */
  get fps() {
    const times = this.#times;
    if (times.length < 3 || performance.now() - times.at(-1) > 1000) return null;
    return (1000 * (times.length - 1)) / (times.at(-1) - times[0]);
  }

  get server() {
    const [step, queue, decode] = [0, 1, 2].map((k) => quantile(this.#server.map((row) => row[k])));
    return { step, queue, decode };
  }

  /** Write the figures into the page. */
  show(n, fps) {
    const put = (id, text) => {
      if ($(id).textContent !== text) $(id).textContent = text;
    };
    const ms = (value) => (value === null ? "–" : value < 9.95 ? value.toFixed(1) : value.toFixed(0));
    const { step, queue, decode } = this.server;
    put("f-fps", this.fps === null ? "–" : this.fps.toFixed(1));
    put("f-key", ms(quantile(this.keyLatencies.slice(-RECENT_STEPS))));
    put("f-step", ms(quantile(this.latencies.slice(-RECENT_STEPS))));
    put("f-model", ms(step));
    put("f-queue", ms(queue));
    put("f-decode", ms(decode));
    put("f-time", (n / fps).toFixed(1));
  }
}
