// Keys, and the keycaps on the page that light up with them and can be pressed themselves.

import { $, el } from "./ui.js";
import { PAGE_KEYS } from "./moves.js";

const TYPING = "input:not([type=range],[type=radio],[type=checkbox],[type=file],[type=button]), textarea, select";
const ARROWS = ["ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight"];
const REPEATED = ["undo"]; // held, these go on
const EASY = 0.65; // of the fastest in the data, at which worlds hold together longer; the shift key gives all of it

/** Whether a key belongs to the element in focus rather than to the robot. */
function taken(event) {
  const { target, code } = event;
  if (event.ctrlKey || event.metaKey || event.altKey || $("legend").open) return true;
  if (target.matches?.(TYPING)) return true;
  if (target.matches?.("input")) return ARROWS.includes(code) || code === "Space";
  return code === "Space" && Boolean(target.closest?.("button, summary, a, label"));
}

export class Keyboard {
  #command = null;
  #caps = new Map(); // move -> its keycap
  #byKey = new Map(); // code -> move
  #held = new Map(); // code -> move
  #page = new Map(PAGE_KEYS.flatMap(({ id, keys }) => keys.map((key) => [key, id])));
  #on;

  /** Calls `on.moved(time pressed or null)` when a move begins or ends, and `on.page(id)` for the page's own keys. */
  constructor(on) {
    this.#on = on;
    addEventListener("keydown", (event) => this.#down(event));
    addEventListener("keyup", (event) => this.#up(event));
    addEventListener("blur", () => this.#letGo());
    document.addEventListener("visibilitychange", () => this.#letGo());
  }

  /** Keycaps of what this robot can do, on both sides of the picture. */
  build(command) {
    this.#command = command;
    this.#byKey = new Map(command.moves.flatMap((move) => move.keys.map((key) => [key, move])));
    this.#caps.clear();
    for (const side of ["left", "right"]) {
      const groups = new Set(command.moves.filter((move) => move.side === side).map((move) => move.group));
      $(`keys-${side}`).replaceChildren(...[...groups].map((group) => this.#group(group)));
    }
    $("stage").classList.toggle("pairs", command.moves.some((move) => move.pair));
  }

  /** Light the keycaps of what is held. */
  show() {
    for (const [id, cap] of this.#caps) cap.classList.toggle("lit", this.#command.strength(id) > 0);
  }

  #group(title) {
    const moves = this.#command.moves.filter((move) => move.group === title);
    const caps = moves.map((move) => {
      const press = (strength, event) => {
        if (this.#command.press(move.id, "cap", strength)) this.#on.moved(strength ? event.timeStamp : null);
      };
      const cap = el("button", {
        type: "button", class: `cap at-${move.id}`, "aria-label": `${title}: ${move.label} (${move.cap})`,
        onpointerdown: (event) => {
          cap.setPointerCapture(event.pointerId);
          press(EASY, event);
        },
        onpointerup: (event) => press(0, event),
        onpointercancel: (event) => press(0, event),
        oncontextmenu: (event) => event.preventDefault(),
        onkeydown: (event) => ["Enter", "Space"].includes(event.code) && !event.repeat && press(EASY, event),
        onkeyup: (event) => ["Enter", "Space"].includes(event.code) && press(0, event),
        onblur: (event) => press(0, event),
      }, el("kbd", {}, move.cap));
      this.#caps.set(move.id, cap);
      return el("span", { class: "key" }, cap, el("span", { class: "does", "aria-hidden": "true" }, move.label));
    });
    return el("div", { class: title === "Drive" ? "keygroup drive" : "keygroup", role: "group", "aria-label": title },
      el("h3", {}, title), el("div", { class: "caps" }, ...caps));
  }

  #down(event) {
    if (event.key === "Shift") this.#press(1);
    if (taken(event)) return;
    if (event.key === "?") return this.#on.page("help");
    const move = this.#byKey.get(event.code);
    const page = this.#page.get(event.code);
    if (!move && !page) return;
    if (event.code !== "Escape") event.preventDefault();
    if (event.repeat && !REPEATED.includes(page)) return;
    if (page) return this.#on.page(page);
    this.#held.set(event.code, move);
    this.#press(event.shiftKey ? 1 : EASY, event.timeStamp);
  }

  #up(event) {
    if (event.key === "Shift") this.#press(EASY);
    const move = this.#held.get(event.code); // wherever the focus went meanwhile
    this.#held.delete(event.code);
    if (move && this.#command.press(move.id, event.code, 0)) this.#on.moved(null);
  }

  /** Press all keys that are held so strongly. */
  #press(strength, time = null) {
    let changed = false;
    for (const [code, move] of this.#held) changed = this.#command.press(move.id, code, strength) || changed;
    if (changed) this.#on.moved(time);
  }

  #letGo() {
    this.#held.clear();
    if (this.#command?.release()) this.#on.moved(null);
  }
}

/** Fill the list of all keys. */
export function buildLegend(moves) {
  const row = ({ cap, pad, label }, group = null) =>
    el("tr", {}, el("th", { scope: "row" }, group ? `${group}: ${label}` : label), el("td", {}, el("kbd", {}, cap)), el("td", {}, pad ?? ""));
  $("legend-moves").replaceChildren(...moves.map((move) => row(move, move.group)));
  $("legend-drive").hidden = !moves.some((move) => move.group === "Drive");
  $("legend-page").replaceChildren(...PAGE_KEYS.map((key) => row(key)));
}
