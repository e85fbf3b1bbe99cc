// The cohort's studies: filters, and a list that holds only the rows on the screen, however many there are.

import { byId, fill, labels, make } from "./dom.js";

const ROW = 48; // pixels, as in style.css
const PAGE = 50;
const AROUND = 4; // rows kept above and below the screen
const REST = 180; // milliseconds without a key before a search starts

export class Studies {
  #server;
  #chosen;
  #failed;
  #pages = new Map(); // number -> promise of its entries
  #known = new Map(); // position -> entry
  #rows = new Map(); // position -> element
  #total = 0;
  #position = -1;
  #index = null; // of the study that is shown
  #stop = new AbortController();
  #timer = 0;
  #round = 0;

  /**
   * @param {(entry: object) => void} chosen called with the entry of a study that the user chose
   * @param {(error: Error) => void} failed
   */
  constructor(server, chosen, failed) {
    this.#server = server;
    this.#chosen = chosen;
    this.#failed = failed;
  }

  /** Shows the cohort, and opens its first study. */
  async start(cohort) {
    byId("studies").hidden = false;
    byId("studies-toggle").hidden = false;
    byId("cohort-name").textContent = cohort.name;
    fill(byId("split"), [["", "All splits"], ...cohort.splits.map((name) => [name, name])], "");
    fill(byId("label"), [["", "All labels"], ...cohort.classes.map((name) => [name, name])], "");
    byId("label").hidden = cohort.classes.length === 0;
    byId("with-gaze-label").hidden = !cohort.gaze;
    for (const id of ["split", "label", "with-gaze"]) byId(id).addEventListener("change", () => this.#filter());
    byId("search").addEventListener("input", () => {
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.#filter(), REST);
    });
    byId("search").addEventListener("keydown", (event) => {
      if (event.key === "Enter") this.step(1);
    });
    const list = byId("rows");
    list.addEventListener("scroll", () => this.#draw());
    list.addEventListener("keydown", (event) => this.#key(event));
    list.addEventListener("click", (event) => {
      const row = event.target.closest("[role=option]");
      if (row) this.open(Number(row.dataset.position));
    });
    new ResizeObserver(() => this.#draw()).observe(list);
    await this.#filter();
    if (this.#total) await this.open(0);
  }

  get available() {
    return !byId("studies").hidden;
  }

  /** To the next (1) or previous (-1) study of the list. */
  async step(by) {
    if (this.#timer) {
      clearTimeout(this.#timer);
      this.#timer = 0;
      if (this.#pending()) await this.#filter();
    }
    const from = this.#position < 0 && by < 0 ? this.#total : this.#position;
    await this.open(Math.min(Math.max(from + by, 0), this.#total - 1));
  }

  async open(position) {
    if (position < 0 || position >= this.#total) return;
    const round = this.#round;
    try {
      await this.#page(Math.floor(position / PAGE));
    } catch (error) {
      this.#failed(error);
      return;
    }
    const entry = this.#known.get(position);
    if (round !== this.#round || !entry || entry.index === this.#index) {
      if (entry) this.#reveal(position);
      return;
    }
    this.#position = position;
    this.#index = entry.index;
    this.#reveal(position);
    this.#chosen(entry);
  }

  /** No study of the list is shown any more. */
  leave() {
    this.#position = -1;
    this.#index = null;
    this.#draw(true);
  }

  #query() {
    return {
      search: byId("search").value.trim(),
      split: byId("split").value,
      label: byId("label").value,
      gaze: byId("with-gaze").checked ? true : null,
    };
  }

  #asked = null;

  #pending() {
    return JSON.stringify(this.#query()) !== this.#asked;
  }

  async #filter() {
    this.#stop.abort();
    this.#stop = new AbortController();
    this.#round += 1;
    const round = this.#round;
    this.#asked = JSON.stringify(this.#query());
    this.#pages.clear();
    this.#known.clear();
    this.#position = -1;
    byId("rows").scrollTop = 0;
    try {
      await this.#page(0);
    } catch (error) {
      if (round === this.#round) this.#failed(error);
      return;
    }
    if (round !== this.#round) return;
    const narrowed = Object.values(this.#query()).some(Boolean);
    const words = this.#total === 1 ? "1 study" : `${this.#total.toLocaleString("en")} studies`;
    byId("total").textContent = this.#total || !narrowed ? words : "No study matches these filters.";
    for (const [position, entry] of this.#known) if (entry.index === this.#index) this.#position = position;
    this.#draw(true);
  }

  #page(number) {
    if (!this.#pages.has(number)) {
      const [round, signal] = [this.#round, this.#stop.signal];
      const asked = this.#server.studies(this.#query(), number * PAGE, PAGE, signal).then(
        ({ total, studies }) => {
          if (round !== this.#round) return;
          this.#total = total;
          studies.forEach((entry, place) => this.#known.set(number * PAGE + place, entry));
        },
        (error) => {
          this.#pages.delete(number);
          throw error;
        },
      );
      this.#pages.set(number, asked);
    }
    return this.#pages.get(number);
  }

  #reveal(position) {
    const list = byId("rows");
    const top = position * ROW;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
    this.#draw(true);
  }

  #key(event) {
    const screen = Math.max(1, Math.floor(byId("rows").clientHeight / ROW) - 1);
    const to = {
      ArrowDown: this.#position + 1,
      ArrowUp: this.#position - 1,
      PageDown: this.#position + screen,
      PageUp: this.#position - screen,
      Home: 0,
      End: this.#total - 1,
    }[event.key];
    if (to === undefined || event.shiftKey || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    this.open(Math.min(Math.max(to, 0), this.#total - 1));
  }

  #draw(anew = false) {
    const [list, spacer] = [byId("rows"), byId("spacer")];
    spacer.style.height = `${this.#total * ROW}px`;
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - AROUND);
    const last = Math.min(this.#total - 1, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + AROUND);
    for (const [position, element] of this.#rows) {
      if (anew || position < first || position > last) {
        element.remove();
        this.#rows.delete(position);
      }
    }
    for (let position = first; position <= last; position += 1) {
      const entry = this.#known.get(position);
      if (!entry) {
        const round = this.#round;
        this.#page(Math.floor(position / PAGE)).then(
          () => round === this.#round && this.#known.has(position) && !this.#rows.has(position) && this.#draw(),
          (error) => round === this.#round && this.#failed(error),
        );
      } else if (!this.#rows.has(position)) {
        const row = this.#row(position, entry);
        this.#rows.set(position, row);
        spacer.append(row);
      }
    }
    const active = this.#rows.get(this.#position);
    if (active) list.setAttribute("aria-activedescendant", active.id);
    else list.removeAttribute("aria-activedescendant");
  }

  #row(position, entry) {
    const facts = [...labels(entry.label), entry.split].filter(Boolean).join(" · ");
    const row = make(
      "div",
      {
        id: `study-${position}`,
        class: "row",
        role: "option",
        "aria-selected": String(entry.index === this.#index),
        "aria-setsize": this.#total,
        "aria-posinset": position + 1,
        "data-position": position,
      },
      make("span", { class: "id" }, String(entry.study_id)),
      make("span", { class: "facts" }, facts),
      entry.gaze_count ? make("span", { class: "gazed", title: `${entry.gaze_count} points of gaze` }, "gaze") : null,
    );
    row.style.top = `${position * ROW}px`;
    return row;
  }
}
