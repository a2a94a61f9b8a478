// The page of `hwm play`: puts the parts together. What goes over the wire is in docs/protocol.md.

import { Command } from "./command.js";
import { Figures } from "./figures.js";
import { Gallery, buildPresets, showPreset } from "./gallery.js";
import { Keyboard, buildLegend } from "./keyboard.js";
import { Likeness } from "./likeness.js";
import { Link } from "./link.js";
import { Loop } from "./loop.js";
import { Pads } from "./pads.js";
import { Picture } from "./picture.js";
import { Sliders } from "./sliders.js";
import { Takes } from "./takes.js";
import { $, plain, say } from "./ui.js";

const SHOW_MS = 200; // figures and sliders are written so often, not with every frame
const DEFAULT_JPEG = 85; // the server's

let welcome = null;
let command = new Command([], 1);
let sliders = null;
let preset = null; // chosen here; null leaves the server's choice
let twinOn = false;
let drawing = Promise.resolve();
let undrawn = 0; // frames that came and are not on the screen yet

const figures = new Figures();
const likeness = new Likeness();
const views = { model: new Picture($("model-view")), twin: new Picture($("twin-view")) };
const link = new Link({ welcome: greeted, frame, message, down });
const loop = new Loop(link, {
  replayed: (script, done) => takes.replayed(script, done),
  stuck: (text) => say(text, true),
});
const takes = new Takes(loop);
const gallery = new Gallery((name) => begin(name));
const inputs = { moved, page: (id) => PAGE[id]() };
const keyboard = new Keyboard(inputs);
const pads = new Pads(inputs);

// ---------------------------------------------------------------- the connection
async function greeted(message) {
  const again = welcome !== null;
  welcome = message;
  command = new Command(message.actions, message.actions_per_step);
  loop.connected(command, message.fps);
  takes.connected(message.session, message.fps);
  likeness.connected(message.fps);
  keyboard.build(command);
  pads.build(command);
  buildLegend(command.moves);
  sliders = new Sliders(command, () => loop.wake());
  gallery.connected(message.starts);
  buildPresets(message.presets, preset ?? message.preset, choosePreset);
  showPreset(message.preset, message.sampler);
  const [height, width] = message.size;
  document.documentElement.style.setProperty("--ratio", String(width / height));
  nameViews(message.views ?? []);
  $("about").textContent = `${message.model} · ${plain(message.embodiment)}`;
  $("pace-real").textContent = `Real time, ${Number(message.fps.toFixed(1))} steps/s`;
  $("twin-button").hidden = !message.twin;
  $("gone").hidden = true;
  state("here", "connected");
  if (again) say("Connected again. The world begins anew.");
  await settle();
  if (gallery.current === null) say("There is no gallery here: begin from a picture or a short video of your own.");
  else await begin(gallery.current);
}

/** Say over each of several cameras' pictures which camera it is. */
function nameViews(views) {
  for (const row of document.querySelectorAll(".names")) {
    row.hidden = views.length === 0;
    row.replaceChildren(...views.map((view) => Object.assign(document.createElement("span"), { textContent: plain(view) })));
  }
}

/** Tell a new connection what was chosen before. */
async function settle() {
  if (preset !== null && preset !== welcome.preset) await choosePreset(preset);
  if (Number($("jpeg").value) !== DEFAULT_JPEG) link.send({ type: "quality", jpeg: Number($("jpeg").value) });
  if (twinOn) await switchTwin();
}

function down(reason, again) {
  loop.disconnected();
  command.release();
  state("away", "not connected");
  const why = reason ? `${reason[0].toUpperCase()}${reason.slice(1)}.` : "The server is away.";
  $("gone-text").textContent = again === null ? why : `${why} Trying again…`;
  $("gone").hidden = false;
}

function state(which, text) {
  $("link").dataset.state = which;
  $("link").textContent = text;
}

function message(message) {
  if (message.type === "error" && !loop.refused(message.id, message.message)) say(message.message, true);
  if (message.type === "likeness" && twinOn) likeness.take(message);
  if (message.type === "preset") showPreset(message.name, message.sampler);
}

// ---------------------------------------------------------------- frames
function frame(header, pictures) {
  const step = loop.arrived(header);
  if (header.kind === "reset") command.keepHome();
  if (header.kind !== "step") takes.wentBack(header.n, header.kind === "reset");
  if (header.kind === "reset") likeness.clear();
  if (header.kind === "undo") likeness.cut(header.n);
  const decoded = pictures.map(({ name, blob }) => ({ name, bitmap: createImageBitmap(blob) }));
  undrawn += 1;
  drawing = drawing
    .then(() => draw(header, step, decoded))
    .catch((error) => say(String(error), true))
    .finally(() => (undrawn -= 1));
}

/** Draw a frame's pictures; where a step has several of the model, they are spread over its time. */
async function draw(header, step, decoded) {
  const count = decoded.filter(({ name }) => name === "model").length;
  let drawn = 0;
  for (const { name, bitmap } of decoded) {
    if (name === "model" && drawn > 0) await new Promise((done) => setTimeout(done, 1000 / welcome.fps / count - 1));
    views[name].show(await bitmap);
    if (name === "twin") $("twin-hint").hidden = true;
    if (name === "model" && header.kind === "step") measured(step, header, drawn++ === 0);
  }
}

/** Note when the screen shows what was drawn: with the next frame that the browser composes. */
function measured(step, header, first) {
  const note = () => {
    const now = performance.now();
    figures.picture(now);
    if (first) figures.step(step, header, now);
  };
  if (document.hidden) note();
  else requestAnimationFrame(note);
}

// ---------------------------------------------------------------- what a person does
function moved(pressed) {
  keyboard.show();
  $("hint").hidden = true;
  if (pressed !== null && loop.script) say("A replay is under way: Esc stops it.");
  loop.wake(pressed);
}

/** Begin anew, from the start in use or another. */
async function begin(name) {
  if (name === null || !link.open) return;
  const before = gallery.current;
  gallery.mark(name);
  if (twinOn) showTwin("The simulator is getting ready…");
  try {
    await loop.reset(name, gallery.seed);
    showHint();
  } catch (error) {
    if (!link.open) return;
    say(error.message, true);
    gallery.forget(name);
    if (loop.begun) gallery.mark(before);
    else if (gallery.current !== name) await begin(gallery.current);
  }
}

/** What to do first. */
function showHint() {
  const [first] = command.moves;
  $("hint").hidden = !first;
  if (!first) return;
  const touch = document.documentElement.classList.contains("touch") && !$("sticks").hidden;
  const what = first.group === "Drive" ? "drive" : `move ${plain(first.group)}`;
  $("hint").textContent = touch ? "Drag the left stick to drive" : `Hold ${first.cap} to ${what}. All keys: ?`;
}

async function choosePreset(name) {
  preset = name;
  try {
    await loop.held(() => link.ask({ type: "preset", name }));
  } catch (error) {
    say(error.message, true);
  }
}

function toggleTwin() {
  if (!welcome?.twin || !loop.begun) return;
  twinOn = !twinOn;
  return switchTwin();
}

/** Turn the true simulator on or off; no step is sent before it stands where the robot is. */
async function switchTwin() {
  const asked = () => link.ask({ type: "twin", on: twinOn });
  showTwin("The simulator is getting ready…");
  try {
    await (twinOn ? loop.held(asked) : asked());
    if (twinOn) showTwin("The simulator joins with the next step.");
  } catch (error) {
    say(error.message, true);
  }
}

function showTwin(text) {
  $("twin").hidden = $("model-caption").hidden = !twinOn;
  $("stage").classList.toggle("twins", twinOn);
  $("twin-button").setAttribute("aria-pressed", String(twinOn));
  views.twin.clear();
  likeness.clear();
  $("twin-hint").hidden = false;
  $("twin-hint").textContent = gallery.twin ? text : "There is no simulator for this start.";
}

function pause() {
  loop.paused = !loop.paused;
  showState();
}

function undo() {
  loop.undo(Math.max(1, Math.round(welcome.fps / 2))).catch((error) => say(error.message, true));
}

async function record() {
  const taking = takes.toggle();
  showState();
  await taking;
}

function home() {
  command.goHome();
  loop.wake();
}

const PAGE = {
  pause,
  undo,
  record,
  home,
  once: () => loop.once(),
  reset: () => begin(gallery.current),
  twin: toggleTwin,
  stop: () => takes.stop(),
  help: () => ($("legend").open ? $("legend").close() : $("legend").showModal()),
};

for (const id of ["pause", "undo", "reset", "record", "home", "help"]) $(id).addEventListener("click", () => PAGE[id]());
$("twin-button").addEventListener("click", toggleTwin);
$("gone-button").addEventListener("click", () => link.connect());
$("when-asked").addEventListener("change", (event) => (loop.whenAsked = event.target.checked));
$("jpeg").addEventListener("input", () => ($("jpeg-value").textContent = $("jpeg").value));
$("jpeg").addEventListener("change", () => link.open && link.send({ type: "quality", jpeg: Number($("jpeg").value) }));
for (const input of document.querySelectorAll("[name=pace]")) input.addEventListener("change", () => (loop.pace = input.value));
for (const input of document.querySelectorAll("[name=smooth]")) {
  input.addEventListener("change", () => {
    for (const view of Object.values(views)) view.smooth = input.value === "smooth";
  });
}
$("legend").addEventListener("click", (event) => event.target === $("legend") && $("legend").close());
// a button that was clicked with the mouse gives the space bar back to the world
document.addEventListener("click", (event) => event.detail > 0 && event.target.closest?.("button")?.blur());

// ---------------------------------------------------------------- what is shown
function showState() {
  $("pause").setAttribute("aria-pressed", String(loop.paused));
  $("pause-text").textContent = loop.paused ? "Go on" : "Pause";
  $("pause-icon").setAttribute("href", loop.paused ? "#i-play" : "#i-pause");
  $("pill-paused").hidden = !loop.paused;
  $("pill-replay").hidden = loop.script === null;
  const seconds = takes.seconds;
  $("record").setAttribute("aria-pressed", String(seconds !== null));
  $("record-text").textContent = seconds === null ? "Record" : "End";
  $("record-icon").setAttribute("href", seconds === null ? "#i-record" : "#i-stop");
  $("pill-record").hidden = seconds === null;
  if (seconds !== null) $("pill-record").textContent = `rec ${seconds.toFixed(1)} s`;
}

setInterval(() => {
  if (!welcome || document.hidden) return;
  showState();
  figures.show(loop.n, welcome.fps);
  sliders.show();
}, SHOW_MS);

/** For tests and the curious: what is going on, to look at and not to change. */
window.hwm = Object.freeze({
  get connected() { return link.open && loop.begun; },
  get session() { return welcome?.session ?? null; },
  get begins() { return loop.begins; },
  get n() { return loop.n; },
  get hash() { return loop.hashes.at(-1) ?? 0; },
  get hashes() { return [...loop.hashes]; },
  get applied() { return Object.fromEntries(command.actions.map(({ name }, i) => [name, command.applied[i]])); },
  get wanted() { return Object.fromEntries(command.actions.map(({ name }, i) => [name, command.wanted[i]])); },
  get inFlight() { return loop.inFlight + undrawn; },
  get idle() { return loop.idle && undrawn === 0; },
  get paused() { return loop.paused; },
  get replaying() { return loop.script !== null; },
  get fps() { return figures.fps; },
  get stepsPerSecond() { return welcome?.fps ?? null; },
  get drawn() { return figures.drawn; },
  get latencies() { return [...figures.latencies]; },
  get keyLatencies() { return [...figures.keyLatencies]; },
  get server() { return figures.server; },
  get likeness() { return likeness.last; },
});

link.connect();
