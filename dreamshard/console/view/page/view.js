// Helpers of both parts, and the tabs. Texts of files go in with textContent alone.

export const at = (id) => document.getElementById(id);

export function make(tag, { text, kind, title, ...rest } = {}, ...inside) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (kind) node.className = kind;
  if (title) node.title = title;
  for (const [name, value] of Object.entries(rest)) node.setAttribute(name, value);
  node.append(...inside);
  return node;
}

const SVG = "http://www.w3.org/2000/svg";
export function draw(tag, attributes, ...inside) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...inside);
  return node;
}

export async function ask(name, query = {}) {
  const address = new URL(`/api/${name}`, location.origin);
  for (const [key, value] of Object.entries(query)) address.searchParams.set(key, value);
  let reply;
  try {
    reply = await fetch(address);
  } catch {
    throw new Error("`dreamshard view` does not answer any more: is it still running?");
  }
  const told = await reply.json();
  if (!reply.ok) throw new Error(told.error);
  return told;
}

export function complain(error) {
  at("problem").hidden = !error;
  at("problem").textContent = error ? error.message : "";
}

// Runs the newest call of its kind alone: answers that were overtaken are dropped.
export function newest(work) {
  let count = 0;
  return async (...given) => {
    const mine = ++count;
    try {
      await work(() => mine === count, ...given);
      if (mine === count) complain(null);
    } catch (error) {
      if (mine === count) complain(error);
    }
  };
}

export const figure = (value) =>
  value === null || value === undefined ? "–"
    : Math.abs(value) >= 1e5 || (value !== 0 && Math.abs(value) < 1e-3)
      ? value.toExponential(2) : String(Number(value.toPrecision(4)));

export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const two = (n) => String(n).padStart(2, "0");
  return `${Math.floor(whole / 3600)}:${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}`;
}

export const count = (value) => value.toLocaleString("en-GB");

function show(tab) {
  for (const button of at("tabs").children) {
    const chosen = button.dataset.tab === tab;
    button.setAttribute("aria-pressed", chosen);
    at(button.dataset.tab).hidden = !chosen;
  }
  document.dispatchEvent(new CustomEvent("tab", { detail: tab }));
}

async function begin() {
  const places = await ask("places");
  const { beginSamples } = await import("./samples.js");
  const { beginRuns } = await import("./runs.js");
  beginSamples(places);
  beginRuns(places);
  const has = { samples: places.datasets.length, levels: places.datasets.length, runs: places.runs.length };
  for (const button of at("tabs").children) {
    button.hidden = !has[button.dataset.tab];
    button.addEventListener("click", () => show(button.dataset.tab));
  }
  show(has.samples ? "samples" : "runs");
  const damaged = [...places.damaged, ...places.datasets.filter((d) => d.error).map((d) => d.error)];
  if (damaged.length) complain(new Error(damaged.join("\n")));
  document.body.dataset.ready = "yes";
}

begin().catch(complain);
