// The wanted command: what held keys, sticks and sliders come to, one vector a step.

import { movesOf } from "./moves.js";

const NEAR = 0.01; // of an action's range: there

export class Command {
  #at = new Map(); // name -> index
  #strength = new Map(); // move -> source -> 0..1
  #tapped = new Map(); // moves pressed since the last step, which it carries even if they are let go -> strength

  /** `actions` and `perStep` (commands a step) as in the server's welcome. */
  constructor(actions, perStep) {
    this.actions = actions;
    this.perStep = perStep;
    this.moves = movesOf(actions);
    actions.forEach((action, i) => this.#at.set(action.name, i));
    this.wanted = actions.map((action) => action.rest ?? (action.low + action.high) / 2);
    this.applied = [...this.wanted];
    this.home = [...this.wanted];
    this.driven = actions.map(() => false); // velocities that a held move governs now
  }

  /** Hold a move with a strength of 0 (let go) to 1, by one of several sources; whether that changed anything. */
  press(id, source, strength) {
    const move = this.moves.find((m) => m.id === id);
    const before = this.strength(id);
    if (!move || (this.#strength.get(id)?.get(source) ?? 0) === strength) return false;
    if (!this.#strength.has(id)) this.#strength.set(id, new Map());
    this.#strength.get(id).set(source, strength);
    const now = this.strength(id);
    if (before === 0 && now > 0) {
      this.#tapped.set(id, now);
      if (move.toggle) this.#toggle(this.#at.get(move.toggle));
    }
    return before !== now;
  }

  /** Let go of everything that a source holds, or of everything. */
  release(source = null) {
    let changed = false;
    for (const [id, sources] of this.#strength) {
      for (const name of sources.keys()) {
        if (source === null || name === source) changed = this.press(id, name, 0) || changed;
      }
    }
    return changed;
  }

  /** How strongly a move is held. */
  strength(id) {
    return Math.max(0, ...(this.#strength.get(id)?.values() ?? []));
  }

  get held() {
    return this.moves.some((move) => !move.toggle && (this.strength(move.id) > 0 || this.#tapped.has(move.id)));
  }

  /** Want a value of one action, within its limits. Velocities keep it until a key governs them. */
  set(i, value) {
    this.wanted[i] = this.#clip(i, value);
  }

  /** The command in force; after a reset or an undo (`fresh`) it is also what is wanted, but for velocities. */
  take(applied, fresh) {
    this.applied = applied;
    if (fresh) this.wanted = this.actions.map((action, i) => action.rest ?? this.#clip(i, applied[i]));
  }

  /** Remember the pose in force as the one to come back to. */
  keepHome() {
    this.home = [...this.wanted];
  }

  goHome() {
    this.wanted = [...this.home];
  }

  /** Whether nothing is held, no velocity is wanted, and the command in force is the one that is wanted. */
  get calm() {
    return (
      !this.held &&
      this.actions.every(({ low, high, rest }, i) => {
        const near = 1e-3 + NEAR * (high - low);
        const reached = Math.abs(this.applied[i] - this.wanted[i]) < near;
        return reached && (rest === null || Math.abs(this.wanted[i] - rest) < near);
      })
    );
  }

  /** The command of the next step; joints of held moves go on. */
  next() {
    const pull = this.actions.map(() => null);
    for (const move of this.moves) {
      const strength = Math.max(this.strength(move.id), this.#tapped.get(move.id) ?? 0);
      if (strength === 0) continue;
      for (const [name, sign] of Object.entries(move.velocity ?? {})) {
        const i = this.#at.get(name);
        pull[i] = (pull[i] ?? 0) + sign * strength;
      }
      if (move.rate) this.#advance(Object.entries(move.rate), strength);
    }
    this.#tapped.clear();
    this.actions.forEach(({ low, high, rest }, i) => {
      if (rest === null) return;
      if (pull[i] !== null) this.wanted[i] = this.#clip(i, rest + pull[i] * (pull[i] > 0 ? high - rest : rest - low));
      else if (this.driven[i]) this.wanted[i] = rest;
      this.driven[i] = pull[i] !== null;
    });
    return this.wanted.map((value) => Math.round(1e4 * value) / 1e4);
  }

  /** One step of joints that move together, each no faster than in the data. */
  #advance(rates, strength) {
    const indices = rates.map(([name]) => this.#at.get(name));
    const stride = Math.min(...rates.map(([, rate], k) => this.actions[indices[k]].change / Math.abs(rate)));
    const step = strength * this.perStep * stride;
    const lead = this.#clip(indices[0], this.wanted[indices[0]] + step * rates[0][1]);
    const share = (lead - this.wanted[indices[0]]) / rates[0][1]; // shorter where the leading joint ends
    rates.forEach(([, rate], k) => this.set(indices[k], this.wanted[indices[k]] + share * rate));
  }

  #toggle(i) {
    const { low, high } = this.actions[i];
    this.wanted[i] = this.wanted[i] > (low + high) / 2 ? low : high;
  }

  #clip(i, value) {
    return Math.min(this.actions[i].high, Math.max(this.actions[i].low, value));
  }
}
