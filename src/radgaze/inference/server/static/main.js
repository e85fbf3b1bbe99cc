// The page: what is open, which runs look at it, and what every control and key does.

import { Server, ServerError } from "./api.js";
import { byId, called, figures, fill } from "./dom.js";
import { showFindings, spoken } from "./findings.js";
import { COLOURS, Picture, heat, highest, legend, relative } from "./raster.js";
import { Replay } from "./replay.js";
import { Stage, View } from "./stage.js";
import { Studies } from "./studies.js";

const KEPT = 24; // predictions held for going back and forth
const REST = 120; // milliseconds a study stays chosen before the networks are asked: held keys skip through the list
const PATIENT = 400; // milliseconds of waiting before the page says what it waits for
const STEP = 40; // screen pixels of a pan by key
const AUTOMATIC = null; // an overlay nobody chose: attention, else the evidence for the likeliest class

const view = new View();
const replay = new Replay(() => refresh());
const panes = [makePane(0), makePane(1)];
const server = new Server(tokenOfAddress(), askToken, (wait) => tellWait(`The server is busy; trying again in ${Math.ceil(wait)} s`));
const studies = new Studies(server, openStudy, fail);

let models = [];
let layout = "single";
let subject = null; // {key, name, picture, entry, file, gaze} of what is open
let stop = new AbortController(); // of what is being opened
let uploads = 0;
let waits = 0;
let waitTimer = 0;
const predictions = new Map(); // subject and run -> prediction, the latest last

// ---------------------------------------------------------------------------------------------------------------------
// Opening
// ---------------------------------------------------------------------------------------------------------------------

async function start() {
  byId("host").textContent = location.host;
  try {
    const found = await waiting("Asking the server for its runs", () => server.models());
    models = found.models;
    panes.forEach((pane, index) => (pane.model = models[Math.min(index, models.length - 1)]?.name ?? null));
    byId("about").textContent = models.map(({ name, card }) => `${name}: ${card.method}${trainedOn(card)}`).join("   ");
    arrange();
    if (found.cohort) await studies.start(found.cohort);
  } catch (error) {
    fail(error, start);
  }
}

function trainedOn(card) {
  return card.facts?.trained_on ? `, trained on ${card.facts.trained_on}` : "";
}

function begin() {
  stop.abort();
  stop = new AbortController();
  clearFailure();
  return stop.signal;
}

async function openStudy(entry) {
  const signal = begin();
  closeDrawer();
  try {
    await waiting(`Opening ${entry.study_id}`, async () => {
      await rest(signal);
      const [study, gaze] = await Promise.all([
        server.study(entry.index, signal),
        entry.gaze_count === 0 ? null : server.gaze(entry.index, signal),
      ]);
      show({ key: `study ${entry.index}`, name: String(study.study_id), entry: study, file: null, gaze }, study);
      await predict(signal);
    });
  } catch (error) {
    fail(error, () => openStudy(entry));
  }
}

async function openFile(files) {
  const file = files[0];
  if (!file) return;
  const signal = begin();
  try {
    await waiting(`Reading ${file.name}`, async () => {
      const first = panes[0].model;
      const prediction = await server.predictImage(file, first, true, signal);
      studies.leave();
      show({ key: `file ${(uploads += 1)}`, name: file.name, entry: null, file, gaze: null }, prediction);
      keep(first, prediction);
      await predict(signal);
    });
    if (files.length > 1) say(`${files.length} files were dropped; the first is open: ${file.name}.`, true);
  } catch (error) {
    fail(error, error instanceof ServerError && error.status < 500 && error.status !== 0 ? null : () => openFile(files));
  }
}

function show(opened, { height, width, preview }) {
  subject = { ...opened, picture: new Picture({ name: opened.name, height, width, preview }) };
  byId("empty").hidden = true;
  view.show(subject.picture);
  replay.load(subject.gaze);
  arrange();
}

/** Asks every run that is shown for its prediction of what is open, once. */
async function predict(signal = stop.signal) {
  if (!subject) return;
  const asked = subject;
  const missing = shownModels().filter((model) => !prediction(model));
  const asking = await Promise.allSettled(
    missing.map(async (model) => {
      const found = asked.file
        ? await server.predictImage(asked.file, model, false, signal)
        : await server.predictStudy(asked.entry.index, model, signal);
      if (subject === asked) keep(model, found);
    }),
  );
  if (subject !== asked) return;
  arrange();
  const refused = asking.find(({ status }) => status === "rejected"); // the other run's answer is shown nevertheless
  if (refused) throw refused.reason;
  say(spoken(asked.name, answers()));
}

function predictAgain() {
  if (!subject) return;
  waiting("Asking the network", () => predict()).catch((error) => fail(error, predictAgain));
}

function keep(model, found) {
  predictions.set(`${subject.key} ${model}`, found);
  while (predictions.size > KEPT) predictions.delete(predictions.keys().next().value);
}

function prediction(model) {
  return subject ? (predictions.get(`${subject.key} ${model}`) ?? null) : null;
}

function rest(signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, REST);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

// ---------------------------------------------------------------------------------------------------------------------
// Panes: a run, its overlay, and the legend
// ---------------------------------------------------------------------------------------------------------------------

function makePane(index) {
  const root = byId(`pane-${index}`);
  const part = (name) => root.querySelector(`[data-part=${name}]`);
  const pane = { root, part, index, model: null, wanted: AUTOMATIC, overlay: "none", last: null, drawn: null };
  pane.stage = new Stage(part("canvas"), view);
  pane.stage.marks = (context, stage) => replay.draw(context, stage);
  part("model").addEventListener("change", (event) => {
    pane.model = event.target.value;
    if (layout === "reader") panes[1].model = pane.model;
    arrange();
    predictAgain();
  });
  part("overlay").addEventListener("change", (event) => {
    pane.wanted = event.target.value;
    arrange();
  });
  return pane;
}

function shownPanes() {
  return layout === "single" ? panes.slice(0, 1) : panes;
}

function shownModels() {
  return [...new Set(shownPanes().map((pane) => pane.model))];
}

function answers() {
  return shownModels().map((name) => {
    const pane = shownPanes().find((one) => one.model === name);
    return { model: models.find((one) => one.name === name), prediction: prediction(name), overlay: pane.overlay };
  });
}

function overlays(pane) {
  return ["none", ...(prediction(pane.model)?.maps.keys() ?? [])];
}

/** The overlay of a pane: what was chosen, or the best there is. */
function overlayOf(pane) {
  const known = overlays(pane);
  if (layout === "reader" && pane.index === 1 && known.includes("human")) return "human";
  if (known.includes(pane.wanted)) return pane.wanted;
  if (known.includes("attention")) return "attention";
  const likeliest = `cam:${prediction(pane.model)?.predicted}`;
  return known.includes(likeliest) ? likeliest : (known.find((name) => name.startsWith("cam:")) ?? "none");
}

/** Brings the page to what is open, which runs look at it, and what they said. */
function arrange() {
  const several = models.length > 1;
  const withReader = Boolean(subject?.gaze) || subject === null;
  const possible = { single: true, reader: studies.available && withReader, runs: several };
  if (!possible[layout]) layout = "single";
  byId("layout").hidden = !studies.available && !several;
  for (const button of byId("layout").children) {
    button.setAttribute("aria-pressed", String(button.dataset.layout === layout));
    button.disabled = !possible[button.dataset.layout];
    button.hidden = button.dataset.layout === "reader" ? !studies.available : button.dataset.layout === "runs" && !several;
  }
  byId("panes").classList.toggle("two", layout !== "single");
  panes[1].root.hidden = layout === "single";
  if (layout === "reader") panes[1].model = panes[0].model;
  for (const pane of shownPanes()) {
    pane.overlay = overlayOf(pane);
    if (pane.overlay !== "none") pane.last = pane.overlay;
    fill(pane.part("model"), models.map(({ name }) => [name, name]), pane.model);
    pane.part("model").closest("label").hidden = !several || (layout === "reader" && pane.index === 1);
    fill(pane.part("overlay"), overlays(pane).map((name) => [name, called(name)]), pane.overlay);
    pane.part("overlay").disabled = !subject || (layout === "reader" && pane.index === 1);
  }
  for (const control of byId("tools").querySelectorAll("button, input")) control.disabled = !subject;
  colour();
  if (subject) {
    const { name, entry, picture } = subject;
    showFindings(byId("findings"), { name, entry, height: picture.height, width: picture.width }, answers(), chooseMap);
  } else if (!byId("findings").hasChildNodes()) {
    showWelcome();
  }
  refresh();
}

function showWelcome() {
  const words = document.createElement("p");
  words.className = "muted";
  words.textContent = "Probabilities, intervals and agreement with the reader appear here.";
  byId("findings").replaceChildren(words);
}

function chooseMap(model, overlay) {
  for (const pane of shownPanes()) if (pane.model === model) pane.wanted = overlay;
  arrange();
  byId("findings").querySelector(`[aria-pressed=true]`)?.focus();
}

function isAttention(overlay) {
  return overlay === "attention" || overlay === "human";
}

/** Colours the maps. Attention of all panes shares one scale, and so do the classes of one network. */
function colour() {
  const shown = shownPanes().map((pane) => ({ pane, map: scaled(pane) }));
  const attention = Math.max(0, ...shown.filter(({ pane, map }) => map && isAttention(pane.overlay)).map(({ map }) => highest(map)));
  for (const { pane, map } of shown) {
    const kind = isAttention(pane.overlay) ? "inferno" : "viridis";
    const high = !map ? 0 : kind === "inferno" ? attention : strongest(prediction(pane.model));
    const key = map && `${subject.key} ${pane.model} ${pane.overlay} ${high}`;
    if (key !== pane.drawn) {
      pane.drawn = key;
      pane.stage.heat = map ? heat(map, subject.picture, high, COLOURS[kind]) : null;
    }
    label(pane, kind, map, high);
  }
  drawLegends();
}

function scaled(pane) {
  const map = prediction(pane.model)?.maps.get(pane.overlay);
  return map ? (isAttention(pane.overlay) ? relative(map) : map) : null;
}

function strongest({ maps }) {
  return Math.max(0, ...[...maps].filter(([name]) => name.startsWith("cam:")).map(([, map]) => highest(map)));
}

function label(pane, kind, map, high) {
  pane.part("legend").classList.toggle("blank", !map);
  pane.kind = map ? kind : null;
  if (!map) {
    pane.part("legend-name").textContent = subject ? "No overlay" : "";
    return;
  }
  const positive = highest(map) > 0;
  const unit = kind === "inferno" ? "Attention, in multiples of an even spread" : "Evidence for the class; against it is not drawn";
  pane.part("legend-name").textContent = positive ? unit : `${unit}: none here`;
  pane.part("legend-high").textContent = kind === "inferno" ? `${figures(high)}×` : figures(high);
}

// ---------------------------------------------------------------------------------------------------------------------
// Looking
// ---------------------------------------------------------------------------------------------------------------------

function refresh() {
  for (const pane of panes) {
    pane.stage.refresh();
    pane.part("canvas").setAttribute("aria-label", describe(pane));
  }
}

function describe(pane) {
  if (!subject) return "No image is open";
  const { name, picture } = subject;
  const said = [`${name}, ${picture.width} by ${picture.height} pixels`];
  const found = prediction(pane.model);
  if (models.length > 1) said.push(`run ${pane.model}`);
  if (found && pane.overlay !== "none") {
    const peak = found.peaks?.[pane.overlay];
    said.push(`overlay: ${called(pane.overlay).toLowerCase()}${peak ? `, highest at x ${Math.round(peak.x)}, y ${Math.round(peak.y)}` : ""}`);
  } else {
    said.push("no overlay");
  }
  const gaze = replay.describe();
  if (gaze) said.push(gaze);
  return said.join("; ");
}

view.watch(() => {
  const { picture, zoom, level, width, invert, opacity } = view;
  byId("zoom").textContent = `${zoom.toFixed(1)}×`;
  byId("invert").setAttribute("aria-pressed", String(invert));
  byId("opacity").value = String(Math.round(100 * opacity));
  byId("opacity-value").textContent = `${Math.round(100 * opacity)}\u202f%`;
  drawLegends();
  if (!picture) return;
  const { low, high } = picture.preview;
  for (const [id, value, least] of [["level", level, low], ["width", width, 0]]) {
    byId(id).min = String(least);
    byId(id).max = String(id === "level" ? high : high - low);
    byId(id).value = String(value);
    const words = high - low > 20 ? String(Math.round(value)) : figures(value);
    byId(`${id}-value`).textContent = words;
    byId(id).setAttribute("aria-valuetext", words);
  }
});

function drawLegends() {
  for (const pane of panes) if (pane.kind) legend(pane.part("legend-bar"), COLOURS[pane.kind], view.opacity);
}

function choose(next) {
  layout = next;
  if (layout === "runs" && panes[1].model === panes[0].model) {
    panes[1].model = models.find(({ name }) => name !== panes[0].model)?.name ?? panes[0].model;
  }
  arrange();
  predictAgain();
}

function cycleOverlay(by) {
  const pane = panes[0];
  const known = overlays(pane);
  pane.wanted = known[(known.indexOf(pane.overlay) + by + known.length) % known.length];
  arrange();
  say(`Overlay: ${called(pane.overlay)}.`);
}

function switchOverlay() {
  const off = shownPanes().every((pane) => pane.overlay === "none");
  for (const pane of shownPanes()) pane.wanted = off ? (pane.last ?? AUTOMATIC) : "none";
  arrange();
  say(off ? "Overlay on." : "Overlay off.");
}

function hoveredStage() {
  return (shownPanes().find((pane) => pane.stage.hovered) ?? panes[0]).stage;
}

// ---------------------------------------------------------------------------------------------------------------------
// What the page says
// ---------------------------------------------------------------------------------------------------------------------

function say(sentence) {
  byId("status").textContent = sentence;
}

function fail(error, again = null) {
  if (error.name === "AbortError") return;
  if (!(error instanceof ServerError)) console.error(error);
  const words = document.createElement("p");
  words.textContent = error instanceof ServerError ? error.message : `The page met an error it does not know: ${error.message}`;
  const buttons = [];
  if (again) buttons.push(button("Try again", () => (clearFailure(), again())));
  buttons.push(button("Dismiss", clearFailure));
  byId("alert").replaceChildren(words, ...buttons);
}

function button(text, act) {
  const made = document.createElement("button");
  made.type = "button";
  made.className = "quiet";
  made.textContent = text;
  made.addEventListener("click", act);
  return made;
}

function clearFailure() {
  byId("alert").replaceChildren();
}

/** Shows that the page waits, and for what once it takes long. */
async function waiting(what, work) {
  waits += 1;
  byId("busy").hidden = false;
  byId("viewer").setAttribute("aria-busy", "true");
  const since = performance.now();
  const tell = () => {
    const passed = Math.floor((performance.now() - since) / 1000);
    tellWait(passed ? `${what}, ${passed} s` : what);
    waitTimer = setTimeout(tell, 1000);
  };
  clearTimeout(waitTimer);
  waitTimer = setTimeout(tell, PATIENT);
  try {
    return await work();
  } finally {
    waits -= 1;
    if (waits === 0) {
      clearTimeout(waitTimer);
      byId("busy").hidden = true;
      byId("waiting").hidden = true;
      byId("viewer").removeAttribute("aria-busy");
    }
  }
}

function tellWait(words) {
  byId("waiting").hidden = false;
  byId("waiting").textContent = `${words} …`;
}

/** The token of `/#token=…`, which is then taken out of the address bar. */
function tokenOfAddress() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given === null) return remembered();
  history.replaceState(null, "", location.pathname + location.search);
  remember(given);
  return given;
}

// For this tab alone, so that a reload does not ask again. Without storage it does.
function remember(token) {
  try {
    sessionStorage.setItem("radgaze-token", token);
  } catch {
    return;
  }
}

function remembered() {
  try {
    return sessionStorage.getItem("radgaze-token");
  } catch {
    return null;
  }
}

function askToken(refused) {
  const [dialog, field] = [byId("token-dialog"), byId("token")];
  byId("token-hint").textContent = refused
    ? "The server refused the token. Check it against the file that radgaze serve --token-file was given."
    : "It is in the file that radgaze serve --token-file was given.";
  field.value = "";
  dialog.showModal();
  field.focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue || null), { once: true });
    dialog.returnValue = "";
  });
}

byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const token = byId("token").value.trim();
  if (!token) return;
  remember(token);
  byId("token").value = "";
  byId("token-dialog").close(token);
});
byId("token-cancel").addEventListener("click", () => byId("token-dialog").close(""));

// ---------------------------------------------------------------------------------------------------------------------
// Controls, files and keys
// ---------------------------------------------------------------------------------------------------------------------

const on = (id, event, act) => byId(id).addEventListener(event, act);

on("open", "click", () => byId("file").click());
on("open-empty", "click", () => byId("file").click());
on("file", "change", (event) => {
  openFile([...event.target.files]);
  event.target.value = ""; // the same file can be opened again
});
on("zoom-in", "click", () => panes[0].stage.zoomBy(1.25, null));
on("zoom-out", "click", () => panes[0].stage.zoomBy(0.8, null));
on("fit", "click", () => view.fit());
on("reset", "click", () => view.resetWindow());
on("invert", "click", () => view.set({ invert: !view.invert }));
on("level", "input", (event) => view.set({ level: Number(event.target.value) }));
on("width", "input", (event) => view.set({ width: Number(event.target.value) }));
on("opacity", "input", (event) => view.set({ opacity: Number(event.target.value) / 100 }));
on("theme", "click", switchTheme);
on("help", "click", () => byId("shortcuts").showModal());
on("shortcuts-close", "click", () => byId("shortcuts").close());
on("studies-toggle", "click", () => drawer(!document.body.classList.contains("drawer")));
on("studies-close", "click", closeDrawer);
addEventListener("pointerdown", (event) => {
  if (!byId("studies").contains(event.target) && event.target !== byId("studies-toggle")) closeDrawer();
});
on("layout", "click", (event) => event.target.dataset.layout && choose(event.target.dataset.layout));
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close(""));
}

function drawer(open) {
  document.body.classList.toggle("drawer", open);
  byId("studies-toggle").setAttribute("aria-expanded", String(open));
  if (open) byId("rows").focus();
}

function closeDrawer() {
  if (!document.body.classList.contains("drawer")) return;
  const within = byId("studies").contains(document.activeElement);
  drawer(false);
  if (within) byId("studies-toggle").focus();
}

const lightRoom = matchMedia("(prefers-color-scheme: light)");

function isDark() {
  return (document.documentElement.dataset.theme ?? (lightRoom.matches ? "light" : "dark")) === "dark";
}

function switchTheme() {
  const theme = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem("radgaze-theme", theme);
  } catch {
    // Without storage the choice lasts until a reload.
  }
  nameTheme();
  replay.refresh();
}

function nameTheme() {
  byId("theme").setAttribute("aria-label", isDark() ? "Light theme" : "Dark theme");
}

lightRoom.addEventListener("change", nameTheme);

// A drag passes over many elements: it is inside until it left as many as it entered.
let dragged = 0;
const holdsFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
addEventListener("dragenter", (event) => {
  if (!holdsFiles(event)) return;
  dragged += 1;
  byId("drop").hidden = false;
});
addEventListener("dragleave", (event) => {
  if (!holdsFiles(event)) return;
  dragged = Math.max(0, dragged - 1);
  byId("drop").hidden = dragged === 0;
});
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  dragged = 0;
  byId("drop").hidden = true;
  openFile([...(event.dataTransfer?.files ?? [])]);
});

const KEYS = {
  j: () => studies.available && studies.step(1),
  k: () => studies.available && studies.step(-1),
  ArrowDown: () => studies.available && studies.step(1),
  ArrowUp: () => studies.available && studies.step(-1),
  "/": () => studies.available && (drawer(getComputedStyle(byId("studies-toggle")).display !== "none"), byId("search").focus()),
  o: () => byId("file").click(),
  v: () => cycleOverlay(1),
  V: () => cycleOverlay(-1),
  n: switchOverlay,
  "[": () => view.set({ opacity: Math.max(0, view.opacity - 0.05) }),
  "]": () => view.set({ opacity: Math.min(1, view.opacity + 0.05) }),
  "+": () => hoveredStage().zoomBy(1.25),
  "=": () => hoveredStage().zoomBy(1.25),
  "-": () => hoveredStage().zoomBy(0.8),
  0: () => view.fit(),
  i: () => view.set({ invert: !view.invert }),
  r: () => view.resetWindow(),
  p: () => replay.toggle(),
  ",": () => replay.step(-1),
  ".": () => replay.step(1),
  g: () => replay.available && replay.toggleShown(),
  1: () => press("single"),
  2: () => press("reader"),
  3: () => press("runs"),
  t: switchTheme,
  "?": () => byId("shortcuts").showModal(),
  Escape: closeDrawer,
};
const PANS = { ArrowLeft: [STEP, 0], ArrowRight: [-STEP, 0], ArrowUp: [0, STEP], ArrowDown: [0, -STEP] };

function press(name) {
  const found = byId("layout").querySelector(`[data-layout=${name}]`);
  if (!byId("layout").hidden && !found.hidden) found.click();
}

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const target = event.target instanceof Element ? event.target : document.body;
  if (target.matches("input:not([type=range], [type=checkbox])")) {
    if (event.key === "Escape") target.blur();
    return;
  }
  const uses = target.matches("select, input[type=range]") && (event.key.startsWith("Arrow") || target.matches("select"));
  if (uses) return;
  if (event.key === " ") {
    if (target.matches("button, input, summary, a")) return;
    event.preventDefault();
    view.set({ grabbing: true });
    byId("panes").classList.add("grabbing");
    return;
  }
  if (event.shiftKey && PANS[event.key]) {
    event.preventDefault();
    panes[0].stage.panBy(...PANS[event.key]);
    return;
  }
  const act = KEYS[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});

function letGo() {
  view.grabbing = false;
  byId("panes").classList.remove("grabbing");
}

addEventListener("keyup", (event) => event.key === " " && letGo());
addEventListener("blur", letGo);

nameTheme();
arrange();
start();
