// The map: reads places as bytes, draws them on a canvas, and asks the server for the codes of an area.
import { clearNotice, noticeOf, notice, typing, unreachable } from "./page.js";

const root = document.getElementById("atlas");
const canvas = document.getElementById("canvas");
const state = document.getElementById("map-state");
const hint = document.getElementById("hint");
const context = canvas.getContext("2d");
const COLOURS = 8, SHAPES = 3, LISTED = COLOURS * SHAPES;
const names = root.dataset.colourings.split(" ");

let data = null, view = { x: 0, y: 0, scale: 1 }, tool = "pan", lit = null, lasso = [], drawn = 0, order = [];
let area = root.dataset.area ? root.dataset.area.split(",").map(Number) : [];
let colour = document.getElementById("colour").value;
let hovered = -1, hintTimer = 0;

// --- Data

async function load() {
  let answer;
  try { answer = await fetch(root.dataset.places); } catch { unreachable(); state.textContent = "The places could not be loaded."; return; }
  if (answer.status === 202) { state.textContent = "The layout is worked out once a version; about a minute for 100,000 codes …"; setTimeout(load, 1500); return; }
  if (!answer.ok) { await noticeOf(answer); state.textContent = "The places could not be loaded."; return; }
  const bytes = await answer.arrayBuffer();
  const n = new DataView(bytes).getUint32(4, true);
  let at = 8;
  const take = (Kind) => { const made = new Kind(bytes, at, n); at += made.byteLength; return made; };
  const x = take(Float32Array), y = take(Float32Array), cluster = take(Uint32Array);
  data = { n, x, y, cluster: cluster.map((c) => (Math.imul(c, 2654435761) >>> 16) % COLOURS) };
  names.forEach((name) => { data[name] = take(Uint16Array); });
  grid();
  sort();
  draw();
}

const CELLS = 256;
let cells = null, starts = null;
/** Points by cell of a grid, so that the one below the pointer is found at once. */
function grid() {
  const cell = (v) => Math.min(CELLS - 1, Math.max(0, Math.floor((v + 1) / 2 * CELLS)));
  const where = new Uint32Array(data.n);
  starts = new Uint32Array(CELLS * CELLS + 1);
  for (let i = 0; i < data.n; i++) { where[i] = cell(data.y[i]) * CELLS + cell(data.x[i]); starts[where[i] + 1]++; }
  for (let c = 0; c < CELLS * CELLS; c++) starts[c + 1] += starts[c];
  const next = starts.slice();
  cells = new Uint32Array(data.n);
  for (let i = 0; i < data.n; i++) cells[next[where[i]]++] = i;
}

/** Points by colour, so that the canvas changes its colour few times. */
function sort() {
  const number = data[colour], buckets = new Map();
  for (let i = 0; i < data.n; i++) {
    const key = number[i] < LISTED ? number[i] : LISTED;
    if (!buckets.has(key)) buckets.set(key, []);
    buckets.get(key).push(i);
  }
  // What is listed as the rest lies below.
  order = [...buckets].sort((a, b) => b[0] - a[0]);
}

// --- Drawing

const style = () => getComputedStyle(document.documentElement);
const unit = () => Math.min(canvas.clientWidth, canvas.clientHeight) / 2.08 * view.scale;
const toX = (x) => canvas.clientWidth / 2 + (x - view.x) * unit();
const toY = (y) => canvas.clientHeight / 2 - (y - view.y) * unit();
const fromX = (px) => (px - canvas.clientWidth / 2) / unit() + view.x;
const fromY = (py) => (canvas.clientHeight / 2 - py) / unit() + view.y;

function draw() { if (!drawn) drawn = requestAnimationFrame(paint); }

function paint() {
  drawn = 0;
  const w = canvas.clientWidth, h = canvas.clientHeight, ratio = devicePixelRatio || 1;
  if (canvas.width !== Math.round(w * ratio) || canvas.height !== Math.round(h * ratio)) {
    canvas.width = Math.round(w * ratio);
    canvas.height = Math.round(h * ratio);
  }
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, w, h);
  if (!data) return;
  const now = style(), u = unit();
  const size = Math.max(1.4, Math.min(6, 2.4 * Math.sqrt(20000 / Math.max(500, data.n)) * Math.sqrt(view.scale)));
  let inView = 0;
  for (const [key, rows] of order) {
    const on = lit === null || lit === key;
    context.fillStyle = now.getPropertyValue(key < LISTED && on ? `--c${key % COLOURS}` : "--rest");
    context.globalAlpha = on ? 0.9 : 0.35;
    const shape = Math.floor(key / COLOURS) % SHAPES, round = size > 2.2;
    if (round) context.beginPath();
    for (const i of rows) {
      const px = w / 2 + (data.x[i] - view.x) * u, py = h / 2 - (data.y[i] - view.y) * u;
      if (px < -6 || py < -6 || px > w + 6 || py > h + 6) continue;
      inView++;
      if (!round || (shape === 1 && key < LISTED)) { context.fillRect(px - size / 2, py - size / 2, size, size); continue; }
      if (shape === 2 && key < LISTED) { context.moveTo(px, py - size * 0.7); context.lineTo(px + size * 0.65, py + size * 0.5); context.lineTo(px - size * 0.65, py + size * 0.5); context.closePath(); continue; }
      context.moveTo(px + size / 2, py);
      context.arc(px, py, size / 2, 0, 7);
    }
    if (round) context.fill();
  }
  context.globalAlpha = 1;
  const corners = lasso.length ? lasso : area;
  if (corners.length) {
    context.beginPath();
    for (let i = 0; i < corners.length; i += 2) context.lineTo(toX(corners[i]), toY(corners[i + 1]));
    if (!lasso.length) context.closePath();
    context.strokeStyle = now.getPropertyValue("--accent");
    context.lineWidth = 2;
    context.stroke();
    context.globalAlpha = 0.08;
    context.fillStyle = now.getPropertyValue("--accent");
    context.fill();
    context.globalAlpha = 1;
  }
  if (hovered >= 0) {
    context.beginPath();
    context.arc(toX(data.x[hovered]), toY(data.y[hovered]), Math.max(6, size), 0, 7);
    context.strokeStyle = now.getPropertyValue("--ink");
    context.lineWidth = 2;
    context.stroke();
  }
  state.textContent = `${inView.toLocaleString("en")} of ${data.n.toLocaleString("en")} codes in view`;
}

// --- Moving

function zoom(by, px = canvas.clientWidth / 2, py = canvas.clientHeight / 2) {
  const x = fromX(px), y = fromY(py);
  view.scale = Math.min(200, Math.max(0.8, view.scale * by));
  view.x = x - (px - canvas.clientWidth / 2) / unit();
  view.y = y + (py - canvas.clientHeight / 2) / unit();
  leave();
  draw();
}

function shift(dx, dy) { view.x -= dx / unit(); view.y += dy / unit(); leave(); draw(); }
function everything() { view = { x: 0, y: 0, scale: 1 }; leave(); draw(); }

const pointers = new Map();
let moved = 0;
const place = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };

canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)), ...place(event));
}, { passive: false });

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, place(event));
  moved = 0;
  if (tool === "lasso" && pointers.size === 1) { area = []; lasso = [fromX(place(event)[0]), fromY(place(event)[1])]; }
});

canvas.addEventListener("pointermove", (event) => {
  const [px, py] = place(event);
  if (!pointers.has(event.pointerId)) { hover(px, py); return; }
  const [ox, oy] = pointers.get(event.pointerId);
  moved += Math.abs(px - ox) + Math.abs(py - oy);
  if (pointers.size === 2) {
    lasso = [];
    const [other] = [...pointers].filter(([id]) => id !== event.pointerId).map(([, p]) => p);
    const before = Math.hypot(ox - other[0], oy - other[1]), after = Math.hypot(px - other[0], py - other[1]);
    if (before > 0) zoom(after / before, (px + other[0]) / 2, (py + other[1]) / 2);
  } else if (tool === "lasso") {
    lasso.push(fromX(px), fromY(py));
    draw();
  } else shift(px - ox, py - oy);
  pointers.set(event.pointerId, [px, py]);
});

function up(event) {
  if (!pointers.delete(event.pointerId)) return;
  if (tool === "lasso" && lasso.length >= 6 && moved > 20) { area = thinned(lasso); lasso = []; list(); }
  else if (event.type === "pointerup" && moved < 6) open(...place(event));
  lasso = [];
  draw();
}
canvas.addEventListener("pointerup", up);
canvas.addEventListener("pointercancel", up);
canvas.addEventListener("pointerleave", () => { leave(); draw(); });

/** At most 120 corners: an area's address should fit into a letter. */
function thinned(corners) {
  const n = corners.length / 2, step = Math.max(1, Math.ceil(n / 120)), kept = [];
  for (let i = 0; i < n; i += step) kept.push(+corners[2 * i].toFixed(4), +corners[2 * i + 1].toFixed(4));
  return kept;
}

// --- The point below the pointer

function nearest(px, py) {
  if (!data) return -1;
  const reach = 9 / unit(), x = fromX(px), y = fromY(py);
  const cell = (v) => Math.min(CELLS - 1, Math.max(0, Math.floor((v + 1) / 2 * CELLS)));
  let best = -1, least = reach * reach;
  for (let r = cell(y - reach); r <= cell(y + reach); r++) {
    for (let c = cell(x - reach); c <= cell(x + reach); c++) {
      for (let k = starts[r * CELLS + c]; k < starts[r * CELLS + c + 1]; k++) {
        const i = cells[k], d = (data.x[i] - x) ** 2 + (data.y[i] - y) ** 2;
        if (d < least) { least = d; best = i; }
      }
    }
  }
  return best;
}

function leave() { hovered = -1; hint.hidden = true; clearTimeout(hintTimer); }

function hover(px, py) {
  const found = nearest(px, py);
  if (found === hovered) return;
  leave();
  hovered = found;
  draw();
  if (found >= 0) hintTimer = setTimeout(() => show(found), 90);
}

async function show(row) {
  try {
    const answer = await fetch(`${root.dataset.codes}?row=${row}`);
    if (!answer.ok || hovered !== row) return;
    hint.innerHTML = await answer.text();   // a template of ours: every value in it is escaped
  } catch { return; }
  hint.hidden = false;
  const px = canvas.offsetLeft + toX(data.x[row]), py = canvas.offsetTop + toY(data.y[row]);
  hint.style.left = `${Math.max(4, Math.min(px + 12, root.querySelector(".stage").clientWidth - hint.offsetWidth - 8))}px`;
  hint.style.top = `${py + hint.offsetHeight + 16 > canvas.offsetTop + canvas.clientHeight ? py - hint.offsetHeight - 12 : py + 12}px`;
}

async function open(px, py) {
  const found = nearest(px, py);
  if (found < 0) return;
  hovered = found;
  await show(found);
  const link = hint.querySelector("a");
  if (link) location.assign(link.href);
}

// --- The area's codes

async function list() {
  const text = area.join(","), box = document.getElementById("selection");
  draw();
  try {
    const answer = await fetch(`${root.dataset.selection}?area=${encodeURIComponent(text)}`);
    if (!answer.ok) { await noticeOf(answer); return; }
    box.innerHTML = await answer.text();
    clearNotice();
    history.replaceState(null, "", `${root.dataset.map}?area=${encodeURIComponent(text)}&colour=${colour}`);
  } catch { unreachable(); }
}

function listView() {
  if (!data) { notice("The map is not there yet.", "Wait until it is drawn."); return; }
  const [l, r, b, t] = [fromX(0), fromX(canvas.clientWidth), fromY(canvas.clientHeight), fromY(0)].map((v) => +Math.min(1.2, Math.max(-1.2, v)).toFixed(4));
  area = [l, b, r, b, r, t, l, t];
  list().then(() => document.getElementById("selection").focus());
}

// --- Tools, keys, colours

function take(name) {
  tool = name;
  canvas.classList.toggle("lasso", name === "lasso");
  document.querySelectorAll("[data-tool]").forEach((b) => b.setAttribute("aria-pressed", String(b.dataset.tool === name)));
}
document.querySelectorAll("[data-tool]").forEach((b) => b.addEventListener("click", () => take(b.dataset.tool)));
const actions = { in: () => zoom(1.5), out: () => zoom(1 / 1.5), all: everything, view: listView };
document.querySelectorAll("[data-do]").forEach((b) => b.addEventListener("click", () => actions[b.dataset.do]()));
canvas.addEventListener("keydown", (event) => {
  const keys = {
    ArrowLeft: () => shift(60, 0), ArrowRight: () => shift(-60, 0), ArrowUp: () => shift(0, 60), ArrowDown: () => shift(0, -60),
    "+": () => zoom(1.4), "=": () => zoom(1.4), "-": () => zoom(1 / 1.4), Enter: listView,
  };
  if (typing(event) || !keys[event.key]) return;
  event.preventDefault();
  keys[event.key]();
});
document.addEventListener("keydown", (event) => {
  if (typing(event)) return;
  if (event.key === "l") take(tool === "lasso" ? "pan" : "lasso");
  else if (event.key === "0") everything();
  else if (event.key === "Escape") { lasso = []; area = []; draw(); }
});

const SVG = "http://www.w3.org/2000/svg";
const MARKS = ["M6 1a5 5 0 1 0 .01 0z", "M1.5 1.5h9v9h-9z", "M6 .8l5.2 9.6H.8z"];
document.querySelectorAll("[data-legend] button").forEach((button) => {
  const value = Number(button.dataset.value), mark = document.createElementNS(SVG, "path");
  mark.setAttribute("d", MARKS[Math.floor(value / COLOURS) % SHAPES]);
  mark.setAttribute("class", `k${value % COLOURS}`);
  button.querySelector("svg").replaceChildren(mark);
  button.addEventListener("click", () => {
    lit = lit === value ? null : value;
    document.querySelectorAll("[data-legend] button").forEach((b) => b.setAttribute("aria-pressed", String(b === button && lit !== null)));
    draw();
  });
});
function recolour() {
  colour = document.getElementById("colour").value;
  lit = null;
  document.querySelectorAll("[data-legend]").forEach((l) => { l.hidden = l.dataset.legend !== colour; });
  document.querySelectorAll("[data-legend] button").forEach((b) => b.setAttribute("aria-pressed", "false"));
  if (data) { sort(); draw(); }
}
document.getElementById("colour").addEventListener("change", recolour);
new ResizeObserver(draw).observe(canvas);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
recolour();
state.textContent = "Loading …";
load();
