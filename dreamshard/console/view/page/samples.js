// Samples as a grid: image, maps as colours, likeness of cells, neighbours; and levels as numbers.

import { ask, at, complain, count, draw, figure, make, newest } from "./view.js";

const PER_PAGE = 24;
const state = { first: 0, rows: [], point: null, same: {} };
let places;

const dataset = () => places.datasets[Number(at("dataset").value)];
const groups = (levels) => Object.groupBy
  ? Object.groupBy(levels, (level) => level.tap)
  : levels.reduce((all, level) => ({ ...all, [level.tap]: [...(all[level.tap] || []), level] }), {});

function levelsOf(tap) {
  return [...(groups(dataset().levels.filter((level) => level.map))[tap] || [])]
    .sort((a, b) => a.timestep - b.timestep);
}

function chosenLevel() {
  const levels = levelsOf(at("tap").value);
  return levels[Math.min(Number(at("timestep").value), levels.length - 1)];
}

function otherChoice() {
  return at("other").value ? JSON.parse(at("other").value) : null;
}

function fill(select, options) {
  select.replaceChildren(...options.map(([value, text]) => make("option", { value, text })));
}

function fillLevels() {
  const maps = dataset().levels.filter((level) => level.map);
  const taps = Object.entries(groups(maps));
  fill(at("tap"), taps.map(([tap, [level]]) =>
    [tap, `${tap} · ${level.shape.join("×")}${level.stride ? `, stride ${level.stride}` : ""}`]));
  const others = [];
  for (const [d, data] of places.datasets.entries()) {
    const own = d === Number(at("dataset").value);
    for (const level of data.levels.filter((one) => one.map)) {
      others.push([JSON.stringify({ d, level: level.name }), `${own ? "" : `${data.name}: `}${level.name}`]);
    }
  }
  if (dataset().image) {
    for (const student of places.students) {
      for (const level of student.levels) {
        const value = JSON.stringify({ d: Number(at("dataset").value), level: level.name });
        others.push([value, `student ${student.name}: s${level.stride}`]);
      }
    }
  }
  fill(at("other"), [["", "nothing"], ...others]);
}

function fillTimesteps() {
  const levels = at("tap").value ? levelsOf(at("tap").value) : [];
  at("timestep-box").hidden = levels.length < 2;
  at("timestep").max = Math.max(0, levels.length - 1);
  if (Number(at("timestep").value) >= levels.length) at("timestep").value = 0;
  at("timestep-name").textContent = levels.length ? chosenLevel().timestep : "";
}

const cardOf = (index) => at("grid").querySelector(`[data-index="${index}"]`);

function card(row) {
  const caption = make("figcaption", {},
    make("span", { text: row.made ? row.key || `sample ${row.index}` : "not made", kind: "key", title: row.key }),
    make("span", {
      text: `${row.index}${row.label >= 0 ? ` · ${labelName(row.label)}` : ""}`, kind: "quiet",
    }));
  if (row.made && !row.valid) {
    caption.append(make("span", { text: row.error || "invalid", kind: "bad", title: row.error }));
  }
  const near = make("button", { text: "Neighbours", kind: "near", "data-index": row.index });
  near.addEventListener("click", () => neighbours(row));
  const pictures = make("div", { kind: "pictures" });
  if (row.made) caption.append(near);
  return make("figure", { "data-index": row.index }, pictures, caption);
}

const labelName = (label) => dataset().classes[label] ? `${label} ${dataset().classes[label]}` : String(label);

function put(where, kind, source, title) {
  const old = where.querySelector(`.${kind}`);
  const picture = make("img", { kind, src: source, title, alt: title });
  if (old) old.replaceWith(picture); else where.append(picture);
  return picture;
}

const numbers = (rows) => rows.filter((row) => row.made).map((row) => row.index).join(",");

const page = newest(async (current) => {
  const d = at("dataset").value;
  const told = await ask("samples", {
    d, first: state.first, count: PER_PAGE, state: at("state").value,
    ...(at("key").value && { key: at("key").value }),
    ...(at("label").value && { label: at("label").value }),
  });
  if (!current()) return;
  state.rows = told.rows;
  state.same = {};
  const last = state.first + told.rows.length;
  at("where").textContent = told.total ? `${count(state.first + 1)}–${count(last)} of ${count(told.total)}` : "none";
  at("back").disabled = state.first === 0;
  at("on").disabled = last >= told.total;
  at("grid").replaceChildren(...told.rows.map(card));
  const i = numbers(told.rows);
  if (i && dataset().image) {
    const { pictures } = await ask("images", { d, i });
    if (!current()) return;
    for (const [index, source] of Object.entries(pictures)) {
      const where = cardOf(index).querySelector(".pictures");
      where.prepend(make("img", { kind: "image", src: source, alt: "image" }));
    }
  }
  await maps();
});

const maps = newest(async (current) => {
  const level = chosenLevel();
  at("grid").dataset.shown = "";
  if (level) await side(current, { d: Number(at("dataset").value), level: level.name }, "map");
  const other = otherChoice();
  if (other) await side(current, other, "other");
  else for (const old of at("grid").querySelectorAll(".other")) old.remove();
  if (current()) at("grid").dataset.shown = "yes";
});

// Puts one level's pictures beside the images: as colours, or as likeness to the chosen cell.
async function side(current, { d, level }, kind) {
  const ours = numbers(state.rows);
  if (!ours) return;
  const home = Number(at("dataset").value);
  const same = d === home ? null : (await ask("same", { d: home, e: d, i: ours })).same;
  const to = (index) => same ? same[index] : index;
  const back = new Map(ours.split(",").map((index) => [String(to(Number(index))), index]));
  const i = [...back.keys()].filter((index) => index !== "null").join(",");
  if (!i) return;
  const point = state.point && to(state.point.index) !== null ? state.point : null;
  const query = { d, level, i };
  const told = point
    ? await ask("likeness", { ...query, of: to(point.index), y: point.y, x: point.x })
    : await ask("maps", { ...query, own: at("basis").value });
  if (!current()) return;
  for (const [index, source] of Object.entries(told.pictures)) {
    const mine = Number(back.get(index));
    const box = cardOf(mine).querySelector(".pictures");
    const holder = box.querySelector(`.cells.${kind}`) || box.appendChild(make("div", { kind: `cells ${kind}` }));
    const best = told.best ? told.best[index] : null;
    const title = best ? `${level}: cosine ${best[2].toFixed(3)} at most` : level;
    put(holder, "cell", source, title).addEventListener("click", (event) => choose(event, mine));
    for (const old of holder.querySelectorAll("svg")) old.remove();
    const marks = [];
    if (best) marks.push(mark(best[1], best[0], "best"));
    if (point && point.index === mine) marks.push(mark(point.x, point.y, "chosen"));
    if (marks.length) holder.append(draw("svg", { viewBox: "0 0 100 100" }, ...marks));
  }
}

const mark = (x, y, kind) => draw("circle", { cx: 100 * x, cy: 100 * y, r: kind === "chosen" ? 6 : 3, class: kind });

function choose(event, index) {
  const box = event.target.getBoundingClientRect();
  const within = (value) => Math.min(0.9999, Math.max(0, value));
  state.point = {
    index, x: within((event.clientX - box.left) / box.width), y: within((event.clientY - box.top) / box.height),
  };
  at("likeness").hidden = false;
  at("likeness-text").textContent = `Cosine similarity to the cell you clicked in sample ${index}; ` +
    "a dot marks each image's most similar cell.";
  maps();
}

function colours() {
  state.point = null;
  at("likeness").hidden = true;
}

const neighbours = newest(async (current, row) => {
  const level = chosenLevel() || dataset().levels.find((one) => one.vector);
  if (!level) throw new Error("this dataset has no level to find neighbours by");
  const d = at("dataset").value;
  at("near").hidden = false;
  at("near-text").textContent = `Looking for the neighbours of sample ${row.index} …`;
  at("near-grid").replaceChildren();
  const told = await ask("neighbours", { d, level: level.name, of: row.index, count: 12 });
  const rows = [row, ...told.rows];
  const pictures = dataset().image ? (await ask("images", { d, i: numbers(rows) })).pictures : {};
  if (!current()) return;
  at("near-text").textContent = `Nearest neighbours of sample ${row.index} by ${level.name} (cosine of ` +
    `mean features), among ${count(told.among)} samples spread evenly over ${count(dataset().samples)}.`;
  at("near-grid").replaceChildren(...rows.map((one, place) => {
    const text = place ? told.likeness[place - 1].toFixed(3) : "this one";
    const box = make("div", { kind: "pictures" });
    if (pictures[one.index]) box.append(make("img", { kind: "image", src: pictures[one.index], alt: "image" }));
    return make("figure", {}, box, make("figcaption", {},
      make("span", { text: one.key || `sample ${one.index}`, kind: "key", title: one.key }),
      make("span", { text: `${text}${one.label >= 0 ? ` · ${labelName(one.label)}` : ""}`, kind: "quiet" })));
  }));
  at("near").scrollIntoView({ block: "nearest" });
});

function histogram(told) {
  const top = Math.max(...told.counts), wide = 300 / told.counts.length;
  const bars = told.counts.map((n, place) => draw("rect", {
    x: place * wide, y: 80 - 80 * n / top, width: wide * 0.9, height: 80 * n / top,
  }));
  return make("div", { kind: "histogram" },
    draw("svg", { viewBox: "0 0 300 80", preserveAspectRatio: "none" }, ...bars),
    make("div", { kind: "line quiet" },
      make("span", { text: figure(told.edges[0]) }),
      make("span", { text: figure(told.edges.at(-1)) })));
}

const levels = newest(async (current) => {
  const other = otherChoice();
  const home = Number(at("dataset").value);
  const wanted = dataset().levels.map((level) => ({ d: home, level: level.name }));
  if (other && !wanted.some((one) => one.d === other.d && one.level === other.level)) wanted.push(other);
  at("level-list").replaceChildren(make("h2", { text: dataset().name }));
  for (const one of wanted) {
    const told = await ask("statistics", one);
    if (!current()) return;
    const box = make("article", { kind: "level" }, make("h3", {
      text: one.d === home ? one.level : `${places.datasets[one.d].name}: ${one.level}`,
    }));
    if (told.counts) {
      const facts = [["mean", "mean"], ["std", "std"], ["min", "low"], ["max", "high"], ["dead channels", "dead"]];
      const list = facts.map(([name, key]) => [name, figure(told[key])]);
      list.push(["zeros", `${figure(100 * told.zeros)} %`], ["not finite", count(told.not_finite)]);
      box.append(make("dl", {}, ...list.map(([name, text]) =>
        make("div", {}, make("dt", { text: name }), make("dd", { text })))), histogram(told));
    } else box.append(make("p", { text: "no finite value" }));
    box.append(make("p", { text: `${told.samples} samples, spread evenly; the histogram leaves 0.1 % out at each end`, kind: "quiet" }));
    at("level-list").append(box);
  }
  at("level-list").dataset.ready = "yes";
});

function about() {
  const data = dataset();
  const side = data.image_size ? `${data.image_size.join("×")} pixels, ` : "";
  at("about").textContent = data.error || `${count(data.samples)} samples (${count(data.invalid)} invalid, ` +
    `${count(data.missing)} units missing), ${side}licence ${data.licence}. Click a cell of a map to see what is like it.`;
}

function dataChanged() {
  colours();
  state.first = 0;
  at("near").hidden = true;
  fillLevels();
  fillTimesteps();
  about();
  if (dataset().error) { at("grid").replaceChildren(); complain(new Error(dataset().error)); } else page();
}

export function beginSamples(found) {
  places = found;
  if (!places.datasets.length) return;
  fill(at("dataset"), places.datasets.map((data, d) => [d, data.name]));
  at("dataset").addEventListener("change", dataChanged);
  at("tap").addEventListener("change", () => { fillTimesteps(); maps(); });
  at("timestep").addEventListener("input", () => { fillTimesteps(); maps(); });
  for (const id of ["basis", "other"]) at(id).addEventListener("change", maps);
  for (const id of ["key", "label", "state"]) {
    at(id).addEventListener("change", () => { state.first = 0; colours(); page(); });
  }
  at("controls").addEventListener("submit", (event) => event.preventDefault());
  at("likeness-end").addEventListener("click", () => { colours(); maps(); });
  at("near-end").addEventListener("click", () => { at("near").hidden = true; });
  at("back").addEventListener("click", () => { state.first = Math.max(0, state.first - PER_PAGE); colours(); page(); });
  at("on").addEventListener("click", () => { state.first += PER_PAGE; colours(); page(); });
  document.addEventListener("tab", ({ detail }) => { if (detail === "levels") levels(); });
  dataChanged();
}
