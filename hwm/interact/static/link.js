// The connection: messages out, messages and frames in, and back again after the server went away.

const TOKEN = new URLSearchParams(location.search).get("token");
const FIRST_WAIT = 500;
const LONGEST_WAIT = 8000;

/** An address of the server, with the token that this page was opened with. */
export function address(path, query = {}) {
  const url = new URL(path, document.baseURI);
  for (const [key, value] of Object.entries(query)) url.searchParams.set(key, value);
  if (TOKEN) url.searchParams.set("token", TOKEN);
  return url;
}

/** Ask for a file of the server, or send it one; throws an Error with the server's own words. */
export async function request(path, query = {}, options = {}) {
  let answer;
  try {
    answer = await fetch(address(path, query), options);
  } catch {
    throw new Error("The server cannot be reached.");
  }
  if (!answer.ok) {
    const said = await answer.json().catch(() => ({}));
    throw new Error(said.error ?? `The server answered ${answer.status}.`);
  }
  return answer;
}

/**
 * Calls `on.welcome(message)`, `on.frame(header, pictures)`, `on.message(message)`, and
 * `on.down(reason, milliseconds until the next try or null)`.
 */
export class Link {
  #on;
  #socket = null;
  #asked = new Map();
  #id = 0;
  #wait = FIRST_WAIT;
  #timer = null;

  constructor(on) {
    this.#on = on;
  }

  get open() {
    return this.#socket?.readyState === WebSocket.OPEN;
  }

  connect() {
    clearTimeout(this.#timer);
    const url = address("ws");
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(url);
    socket.binaryType = "arraybuffer";
    socket.onmessage = ({ data }) => (typeof data === "string" ? this.#text(JSON.parse(data)) : this.#binary(data));
    socket.onclose = ({ code, reason }) => this.#closed(code, reason);
    this.#socket = socket;
  }

  /** Send a message; its id, by which the answer is known. */
  send(message) {
    const id = ++this.#id;
    this.#socket.send(JSON.stringify({ ...message, id }));
    return id;
  }

  /** Send a message; a promise of its answer, that of a frame being the frame's header. */
  ask(message) {
    return new Promise((resolve, reject) => {
      if (!this.open) reject(new Error("The server is away."));
      else this.#asked.set(this.send(message), { resolve, reject });
    });
  }

  #text(message) {
    if (message.type === "welcome") {
      this.#wait = FIRST_WAIT;
      this.#on.welcome(message);
    } else if (message.type === "error" && this.#asked.has(message.id)) {
      this.#answer(message.id, (asked) => asked.reject(new Error(message.message)));
    } else {
      this.#on.message(message);
      this.#answer(message.id, (asked) => asked.resolve(message));
    }
  }

  #binary(buffer) {
    const size = new DataView(buffer).getUint32(0);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, size)));
    let at = 4 + size;
    const pictures = header.pictures.map(({ name, mime, bytes }) => {
      const blob = new Blob([new Uint8Array(buffer, at, bytes)], { type: mime });
      at += bytes;
      return { name, blob };
    });
    this.#on.frame(header, pictures);
    this.#answer(header.id, (asked) => asked.resolve(header));
  }

  #answer(id, how) {
    const asked = this.#asked.get(id);
    this.#asked.delete(id);
    if (asked) how(asked);
  }

  #closed(code, reason) {
    for (const { reject } of this.#asked.values()) reject(new Error("The server went away."));
    this.#asked.clear();
    // 1000: sent away for being idle, 1008: not allowed. To come back by itself would help in neither case.
    const again = code === 1000 || code === 1008 ? null : this.#wait;
    if (again !== null) {
      this.#timer = setTimeout(() => this.connect(), again);
      this.#wait = Math.min(2 * this.#wait, LONGEST_WAIT);
    }
    this.#on.down(reason, again);
  }
}
