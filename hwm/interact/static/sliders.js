// A slider for every action: its name, its limits, what is wanted (the thumb) and what is in force (the mark).

import { $, el, plain } from "./ui.js";

const GROUPS = [
  ["Base", /VELOCITY/],
  ["Legs and hips", /^(HIP|KNEE|ANKLE|WAIST|TORSO)/],
  ["Left arm", /^LEFT_(SHOULDER|ELBOW|WRIST|ARM)/],
  ["Right arm", /^RIGHT_(SHOULDER|ELBOW|WRIST|ARM)/],
  ["Neck", /^(NECK|HEAD)/],
  ["Hands", /CLOSURE|HAND|GRIP|FINGER/],
  ["Others", /(?:)/],
];
const UNITS = [
  [/LINEAR_VELOCITY/, "m/s"],
  [/ANGULAR_VELOCITY/, "rad/s"],
  [/_(PITCH|ROLL|YAW)$/, "rad"],
];

export class Sliders {
  #command;
  #rows = [];
  #groups = [];

  /** Build them in #joints; `changed()` is called when one is moved. */
  constructor(command, changed) {
    this.#command = command;
    const groups = new Map(GROUPS.map(([title]) => [title, []]));
    command.actions.forEach((action, i) => {
      groups.get(GROUPS.find(([, pattern]) => pattern.test(action.name))[0]).push(this.#row(action, i, changed));
    });
    const filled = [...groups].filter(([, rows]) => rows.length);
    this.#groups = filled.map(([title, rows]) => {
      const count = el("span", { class: "count" }, String(rows.length));
      return el("details", { class: "group", open: filled.length === 1 || title === "Base", ontoggle: () => this.show() },
        el("summary", {}, title, count), ...rows);
    });
    $("joints").replaceChildren(...this.#groups);
  }

  #row(action, i, changed) {
    const unit = UNITS.find(([pattern]) => pattern.test(action.name))?.[1] ?? "";
    const value = el("output", { class: "value" });
    const fixed = action.high - action.low < 1e-6;
    const slider = el("input", {
      type: "range", min: action.low, max: action.high, step: "any", disabled: fixed, "aria-label": plain(action.name),
      oninput: () => {
        this.#command.set(i, Number(slider.value));
        changed();
        this.show();
      },
      onkeydown: (event) => this.#nudge(event, action, i, changed),
    });
    const mark = el("span", { class: "mark" });
    const limits = el("span", { class: "limits" }, el("span", {}, action.low.toFixed(2)), el("span", {}, action.high.toFixed(2)));
    this.#rows[i] = { slider, value, mark, unit, text: "", at: null };
    return el("div", { class: fixed ? "joint fixed" : "joint" },
      el("span", { class: "name" }, plain(action.name)), value, el("span", { class: "track" }, slider, mark), limits);
  }

  /** Keys step a slider by a hundredth of its range; what is browsers' choice for `step="any"` is next to nothing. */
  #nudge(event, { low, high, rest }, i, changed) {
    const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 };
    const wanted = this.#command.wanted[i];
    const ends = { Home: low, End: high, Delete: rest ?? wanted };
    if (!(event.key in steps) && !(event.key in ends)) return;
    event.preventDefault();
    this.#command.set(i, ends[event.key] ?? wanted + (steps[event.key] * (high - low)) / 100);
    changed();
    this.show();
  }

  /** Bring sliders that can be seen up to date. */
  show() {
    if (!$("panel-joints").open) return;
    this.#rows.forEach((row, i) => {
      if (!row.slider.closest("details").open) return;
      const { low, high } = this.#command.actions[i];
      const wanted = this.#command.wanted[i];
      const text = `${wanted.toFixed(2)}${row.unit && ` ${row.unit}`}`;
      if (text !== row.text) {
        row.text = row.value.textContent = text;
        row.slider.value = wanted;
        row.slider.setAttribute("aria-valuetext", text);
      }
      const at = high > low ? Math.min(1, Math.max(0, (this.#command.applied[i] - low) / (high - low))) : 0;
      if (at !== row.at) row.mark.style.setProperty("--at", String((row.at = at)));
    });
  }
}
