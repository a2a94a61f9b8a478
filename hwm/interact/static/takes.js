// Recordings, and replays: the same steps once more, and whether the same pixels come of them.

import { $, download, el, icon, say } from "./ui.js";
import { request } from "./link.js";

const KEPT = 6;

export class Takes {
  #loop;
  #session = "";
  #format = ""; // that of the replay under way
  #fps = 10;
  #first = null; // step at which the recording began
  #made = 0;

  constructor(loop) {
    this.#loop = loop;
    $("share-replay").addEventListener("click", () => this.#share());
    $("load-replay").addEventListener("change", (event) => this.#load(event.target));
    $("stop-replay").addEventListener("click", () => this.stop());
  }

  connected(session, fps) {
    this.#session = session;
    this.#fps = fps;
    this.#first = null;
  }

  /** Seconds recorded so far, or null. */
  get seconds() {
    return this.#first === null ? null : Math.max(0, this.#loop.n - this.#first) / this.#fps;
  }

  /** Begin a recording, or end it and offer its files. */
  async toggle() {
    if (!this.#loop.begun) return;
    if (this.#first === null) {
      this.#first = this.#loop.n;
      return;
    }
    const [first, last] = [this.#first, this.#loop.n];
    this.#first = null;
    if (last <= first) say("Nothing was recorded: the world stood still.");
    else await this.#keep(first, last);
  }

  /** Steps were undone, or the world began anew: what was recorded of them is gone. */
  wentBack(n, anew) {
    if (this.#first === null) return;
    if (anew) say("The recording ended: the world began anew.");
    this.#first = anew ? null : Math.min(this.#first, n);
  }

  /** Fetch a recording at once, so that it outlives its session. */
  async #keep(first, last) {
    const name = `take ${++this.#made}`;
    const seconds = ((last - first) / this.#fps).toFixed(1);
    const files = el("span", { class: "files" }, "preparing…");
    const shown = el("li", { class: "take" }, el("div", { class: "about" }, el("strong", {}, name), ` ${seconds} s`, files));
    $("takes").prepend(shown);
    $("panel-takes").open = true;
    while ($("takes").children.length > KEPT) $("takes").lastChild.remove();
    try {
      const [video, store] = await Promise.all(
        ["video.mp4", "store.zip"].map(async (file) => {
          const answer = await request(`session/${this.#session}/${file}`, { first, last });
          return URL.createObjectURL(await answer.blob());
        }),
      );
      const link = (href, file, text) => el("a", { href, download: file, class: "file" }, icon("download"), text);
      const plain = name.replace(" ", "_");
      files.replaceChildren(link(video, `${plain}.mp4`, "video"), link(store, `${plain}_store.zip`, "store"));
      shown.prepend(preview(video, name));
      say(`Recorded ${seconds} s: see “Record and replay”.`);
    } catch (error) {
      files.textContent = error.message;
      say(error.message, true);
    }
  }

  async #share() {
    try {
      const answer = await request(`session/${this.#session}/replay.json`);
      download(await answer.blob(), "replay.json");
    } catch (error) {
      say(error.message, true);
    }
  }

  async #load(input) {
    const [file] = input.files;
    input.value = ""; // the same file can be chosen again
    if (!file) return;
    this.#tell(`Reading ${file.name}…`);
    this.wentBack(0, true);
    try {
      const told = await this.#loop.held(async () => {
        const answer = await request(`session/${this.#session}/replay`, {}, { method: "POST", body: await file.text() });
        return answer.json();
      });
      if (!told.actions.length) this.#tell("This replay holds no step.");
      else this.#loop.play(told.actions, told.hashes);
      this.#format = told.dtype ?? "a number format that the file does not name";
      $("stop-replay").hidden = this.#loop.script === null;
    } catch (error) {
      this.#tell(error.message, "bad");
      say(error.message, true);
    }
  }

  stop() {
    if (!this.#loop.script) return;
    this.#loop.stopReplay();
    $("stop-replay").hidden = true;
    this.#tell("Stopped. You are in charge again, where the replay was left.");
  }

  /** A step of a replay came back. */
  replayed({ seen, actions, departed }, done) {
    const total = actions.length;
    $("stop-replay").hidden = done;
    const share = `step ${seen} of ${total}`;
    if (!done) this.#tell(departed === null ? `Replaying, ${share}: the same so far.` : `Replaying, ${share}: departed at step ${departed}.`);
    else if (departed === null) this.#tell(`Same pixels, step by step: all ${total} steps agree.`, "good");
    else this.#tell(`Departed at step ${departed} of ${total}: from there on it is another world. It was recorded in ${this.#format}.`, "bad");
  }

  #tell(text, kind = "") {
    $("replay-told").textContent = text;
    $("replay-told").className = `told ${kind}`;
  }
}


/** A small video that runs by itself, unless motion is not wanted; a click stops it and lets it go on. */
function preview(src, name) {
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const video = el("video", { src, loop: true, playsinline: true });
  video.muted = true; // as an attribute it would come too late for an element made here
  video.autoplay = !still;
  const toggle = () => (video.paused ? video.play() : video.pause());
  return el("button", { type: "button", class: "preview", "aria-label": `Play or stop ${name}`, onclick: toggle }, video);
}
