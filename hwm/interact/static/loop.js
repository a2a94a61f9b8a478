// When steps are sent. The page pulls: a step goes out when it is due and fewer than two are unanswered. The second one
// goes out just before the model is expected to be done with the first, so that pictures of one are made while the next
// is computed, and yet no step waits long and what a key asks for is soon seen.

const IN_FLIGHT = 2;
const LEARN = 0.2; // how quickly the times below follow what is measured
const SETTLE = 5; // steps that go on after everything came to rest

export class Loop {
  n = 0; // steps since the start
  hashes = []; // of these steps
  begins = 0; // resets since the page was opened
  script = null; // a replay under way: {actions, hashes, sent, seen, departed}
  #pace = "real";
  #whenAsked = true;
  #paused = false;
  #link;
  #on;
  #command = null;
  #interval = 100;
  #begun = false; // whether the session has a start
  #holds = 0; // answers that must come before the next step
  #inFlight = new Map(); // id -> {sent, pressed, index}
  #pressed = []; // times of key presses that no step carries yet
  #calm = SETTLE;
  #due = 0;
  #timer = null;
  #stepMs = 0; // how long the model takes
  #awayMs = 0; // how long messages are under way, both ways
  #busyUntil = 0; // when the model is expected to be done with what was sent

  /** Calls `on.replayed(script)` after each step of a replay, and `on.stuck(message)` when a step is refused. */
  constructor(link, on) {
    this.#link = link;
    this.#on = on;
  }

  get inFlight() {
    return this.#inFlight.size;
  }

  get begun() {
    return this.#begun;
  }

  get paused() {
    return this.#paused;
  }

  set paused(on) {
    this.#paused = on;
    this.#pressed = [];
    this.pump();
  }

  /** "real": as fast as the world's own time; "fast": as fast as steps are answered. */
  set pace(pace) {
    this.#pace = pace;
    this.pump();
  }

  /** Whether time stands still while nothing is asked of the robot. */
  set whenAsked(on) {
    this.#whenAsked = on;
    this.#calm = 0;
    this.pump();
  }

  /** Whether time stands still for that reason now. */
  get idle() {
    return !this.#paused && !this.script && this.#whenAsked && this.#calm >= SETTLE && this.inFlight === 0;
  }

  /** A new connection, without a session yet. */
  connected(command, fps) {
    this.#command = command;
    this.#interval = 1000 / fps;
  }

  disconnected() {
    clearTimeout(this.#timer);
    this.#inFlight.clear();
    this.#pressed = [];
    this.#begun = false;
    this.script = null;
  }

  /** Begin anew from a start. */
  async reset(start, seed) {
    this.script = null;
    await this.held(() => this.#link.ask({ type: "reset", start, seed }));
  }

  /** Go back by some steps, unless that is under way already. */
  async undo(steps) {
    if (!this.#begun || this.#holds || this.script || this.n === 0) return;
    await this.held(() => this.#link.ask({ type: "undo", steps }));
  }

  /** Send no step until `work` is done. */
  async held(work) {
    this.#holds += 1;
    try {
      return await work();
    } finally {
      this.#holds -= 1;
      this.pump();
    }
  }

  /** Play recorded steps, each taken at once, and compare what comes of them. */
  play(actions, hashes) {
    this.script = { actions, hashes, sent: 0, seen: 0, departed: null };
    this.#paused = false;
    this.pump();
  }

  stopReplay() {
    this.script = null;
    this.#calm = SETTLE;
    this.pump();
  }

  /** Something is asked of the robot: send it at once if possible. `pressed`: when a key went down, if one did. */
  wake(pressed = null) {
    this.#calm = 0;
    if (!this.#free || this.#paused || this.script) return;
    if (pressed !== null) this.#pressed.push(pressed);
    if (this.inFlight < IN_FLIGHT) {
      this.#send();
      this.#due = performance.now() + this.#interval;
    }
    this.pump();
  }

  /** One step while time stands still. */
  once() {
    const left = !this.script || this.script.sent < this.script.actions.length;
    if (this.#free && this.#paused && left && this.inFlight === 0) this.#send();
  }

  /** A frame came; what was remembered of its step, or null if it is of no step of ours. */
  arrived(header) {
    const step = this.#inFlight.get(header.id) ?? null;
    this.#inFlight.delete(header.id);
    if (step) this.#learn(header, performance.now() - step.sent);
    this.n = header.n;
    if (header.kind === "reset") {
      this.#begun = true;
      this.begins += 1;
    }
    const fresh = header.kind !== "step";
    this.#command.take(header.applied, fresh);
    this.hashes.length = Math.min(this.hashes.length, header.kind === "step" ? header.n - 1 : header.n);
    if (header.kind === "step") this.hashes[header.n - 1] = header.hash;
    if (fresh) this.#calm = this.#command.held ? 0 : SETTLE;
    else this.#calm = this.#command.calm ? this.#calm + 1 : 0;
    if (step && step.script === this.script && this.script) this.#compare(step.index, header.hash);
    this.pump();
    return step;
  }

  /** A step was refused: stop, rather than ask for it again and again. */
  refused(id, message) {
    if (!this.#inFlight.delete(id)) return false;
    this.script = null;
    this.#paused = true;
    this.#on.stuck(message);
    return true;
  }

  /** Send what is due. */
  pump() {
    clearTimeout(this.#timer);
    if (!this.#free || this.inFlight >= IN_FLIGHT || !this.#wanted) return; // a frame or a wake pumps again
    const now = performance.now();
    const free = this.inFlight ? this.#busyUntil - this.#awayMs : now;
    const at = this.#pace === "fast" ? free : Math.max(free, this.#due);
    if (now >= at) {
      this.#due = Math.max(this.#due + this.#interval, now + this.#interval / 2); // late once is not late for ever
      this.#send();
    }
    this.#timer = setTimeout(() => this.pump(), Math.max(1, at - now));
  }

  get #free() {
    return this.#begun && this.#holds === 0 && this.#link.open;
  }

  get #wanted() {
    if (this.#paused) return false;
    if (this.script) return this.script.sent < this.script.actions.length;
    return !this.#whenAsked || this.#calm < SETTLE;
  }

  #send() {
    const script = this.script;
    const index = script ? script.sent++ : null;
    const step = script
      ? { type: "step", action: script.actions[index], exact: true }
      : { type: "step", action: this.#command.next() };
    const id = this.#link.send(step);
    const now = performance.now();
    this.#busyUntil = Math.max(now, this.#busyUntil) + this.#stepMs;
    this.#inFlight.set(id, { sent: now, pressed: this.#pressed.splice(0), index, script });
  }

  #learn({ queue_ms, step_ms, decode_ms }, took) {
    this.#stepMs += LEARN * (step_ms - this.#stepMs);
    this.#awayMs += LEARN * (took - queue_ms - step_ms - decode_ms - this.#awayMs);
    if (this.inFlight === 0) this.#busyUntil = 0;
  }

  #compare(index, hash) {
    const script = this.script;
    script.seen = index + 1;
    if (script.departed === null && script.hashes[index] !== hash) script.departed = index + 1;
    const done = script.seen === script.actions.length;
    if (done) this.stopReplay();
    this.#on.replayed(script, done);
  }
}
