// Where a session begins (gallery, upload, seed) and how it is computed (presets).

import { $, el, icon, say } from "./ui.js";
import { address, request } from "./link.js";

/** The thumbnails; `chosen(name)` is called with the start that is picked. */
export class Gallery {
  #uploads = []; // {name, label, url}
  #starts = [];
  #chosen;
  current = null;

  constructor(chosen) {
    this.#chosen = chosen;
    $("upload").addEventListener("change", (event) => this.#upload(event.target));
    $("dice").addEventListener("click", () => {
      $("seed").value = Math.floor(Math.random() * 100_000);
      chosen(this.current);
    });
    $("seed").addEventListener("keydown", (event) => event.key === "Enter" && $("seed").blur()); // keys drive again
    $("seed").addEventListener("change", () => {
      $("seed").value = this.seed;
      chosen(this.current);
    });
  }

  /** The seed in its box, as a whole number that both sides can hold. */
  get seed() {
    const number = Math.floor(Number($("seed").value));
    return Number.isFinite(number) ? Math.min(Math.max(number, 0), Number.MAX_SAFE_INTEGER) : 0;
  }

  /** Whether the true simulator can run beside the start in use. */
  get twin() {
    return this.#starts.find((start) => start.name === this.current)?.twin ?? false;
  }

  connected(starts) {
    this.#starts = starts;
    const known = [...starts, ...this.#uploads].some((start) => start.name === this.current);
    if (!known) this.current = starts[0]?.name ?? null;
    this.#build();
  }

  mark(name) {
    this.current = name;
    for (const button of $("gallery").querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button.dataset.start === name));
    }
  }

  /** Forget a start that the server has no more. */
  forget(name) {
    this.#uploads = this.#uploads.filter((upload) => upload.name !== name);
    if (this.current === name) this.current = this.#starts[0]?.name ?? null;
    this.#build();
  }

  #build() {
    const all = [...this.#uploads, ...this.#starts.map((start, i) => this.#described(start, i))];
    const buttons = all.map(({ name, label, url, twin }) => {
      const title = `Begin from ${label}${twin ? "; the true simulator can run beside it" : ""}`;
      return el("button", { type: "button", "data-start": name, title, "aria-label": title, onclick: () => this.#chosen(name) },
        el("img", { src: url, alt: "", loading: "lazy", decoding: "async" }),
        twin ? el("span", { class: "badge", "aria-hidden": "true" }, icon("twin")) : null);
    });
    $("gallery").replaceChildren(...buttons);
    this.mark(this.current);
  }

  #described({ name, label, twin }, i) {
    const url = address(`thumb/${encodeURIComponent(name)}`);
    return { name, label: label === name ? `start ${i + 1}` : label, url, twin };
  }

  async #upload(input) {
    const [file] = input.files;
    input.value = "";
    if (!file) return;
    try {
      const headers = { "X-Filename": encodeURIComponent(file.name) };
      const answer = await (await request("upload", {}, { method: "POST", body: file, headers })).json();
      const url = file.type.startsWith("image/") ? URL.createObjectURL(file) : address("static/film.svg");
      this.#uploads.unshift({ name: answer.start, label: file.name, url, twin: false });
      this.#build();
      this.#chosen(answer.start);
    } catch (error) {
      say(error.message, true);
    }
  }
}

const FIGURES = [
  ["psnr", "PSNR", "dB"],
  ["psnr_8", "PSNR after 8 steps", "dB"],
  ["delta_psnr", "ΔPSNR", "dB"],
  ["fps", "frames/s", ""],
];

/** The ways to compute, with what is known of them; `chosen(name)` is called with the one that is picked. */
export function buildPresets(presets, current, chosen) {
  $("presets").replaceChildren(...presets.map(({ name, label, about, figures }) => {
    const known = FIGURES.filter(([key]) => typeof figures?.[key] === "number");
    const facts = known.map(([key, title, unit]) =>
      el("span", {}, el("b", {}, figures[key].toFixed(1)), ` ${unit} ${title}`.replace("  ", " ")));
    if (figures?.device) facts.push(el("span", {}, `on ${[figures.device, figures.dtype].filter(Boolean).join(", ")}`));
    return el("label", { class: "preset", title: about || null },
      el("input", { type: "radio", name: "preset", value: name, checked: name === current, onchange: () => chosen(name) }),
      el("span", { class: "name" }, label),
      el("span", { class: "about" }, about ?? ""),
      el("span", { class: "facts" }, ...(facts.length ? facts : ["not measured yet"])));
  }));
}

/** Tick the preset in use, and say what its sampler does. */
export function showPreset(name, sampler) {
  for (const input of $("presets").querySelectorAll("input")) input.checked = input.value === name;
  $("sampler").textContent = Object.entries(sampler ?? {}).map(([key, value]) => `${key.replaceAll("_", " ")} ${value}`).join(" · ");
}
