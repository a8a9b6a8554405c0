// Runs: tiles and curves, looked at again every two seconds.

import { ask, at, complain, count, draw, duration, figure, make } from "./view.js";

const EVERY_MS = 2000, MOST = 8, WIDE = 320, HIGH = 120;
const FIRST = ["loss", "img_per_s", "wait_percent", "memory_gb", "lr"];
const NAMES = {
  img_per_s: "images per second", wait_percent: "waiting for data, %", memory_gb: "memory, GB",
  lr: "learning rate", grad_norm: "gradient norm",
};
const known = new Map();
let runs = [], shown = false, timer = null;

const chosen = () => [...at("run-choice").querySelectorAll("input:checked")].map((box) => Number(box.value));

function tile(run, place) {
  const facts = [];
  if (run.step !== null) facts.push(["step", `${count(run.step)}${run.steps ? ` of ${count(run.steps)}` : ""}`]);
  if (run.images) facts.push(["images", count(run.images)]);
  const { img_per_s: rate, wait_percent: wait, memory_gb: memory, loss } = run.figures;
  if (loss !== undefined) facts.push(["loss", figure(loss)]);
  if (rate !== undefined) facts.push(["images per second", figure(rate)]);
  if (wait !== undefined) facts.push(["waiting for data", `${figure(wait)} %`]);
  if (memory !== undefined) facts.push(["memory, most so far", `${figure(memory)} GB`]);
  if (run.eta_s !== null) facts.push(["time left", duration(run.eta_s)]);
  const ago = run.seconds_ago === null ? "" : `, last line ${duration(run.seconds_ago)} ago`;
  return make("article", { kind: `tile run${place % MOST}` },
    make("h3", { text: `${run.name}${run.verb ? ` (${run.verb})` : ""}` }),
    make("p", { text: `${run.state}${ago}`, kind: `state ${run.state.replace(" ", "-")}` }),
    make("dl", {}, ...facts.map(([name, text]) =>
      make("div", {}, make("dt", { text: name }), make("dd", { text })))));
}

function span(values) {
  const low = Math.min(...values), high = Math.max(...values);
  return high > low ? [low, high] : [low - 0.5, high + 0.5];
}

function chart(name, lines) {
  const points = lines.flatMap(({ curve }) => curve).filter(([, y]) => y !== null);
  const [left, right] = span(points.map(([x]) => x));
  const [low, high] = span(points.map(([, y]) => y));
  const svg = draw("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, preserveAspectRatio: "none" });
  for (const { curve, place } of lines) {
    const path = curve.filter(([, y]) => y !== null).map(([x, y]) =>
      `${(WIDE * (x - left) / (right - left)).toFixed(1)},${(HIGH * (high - y) / (high - low)).toFixed(1)}`);
    svg.append(draw("polyline", { points: path.join(" "), class: `run${place % MOST}` }));
  }
  return make("article", { kind: "chart" }, make("h3", { text: NAMES[name] || name }),
    make("div", { kind: "plot" },
      make("span", { text: figure(high), kind: "top quiet" }), svg,
      make("span", { text: figure(low), kind: "bottom quiet" })),
    make("div", { kind: "line quiet" },
      make("span", { text: figure(left) }), make("span", { text: figure(right) })));
}

async function look() {
  clearTimeout(timer);
  if (!shown) return;
  try {
    const told = await Promise.all(chosen().map(async (r, place) => {
      const before = known.get(r);
      const run = await ask("run", { r, ...(before && { version: before.version }) });
      if (!run.curves) run.curves = before.curves;
      known.set(r, run);
      return { run, place };
    }));
    at("tiles").replaceChildren(...told.map(({ run, place }) => tile(run, place)));
    const names = new Set(told.flatMap(({ run }) => Object.keys(run.curves)));
    const sorted = [...FIRST.filter((name) => names.has(name)), ...[...names].filter((n) => !FIRST.includes(n)).sort()];
    at("charts").replaceChildren(...sorted.map((name) => chart(name, told
      .filter(({ run }) => run.curves[name]?.some(([, y]) => y !== null))
      .map(({ run, place }) => ({ curve: run.curves[name], place })))));
    complain(null);
  } catch (error) {
    complain(error);
  }
  timer = setTimeout(look, EVERY_MS);
}

export function beginRuns(places) {
  runs = places.runs;
  at("run-choice").replaceChildren(...runs.map((run, r) => {
    const box = make("input", { type: "checkbox", value: r });
    box.checked = r === 0 || runs.length <= 2;
    box.addEventListener("change", () => {
      if (chosen().length > MOST) { box.checked = false; complain(new Error(`${MOST} runs at once are shown.`)); }
      else look();
    });
    return make("label", { title: run.place }, box, make("span", { text: run.name }));
  }));
  document.addEventListener("tab", ({ detail }) => { shown = detail === "runs"; look(); });
}
