// What the server says, as the page uses it. Every failure becomes a ServerError whose message is one sentence.

const PATIENCE = 120_000; // milliseconds until a request is given up
const RETRIES = 3; // while the server is busy

export class ServerError extends Error {
  constructor(sentence, status = 0) {
    super(sentence);
    this.name = "ServerError";
    this.status = status;
  }
}

export class Server {
  #token;
  #ask;
  #asking = null;
  #busy;

  /**
   * @param {string|null} token sent with every request
   * @param {(refused: boolean) => Promise<string|null>} ask asks the user for a token; null where they give none
   * @param {(seconds: number) => void} busy told when the server is busy and the request waits
   */
  constructor(token, ask, busy) {
    this.#token = token;
    this.#ask = ask;
    this.#busy = busy;
  }

  models() {
    return this.#json("v1/models");
  }

  studies(filters, offset, limit, signal) {
    return this.#json("v1/cohort/studies", { query: { ...filters, offset, limit }, signal });
  }

  async study(index, signal) {
    const entry = await this.#json(`v1/cohort/studies/${index}`, { signal });
    return { ...entry, preview: readPreview(entry.preview) };
  }

  /** The reader's gaze, or null where the study has none. */
  async gaze(index, signal) {
    try {
      return await this.#json(`v1/cohort/studies/${index}/gaze`, { signal });
    } catch (error) {
      if (error.status === 404) return null;
      throw error;
    }
  }

  async predictStudy(index, model, signal) {
    return readPrediction(await this.#json(`v1/cohort/studies/${index}/predict`, { query: { model }, signal }));
  }

  async predictImage(file, model, preview, signal) {
    const body = new FormData();
    body.append("image", file, file.name);
    const query = { model, maps: true, preview };
    return readPrediction(await this.#json("v1/predict", { query, body, signal }));
  }

  async #json(path, { query = {}, body = null, signal = null } = {}) {
    const given = Object.entries(query).filter(([, value]) => value !== "" && value !== null && value !== undefined);
    const address = given.length ? `${path}?${new URLSearchParams(given)}` : path;
    for (let attempt = 0; ; attempt += 1) {
      const token = this.#token;
      const answer = await send(address, body, token, signal);
      if (answer.ok) return parsed(answer);
      if (answer.status === 401) {
        await this.#renew(token);
        attempt -= 1;
        continue;
      }
      const content = await parsed(answer).catch(() => null);
      const sentence = content?.error ?? `The server answered with status ${answer.status}; look at its log.`;
      if (answer.status !== 503 || attempt >= RETRIES) throw new ServerError(sentence, answer.status);
      const wait = Math.min(Math.max(Number(answer.headers.get("Retry-After")) || 1, 0.2), 10);
      this.#busy(wait);
      await pause(wait * 1000, signal);
    }
  }

  /** Asks for a token once, however many requests were refused with the old one. */
  async #renew(refused) {
    if (refused !== this.#token) return;
    this.#asking ??= this.#ask(refused !== null).finally(() => (this.#asking = null));
    const token = await this.#asking;
    if (token === null) throw new ServerError("This server answers only with its token; reload the page to enter it.", 401);
    this.#token = token;
  }
}

async function send(address, body, token, signal) {
  const limit = AbortSignal.timeout(PATIENCE);
  try {
    return await fetch(address, {
      method: body ? "POST" : "GET",
      body,
      headers: token === null ? {} : { Authorization: `Bearer ${token}` },
      signal: signal ? AbortSignal.any([signal, limit]) : limit,
      credentials: "omit",
      cache: "no-store",
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    if (limit.aborted) {
      throw new ServerError(`The server gave no answer within ${PATIENCE / 1000} s; try again, or look at its log.`);
    }
    throw new ServerError("The server cannot be reached; check that radgaze serve is still running.");
  }
}

async function parsed(answer) {
  try {
    return await answer.json();
  } catch {
    throw new ServerError("The server's answer broke off or is no JSON; try again, or look at its log.", answer.status);
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

function bytes(base64) {
  const text = atob(base64);
  const found = new Uint8Array(text.length);
  for (let index = 0; index < text.length; index += 1) found[index] = text.charCodeAt(index);
  return found.buffer;
}

/** A map with `values` (Float32Array, row by row) in place of its base64. */
function readMap({ data, ...map }) {
  return { ...map, values: new Float32Array(bytes(data)) };
}

function readPreview({ data, ...preview }) {
  return { ...preview, values: new Uint16Array(bytes(data)) };
}

/** A prediction whose `maps` hold numbers; the reader's attention comes as one of them, named "human". */
function readPrediction({ maps = {}, human = null, preview = null, ...rest }) {
  const named = human ? { ...maps, human } : maps;
  return {
    ...rest,
    maps: new Map(Object.entries(named).map(([name, map]) => [name, readMap(map)])),
    preview: preview && readPreview(preview),
  };
}
