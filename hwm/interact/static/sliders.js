// A slider for every action: its name, its limits, what is wanted (the thumb) and what is in force (the mark).

import { $, el, plain } from "./ui.js";

const KNOWN = [
  ["Base", /VELOCITY/i],
  ["Legs and hips", /^(HIP|KNEE|ANKLE|WAIST|TORSO)/i],
  ["Left arm", /^LEFT_(SHOULDER|ELBOW|WRIST|ARM)/i],
  ["Right arm", /^RIGHT_(SHOULDER|ELBOW|WRIST|ARM)/i],
  ["Neck", /^(NECK|HEAD)/i],
  ["Hands", /CLOSURE|HAND|GRIP|FINGER/i],
];
const UNITS = [
  [/LINEAR_VELOCITY/, "m/s"],
  [/ANGULAR_VELOCITY/, "rad/s"],
  [/_(PITCH|ROLL|YAW)$/, "rad"],
];

/** The actions under titles, as title -> indices: parts of a body that are known by name, else those whose names begin
 * with the same word. */
function grouped(names) {
  const words = names.map((name) => plain(name).match(/^[a-z]*/)[0]);
  const shared = (word) => word && words.filter((other) => other === word).length > 1;
  const capital = (word) => word[0].toUpperCase() + word.slice(1);
  const groups = new Map(KNOWN.map(([title]) => [title, []]));
  const others = [];
  names.forEach((name, i) => {
    const known = KNOWN.find(([, pattern]) => pattern.test(name))?.[0];
    const title = known ?? (shared(words[i]) ? capital(words[i]) : null);
    if (title !== null && !groups.has(title)) groups.set(title, []);
    (groups.get(title) ?? others).push(i);
  });
  const filled = [...groups].filter(([, indices]) => indices.length).sort(([one], [other]) => (one === "Hands") - (other === "Hands"));
  return others.length ? [...filled, [filled.length ? "Others" : "Actions", others]] : filled;
}

export class Sliders {
  #command;
  #rows = [];

  /** Build them in #joints; `changed()` is called when one is moved. They are open from the beginning where the robot
   * has no keys of its own. */
  constructor(command, changed) {
    this.#command = command;
    const groups = grouped(command.actions.map((action) => action.name));
    const needed = !command.moves.some((move) => !move.pair);
    $("joints").replaceChildren(...groups.map(([title, indices]) => {
      const rows = indices.map((i) => this.#row(command.actions[i], i, changed));
      const count = el("span", { class: "count" }, String(rows.length));
      const open = needed || groups.length === 1 || title === "Base";
      return el("details", { class: "group", open, ontoggle: () => this.show() }, el("summary", {}, title, count), ...rows);
    }));
    if (!needed) return;
    $("panel-joints").open = true;
    $("panel").firstElementChild.after($("panel-joints"));
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
