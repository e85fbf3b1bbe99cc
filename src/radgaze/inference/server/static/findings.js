// What the networks say, in words and bars: the whole prediction can be read without seeing the image.

import { called, figures, labels, make, percent } from "./dom.js";

const METHODS = { "mt-unet": "MT-UNet", "gg-cam": "GG-CAM", classifier: "Classifier" };

/**
 * @param {HTMLElement} root
 * @param {{name: string, height: number, width: number, entry: object|null}} subject what is shown
 * @param {{model: object, prediction: object|null, overlay: string}[]} answers one for each run that is shown
 * @param {(model: string, overlay: string) => void} choose a map that the user wants over the image
 */
export function showFindings(root, subject, answers, choose) {
  const truth = labels(subject.entry?.label);
  root.classList.toggle("several", answers.length > 1);
  root.classList.toggle("one", answers.length === 1);
  root.replaceChildren(heading(subject), ...answers.map((answer) => section(answer, truth, answers.length > 1, choose)));
}

/** One sentence for those who cannot see the bars. */
export function spoken(name, answers) {
  const said = answers
    .filter(({ prediction }) => prediction)
    .map(({ model, prediction }) => {
      const classes = Object.entries(prediction.classes ?? {}).map(([label, one]) => `${label} ${percent(one.probability)}`);
      const run = answers.length > 1 ? `${model.name}: ` : "";
      return run + (classes.join(", ") || "attention predicted");
    });
  return `${name}. ${said.join(". ")}.`.replaceAll("\u202f", " ");
}

function heading({ name, height, width, entry }) {
  const facts = [`${width} × ${height} px`];
  if (entry?.split) facts.push(`${entry.split} split`);
  const truth = labels(entry?.label);
  return make(
    "header",
    { class: "subject" },
    make("h2", { title: name }, name),
    make("p", {}, facts.join(" · ")),
    truth.length > 0 && make("p", {}, "Label ", make("strong", {}, truth.join(", "))),
  );
}

function section({ model, prediction, overlay }, truth, several, choose) {
  const { card } = model;
  const method = METHODS[card.method] ?? card.method;
  const root = make("section", { class: "answer" });
  root.append(
    make(
      "div",
      { class: "answer-head" },
      make("h3", {}, several ? model.name : "Prediction"),
      make("p", {}, several ? method : `${method} · ${model.name}`),
    ),
  );
  if (!prediction) {
    root.append(make("p", { class: "muted" }, "No prediction yet."));
    return root;
  }
  const classes = Object.entries(prediction.classes ?? {});
  const scores = make("div", { class: "scores" });
  if (classes.length === 0) {
    scores.append(make("p", { class: "muted" }, "This network predicts attention alone; it has no classes."));
  } else {
    scores.append(
      make(
        "ul",
        { class: "bars" },
        ...classes.map(([label, one]) => bar(label, one, { prediction, truth, overlay, model, choose })),
      ),
    );
    scores.append(
      prediction.calibrated
        ? make("p", { class: "note" }, "Calibrated on the validation split. Lines: 95\u202f% interval.")
        : make("p", { class: "note warn" }, "Not calibrated, so without intervals", because(card.uncalibrated), "."),
    );
  }
  const more = make("div", { class: "more" });
  if (prediction.agreement) more.append(agreement(prediction.agreement));
  more.append(table(prediction, classes));
  root.append(scores, more);
  return root;
}

function because(reason) {
  return reason ? `: ${String(reason).replace(/\.$/, "")}` : "";
}

function bar(label, { probability, low, high }, { prediction, truth, overlay, model, choose }) {
  const map = `cam:${label}`;
  const chosen = overlay === map;
  const name = prediction.maps.has(map)
    ? make("button", { type: "button", class: "name", "aria-pressed": String(chosen), title: "Show its evidence on the image" }, label)
    : make("span", { class: "name" }, label);
  if (name.tagName === "BUTTON") name.addEventListener("click", () => choose(model.name, chosen ? "none" : map));
  const filled = make("span", { class: "filled" });
  filled.style.width = `${100 * probability}%`;
  const track = make("span", { class: "track", "aria-hidden": "true" }, filled);
  if (low !== null && high !== null) {
    const interval = make("span", { class: "interval" });
    interval.style.left = `${100 * low}%`;
    interval.style.width = `${100 * (high - low)}%`;
    track.append(interval);
  }
  const range = low === null ? null : make("span", { class: "range" }, `${percent(low)} to ${percent(high)}`);
  return make(
    "li",
    { class: prediction.predicted === label ? "likeliest" : null },
    name,
    truth.includes(label) && make("span", { class: "truth" }, "label"),
    make("span", { class: "value" }, percent(probability)),
    track,
    range,
  );
}

function agreement(measures) {
  const rows = Object.entries(measures).map(([map, { cc, kld, sim }]) =>
    make("tr", {}, make("th", { scope: "row" }, called(map)), ...[cc, kld, sim].map((value) => make("td", {}, figures(value)))),
  );
  const head = [["CC ↑", "Correlation: 1 is best"], ["KLD ↓", "Kullback-Leibler divergence in nats: 0 is best"], ["SIM ↑", "Similarity: 1 is best"]];
  return make(
    "table",
    { class: "agreement" },
    make("caption", {}, "Agreement with the reader"),
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "Map"), ...head.map(([text, title]) => make("th", { scope: "col", title }, text)))),
    make("tbody", {}, ...rows),
  );
}

function table(prediction, classes) {
  const cells = (one) => [one.probability, one.low, one.high].map((value) => make("td", {}, value === null ? "–" : value.toFixed(4)));
  const parts = [make("summary", {}, "As a table")];
  if (classes.length) {
    parts.push(
      make(
        "table",
        {},
        make("caption", {}, "Probabilities with the bounds of their 95\u202f% interval"),
        make("thead", {}, make("tr", {}, ...["Class", "Probability", "Low", "High"].map((text) => make("th", { scope: "col" }, text)))),
        make("tbody", {}, ...classes.map(([label, one]) => make("tr", {}, make("th", { scope: "row" }, label), ...cells(one)))),
      ),
    );
  }
  const peaks = Object.entries(prediction.peaks ?? {});
  if (peaks.length) {
    const place = (at) => (at ? [at.x, at.y].map((value) => make("td", {}, value.toFixed(1))) : [make("td", { colspan: "2" }, "even everywhere")]);
    parts.push(
      make(
        "table",
        {},
        make("caption", {}, "Where each map is highest, in pixels of the image"),
        make("thead", {}, make("tr", {}, ...["Map", "x", "y"].map((text) => make("th", { scope: "col" }, text)))),
        make("tbody", {}, ...peaks.map(([map, at]) => make("tr", {}, make("th", { scope: "row" }, called(map)), ...place(at)))),
      ),
    );
  }
  return make("details", { class: "as-table" }, ...parts);
}
