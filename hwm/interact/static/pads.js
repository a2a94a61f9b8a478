// Sticks: those of a gamepad, and two on the screen for fingers.

import { $, el } from "./ui.js";

const DEAD = 0.15; // of a stick's way: rest
const PAD_AXES = [
  [0, "left", "right"],
  [1, "forward", "backward"],
  [2, "waist-left", "waist-right"],
  [3, "look-up", "look-down"],
  [0, "less-0", "more-0"],
  [1, "more-1", "less-1"],
  [2, "less-2", "more-2"],
  [3, "more-3", "less-3"],
];
const PAD_HELD = { 2: "left-hand", 1: "right-hand", 4: "left-arm-up", 6: "left-arm-down", 5: "right-arm-up", 7: "right-arm-down", 12: "stand", 13: "squat" };
const PAD_PAGE = { 0: "home", 3: "undo", 8: "reset", 9: "pause" };
const SECOND_STICK = {
  Look: ["waist-left", "waist-right", "look-up", "look-down"],
  "Left arm": [null, null, "left-arm-up", "left-arm-down"],
  "Right arm": [null, null, "right-arm-up", "right-arm-down"],
  Height: [null, null, "stand", "squat"],
};
const FIRST_STICK = ["left", "right", "forward", "backward"];

const beyondRest = (value) => (Math.abs(value) < DEAD ? 0 : (Math.abs(value) - DEAD) / (1 - DEAD));

/** How strongly the two ends of an axis are pressed, given where it is from -1 to 1. */
const ends = (value) => [value < 0 ? beyondRest(value) : 0, value > 0 ? beyondRest(value) : 0];

export class Pads {
  #command = null;
  #on;
  #down = new Set(); // page buttons of the gamepad that are down
  #polling = false;

  /** Calls `on.moved(time pressed or null)` and `on.page(id)`, as the keyboard does. */
  constructor(on) {
    this.#on = on;
    addEventListener("gamepadconnected", () => this.#poll());
    new Stick($("stick-one"), (x, y) => this.#tilt(FIRST_STICK, x, y, "stick one"));
    new Stick($("stick-two"), (x, y) => this.#tilt(SECOND_STICK[this.#second], x, y, "stick two"));
    $("stick-use").addEventListener("change", () => this.#command.release("stick two"));
    for (const button of $("sticks").querySelectorAll("button[data-move]")) {
      const press = (strength, time) => this.#press(button.dataset.move, "stick button", strength, time);
      button.addEventListener("pointerdown", (event) => press(1, event.timeStamp));
      for (const end of ["pointerup", "pointercancel", "pointerleave"]) button.addEventListener(end, () => press(0, null));
    }
    const show = () => document.documentElement.classList.add("touch");
    if (matchMedia("(pointer: coarse)").matches) show();
    else addEventListener("touchstart", show, { once: true, passive: true });
  }

  build(command) {
    this.#command = command;
    const known = new Set(command.moves.map((move) => move.id));
    $("sticks").hidden = ![FIRST_STICK, ...Object.values(SECOND_STICK)].flat().some((id) => known.has(id));
    const uses = Object.entries(SECOND_STICK).filter(([, moves]) => moves.some((id) => known.has(id)));
    $("stick-use").replaceChildren(...uses.map(([title], i) =>
      el("label", {}, el("input", { type: "radio", name: "stick-use", value: title, checked: i === 0 }), el("span", {}, title))));
  }

  get #second() {
    return $("stick-use").querySelector("input:checked").value;
  }

  #press(id, source, strength, time) {
    if (id && this.#command?.press(id, source, strength)) this.#on.moved(strength ? time : null);
  }

  #tilt([left, right, up, down], x, y, source) {
    const [l, r] = ends(x);
    const [u, d] = ends(y);
    for (const [id, strength] of [[left, l], [right, r], [up, u], [down, d]]) this.#press(id, source, strength, performance.now());
  }

  #poll() {
    if (this.#polling) return;
    this.#polling = true;
    const look = () => {
      const pads = navigator.getGamepads().filter((pad) => pad?.connected);
      for (const pad of pads) this.#read(pad);
      this.#polling = pads.length > 0;
      if (this.#polling) requestAnimationFrame(look);
      else if (this.#command?.release("gamepad")) this.#on.moved(null);
    };
    look();
  }

  #read(pad) {
    const now = performance.now();
    for (const [axis, low, high] of PAD_AXES) {
      const [l, h] = ends(pad.axes[axis] ?? 0);
      this.#press(low, "gamepad", l, now);
      this.#press(high, "gamepad", h, now);
    }
    for (const [button, id] of Object.entries(PAD_HELD)) this.#press(id, "gamepad", pad.buttons[button]?.value ?? 0, now);
    for (const [button, id] of Object.entries(PAD_PAGE)) {
      const pressed = pad.buttons[button]?.pressed ?? false;
      if (pressed && !this.#down.has(button)) this.#on.page(id);
      if (pressed) this.#down.add(button);
      else this.#down.delete(button);
    }
  }
}

/** A stick on the screen: `moved(x, y)`, each -1 to 1, as a finger drags it; it springs back. */
class Stick {
  constructor(base, moved) {
    const knob = base.querySelector(".knob");
    const put = (x, y) => {
      knob.style.setProperty("--x", String(x));
      knob.style.setProperty("--y", String(y));
      moved(x, y);
    };
    const drag = (event) => {
      const { left, top, width, height } = base.getBoundingClientRect();
      const x = (2 * (event.clientX - left)) / width - 1;
      const y = (2 * (event.clientY - top)) / height - 1;
      const far = Math.max(1, Math.hypot(x, y));
      put(x / far, y / far);
    };
    base.addEventListener("pointerdown", (event) => {
      base.setPointerCapture(event.pointerId);
      drag(event);
    });
    base.addEventListener("pointermove", (event) => base.hasPointerCapture(event.pointerId) && drag(event));
    for (const end of ["pointerup", "pointercancel"]) base.addEventListener(end, () => put(0, 0));
    base.addEventListener("contextmenu", (event) => event.preventDefault());
  }
}
