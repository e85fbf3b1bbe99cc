// A reader's gaze over time: fixations as circles that grow while the eye rests, numbered in order, with the scan path.

import { byId, fill, make, seconds } from "./dom.js";

const LEAST_RADIUS = 5; // screen pixels
const MOST_RADIUS = 26;
const RADIUS_OF_A_SECOND = 24; // the area of a circle tells how long the eye rested
const STRONG = 8; // the latest fixations, drawn at full strength
const CROWD = 40; // beyond so many, only the latest carry their number
const SAMPLE_LIFE = 0.25; // seconds that a sample stands for where the eye is
const INK = "#8fe3ff";
const EDGE = "rgba(6, 12, 18, 0.75)";
const EVERYBODY = "";

export class Replay {
  #gaze = null;
  #fixations = []; // {x, y, t, duration}, by time
  #samples = null; // {x, y, t}, by time; null where the gaze was stored as fixations
  #timed = false;
  #start = 0;
  #span = 0;
  #now = 0;
  #playing = false;
  #last = 0;
  #changed;
  #calm = matchMedia("(prefers-reduced-motion: reduce)");

  /** @param {() => void} changed called whenever what is drawn has changed */
  constructor(changed) {
    this.#changed = changed;
    byId("play").addEventListener("click", () => this.toggle());
    byId("fixation-back").addEventListener("click", () => this.step(-1));
    byId("fixation-on").addEventListener("click", () => this.step(1));
    byId("scrub").addEventListener("input", (event) => this.#seek(Number(event.target.value)));
    byId("reader").addEventListener("change", () => this.#choose());
    byId("gaze-shown").addEventListener("change", () => this.#changed());
    new ResizeObserver(() => this.#ticks()).observe(byId("ticks"));
  }

  get available() {
    return this.#gaze !== null;
  }

  /** Takes a study's gaze, as the server gives it, or null. */
  load(gaze) {
    this.#playing = false;
    this.#gaze = gaze;
    byId("replay").hidden = gaze === null;
    const names = gaze?.readers ?? [];
    const known = gaze !== null && names.length > 1 && (gaze.points.reader || gaze.fixations?.reader);
    byId("reader-field").hidden = !known;
    if (known) fill(byId("reader"), [...names.map((name) => [name, name]), [EVERYBODY, "All"]], names[0]);
    else fill(byId("reader"), [[EVERYBODY, "All"]], EVERYBODY);
    this.#choose();
  }

  /** Draws the timeline again, in the page's colours of now. */
  refresh() {
    this.#ticks();
  }

  toggle() {
    if (!this.#timed) return;
    this.#playing = !this.#playing;
    if (this.#playing) {
      byId("gaze-shown").checked = true;
      if (this.#now >= this.#span) this.#now = 0;
      this.#last = performance.now();
      requestAnimationFrame((time) => this.#tick(time));
    }
    this.#update();
  }

  /** To the end of the next (1) or previous (-1) fixation. */
  step(direction) {
    if (!this.#timed) return;
    const ends = this.#fixations.map((one) => one.t + one.duration);
    const slack = 1e-6;
    const target =
      direction > 0 ? ends.find((end) => end > this.#now + slack) : ends.findLast((end) => end < this.#now - slack);
    byId("gaze-shown").checked = true;
    this.#seek(target ?? (direction > 0 ? this.#span : 0));
  }

  toggleShown() {
    byId("gaze-shown").click();
  }

  /** Words for where the replay stands; empty where there is none on the screen. */
  describe() {
    if (!this.#gaze || !byId("gaze-shown").checked) return "";
    if (!this.#timed) return `${this.#fixations.length} points of gaze`;
    const count = this.#begun().length;
    return `gaze at ${this.#shown().toFixed(1)} of ${this.#span.toFixed(1)} seconds, ${count} of ${this.#fixations.length} fixations`;
  }

  draw(context, stage) {
    if (!this.#gaze || !byId("gaze-shown").checked) return;
    if (!this.#timed) {
      for (const { x, y } of this.#fixations) ring(context, ...stage.toScreen(x, y), LEAST_RADIUS, 0.8);
      return;
    }
    const now = this.#shown();
    const begun = this.#begun();
    const places = begun.map(({ x, y }) => stage.toScreen(x, y));
    const strength = begun.map((_, index) => (begun.length - index <= STRONG ? 1 : 0.38));
    for (let index = 1; index < places.length; index += 1) {
      line(context, places[index - 1], places[index], 0.8 * strength[index]);
    }
    const eye = this.#eye(now);
    if (eye && (this.#playing || now < this.#span)) point(context, ...stage.toScreen(...eye));
    begun.forEach(({ t, duration }, index) => {
      const rested = this.#calm.matches ? duration : Math.min(now - t, duration);
      const radius = Math.min(LEAST_RADIUS + RADIUS_OF_A_SECOND * Math.sqrt(Math.max(rested, 0)), MOST_RADIUS);
      ring(context, ...places[index], radius, strength[index]);
      if (begun.length <= CROWD || begun.length - index <= STRONG) {
        number(context, index + 1, ...places[index], strength[index]);
      }
    });
  }

  #choose() {
    const reader = byId("reader").value;
    const { points, kind, readers = [] } = this.#gaze ?? { points: { x: [], y: [] } };
    const rows = (columns) =>
      columns.x
        .map((x, index) => ({
          x,
          y: columns.y[index],
          t: columns.t?.[index] ?? null,
          duration: columns.duration?.[index] ?? 0,
          reader: columns.reader ? readers[columns.reader[index]] : null,
        }))
        .filter((row) => reader === EVERYBODY || row.reader === null || row.reader === reader);
    const all = rows(points);
    this.#timed = all.length > 0 && all.every((row) => row.t !== null);
    const given = kind === "samples" && this.#timed ? rows(this.#gaze.fixations) : all;
    const byTime = (one, other) => one.t - other.t;
    this.#start = this.#timed ? Math.min(...extent(all), ...extent(given)) : 0;
    const moved = (list) => list.map((row) => ({ ...row, t: row.t - this.#start })).sort(byTime);
    this.#fixations = this.#timed ? moved(given) : given;
    this.#samples = this.#timed && kind === "samples" ? moved(all) : null;
    const last = (list) => list.reduce((end, row) => Math.max(end, row.t + row.duration), 0);
    this.#span = this.#timed ? Math.max(last(this.#fixations), last(this.#samples ?? [])) : 0;
    this.#now = 0;
    for (const id of ["play", "fixation-back", "fixation-on", "scrub", "speed"]) byId(id).disabled = !this.#timed;
    byId("scrub").max = this.#span.toFixed(3);
    this.#update();
  }

  #tick(time) {
    if (!this.#playing) return;
    this.#now += ((time - this.#last) / 1000) * Number(byId("speed").value);
    this.#last = time;
    if (this.#now >= this.#span) {
      this.#now = this.#span;
      this.#playing = false;
    }
    this.#update();
    if (this.#playing) requestAnimationFrame((next) => this.#tick(next));
  }

  #seek(now) {
    this.#now = Math.min(Math.max(now, 0), this.#span);
    this.#update();
  }

  /** The time that is drawn. Where motion is not wanted, a fixation appears at once and whole. */
  #shown() {
    if (!this.#calm.matches) return this.#now;
    const latest = this.#fixations.findLast((one) => one.t <= this.#now);
    return latest ? Math.min(latest.t + latest.duration, this.#span) : this.#now;
  }

  #begun() {
    return this.#fixations.filter((one) => one.t <= this.#now);
  }

  /** Where the eye is: the latest sample, or on its way between two fixations; null in a gap. */
  #eye(now) {
    if (this.#samples) {
      const sample = this.#samples[after(this.#samples, now) - 1];
      return sample && now - sample.t <= SAMPLE_LIFE ? [sample.x, sample.y] : null;
    }
    const index = after(this.#fixations, now) - 1;
    const [here, next] = [this.#fixations[index], this.#fixations[index + 1]];
    if (!here) return null;
    const left = here.t + here.duration;
    if (now <= left || !next || this.#calm.matches) return [here.x, here.y];
    const share = (now - left) / Math.max(next.t - left, 1e-6);
    return [here.x + share * (next.x - here.x), here.y + share * (next.y - here.y)];
  }

  #update() {
    const count = this.#begun().length;
    byId("play").setAttribute("aria-label", this.#playing ? "Pause the gaze" : "Play the gaze");
    byId("play").classList.toggle("playing", this.#playing);
    byId("scrub").value = String(this.#now);
    const words = `${this.#now.toFixed(1)} of ${this.#span.toFixed(1)} seconds, fixation ${count} of ${this.#fixations.length}`;
    byId("scrub").setAttribute("aria-valuetext", this.#timed ? words : "no times");
    byId("clock").replaceChildren(
      ...(this.#timed
        ? [`${this.#now.toFixed(1)} / ${seconds(this.#span)}`, make("small", {}, `fixation ${count} of ${this.#fixations.length}`)]
        : [`${this.#fixations.length} points`, make("small", {}, "stored without times")]),
    );
    this.#ticks();
    this.#changed();
  }

  /** When the eye rested, along the slider. */
  #ticks() {
    const canvas = byId("ticks");
    const density = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    canvas.width = Math.round(width * density);
    canvas.height = Math.round(height * density);
    if (!this.#timed || !this.#span) return;
    const context = canvas.getContext("2d");
    context.scale(density, density);
    const style = getComputedStyle(canvas);
    const [done, coming] = [style.getPropertyValue("--accent"), style.getPropertyValue("--axis")];
    for (const { t, duration } of this.#fixations) {
      context.fillStyle = t <= this.#now ? done : coming;
      const left = (t / this.#span) * width;
      context.fillRect(left, 0, Math.max((duration / this.#span) * width - 0.5, 1), height);
    }
  }
}

function extent(rows) {
  let least = Infinity;
  for (const { t } of rows) least = Math.min(least, t);
  return [least];
}

/** How many rows, sorted by t, lie at or before `now`. */
function after(rows, now) {
  let [low, high] = [0, rows.length];
  while (low < high) {
    const half = (low + high) >> 1;
    if (rows[half].t <= now) low = half + 1;
    else high = half;
  }
  return low;
}

function ring(context, left, top, radius, alpha) {
  context.save();
  context.globalAlpha = alpha;
  context.beginPath();
  context.arc(left, top, radius, 0, 2 * Math.PI);
  context.fillStyle = "rgba(143, 227, 255, 0.14)";
  context.fill();
  for (const [colour, width] of [[EDGE, 3.6], [INK, 1.6]]) {
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.stroke();
  }
  context.restore();
}

function line(context, from, to, alpha) {
  context.save();
  context.globalAlpha = alpha;
  context.beginPath();
  context.moveTo(...from);
  context.lineTo(...to);
  for (const [colour, width] of [[EDGE, 2.6], [INK, 1.1]]) {
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.stroke();
  }
  context.restore();
}

function number(context, value, left, top, alpha) {
  context.save();
  context.globalAlpha = alpha;
  context.font = "600 11px Inter, system-ui, sans-serif";
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.lineJoin = "round";
  context.lineWidth = 3;
  context.strokeStyle = EDGE;
  context.strokeText(String(value), left, top + 0.5);
  context.fillStyle = "#ffffff";
  context.fillText(String(value), left, top + 0.5);
  context.restore();
}

function point(context, left, top) {
  context.save();
  context.beginPath();
  context.arc(left, top, 4.5, 0, 2 * Math.PI);
  context.fillStyle = "#ffcf5a";
  context.strokeStyle = EDGE;
  context.lineWidth = 2;
  context.fill();
  context.stroke();
  context.restore();
}
