// What a person can make the robot do, by which key and which button of a gamepad. Keys are places on the keyboard, so
// that they lie together in any layout.
//
// A move drives velocities while it is held (`velocity`, 1 the highest and -1 the lowest of the data), moves joints as
// long as it is held (`rate`, in proportion to each other; the first joint's limit ends the move), or opens and closes
// a hand (`toggle`). A robot of which no move is known has a pair of keys for each of its first actions.

import { plain } from "./ui.js";

const move = (id, group, label, cap, keys, pad, how) => ({ id, group, label, cap, keys, pad, ...how });

const MOVES = [
  move("forward", "Drive", "forward", "W", ["KeyW", "ArrowUp"], "left stick up", { velocity: { LINEAR_VELOCITY: 1 } }),
  move("left", "Drive", "turn left", "A", ["KeyA", "ArrowLeft"], "left stick left", { velocity: { ANGULAR_VELOCITY: 1 } }),
  move("backward", "Drive", "backward", "S", ["KeyS", "ArrowDown"], "left stick down", { velocity: { LINEAR_VELOCITY: -1 } }),
  move("right", "Drive", "turn right", "D", ["KeyD", "ArrowRight"], "left stick right", { velocity: { ANGULAR_VELOCITY: -1 } }),
  move("left-hand", "Hands", "left", "Q", ["KeyQ"], "X", { toggle: "LEFT_HAND_CLOSURE" }),
  move("right-hand", "Hands", "right", "E", ["KeyE"], "B", { toggle: "RIGHT_HAND_CLOSURE" }),
  move("stand", "Height", "stand up", "R", ["KeyR"], "pad up", { rate: { ANKLE_PITCH: -1, KNEE_PITCH: -2, HIP_PITCH: -1 } }),
  move("squat", "Height", "squat", "F", ["KeyF"], "pad down", { rate: { ANKLE_PITCH: 1, KNEE_PITCH: 2, HIP_PITCH: 1 } }),
  move("waist-left", "Waist", "twist left", "X", ["KeyX"], "right stick left", { rate: { HIP_YAW: 1 } }),
  move("waist-right", "Waist", "twist right", "C", ["KeyC"], "right stick right", { rate: { HIP_YAW: -1 } }),
  move("look-up", "Look", "up", "I", ["KeyI"], "right stick up", { rate: { NECK_PITCH: -1 } }),
  move("look-down", "Look", "down", "K", ["KeyK"], "right stick down", { rate: { NECK_PITCH: 1 } }),
  move("left-arm-up", "Left arm", "raise", "U", ["KeyU"], "LB", { rate: { LEFT_SHOULDER_PITCH: -1 } }),
  move("left-arm-down", "Left arm", "lower", "J", ["KeyJ"], "LT", { rate: { LEFT_SHOULDER_PITCH: 1 } }),
  move("right-arm-up", "Right arm", "raise", "O", ["KeyO"], "RB", { rate: { RIGHT_SHOULDER_PITCH: -1 } }),
  move("right-arm-down", "Right arm", "lower", "L", ["KeyL"], "RT", { rate: { RIGHT_SHOULDER_PITCH: 1 } }),
];

/** Groups of keys that stand to the left of the picture, with the hand that reaches them; the others to the right. */
const LEFT = ["Drive", "Hands", "Height", "Waist"];

/** Keys for actions without moves of their own, one to raise and one to lower a value: columns of the keyboard. */
const PAIRS = ["QA", "WS", "ED", "RF", "TG", "UJ", "IK", "OL"];
const LEFT_PAIRS = 5;
const AXES = [
  ["left stick right", "left stick left"],
  ["left stick up", "left stick down"],
  ["right stick right", "right stick left"],
  ["right stick up", "right stick down"],
];

/** Keys of the page itself: what they do, and the button of a gamepad that does the same. */
export const PAGE_KEYS = [
  { id: "pause", cap: "Space", keys: ["Space"], pad: "Start", label: "stop and go on" },
  { id: "once", cap: ".", keys: ["Period"], pad: null, label: "one step, while time stands still" },
  { id: "undo", cap: "Z", keys: ["KeyZ", "Backspace"], pad: "Y", label: "undo half a second; hold to go further back" },
  { id: "reset", cap: "N", keys: ["KeyN"], pad: "Back", label: "start anew" },
  { id: "home", cap: "H", keys: ["KeyH"], pad: "A", label: "back to the pose of the start" },
  { id: "record", cap: "V", keys: ["KeyV"], pad: null, label: "start and end a recording" },
  { id: "twin", cap: "B", keys: ["KeyB"], pad: null, label: "the true simulator beside it" },
  { id: "stop", cap: "Esc", keys: ["Escape"], pad: null, label: "stop a replay" },
  { id: "swift", cap: "Shift", keys: [], pad: null, label: "held: as fast as the data knows" },
  { id: "help", cap: "?", keys: [], pad: null, label: "this list" },
];

const needs = (move) => Object.keys(move.velocity ?? move.rate ?? { [move.toggle]: 0 });

/** The moves of a robot with these actions, each with the `side` of the picture that its key stands on. */
export function movesOf(actions) {
  const names = actions.map((action) => action.name);
  const known = MOVES.filter((move) => needs(move).every((name) => names.includes(name)));
  if (!known.length) return pairsOf(actions);
  return known.map((move) => ({ ...move, side: LEFT.includes(move.group) ? "left" : "right" }));
}

/** A pair of keys for each of the first actions that vary: a velocity runs while its key is held, a position moves on. */
function pairsOf(actions) {
  const free = actions.filter(({ low, high }) => high > low).slice(0, PAIRS.length);
  return free.flatMap(({ name, rest }, i) =>
    [["more", "more", 1], ["less", "less", -1]].map(([id, label, sign], k) => ({
      ...move(`${id}-${i}`, plain(name), label, PAIRS[i][k], [`Key${PAIRS[i][k]}`], AXES[i]?.[k], {
        [rest === null ? "rate" : "velocity"]: { [name]: sign },
      }),
      side: i < LEFT_PAIRS ? "left" : "right",
      pair: true,
    })));
}
