"use strict";
// Draws the report's charts as SVG from the page's own data. All charts share the x range, the
// smoothing and the set of runs that are shown.
const runs = JSON.parse(document.getElementById("data").textContent);
const view = { axis: "step", smooth: 0.8, range: null, shown: runs.map(() => true) };
const PANELS = [
  { title: "Training loss", unit: "nats per target", key: "loss", wide: true, smooth: true },
  { title: "Evaluation", unit: "nats per token, held-out text", evaluations: true, wide: true },
  { title: "Gradient norm", unit: "before clipping", key: "grad_norm", smooth: true, log: true },
  { title: "Learning rate", unit: "", key: "learning_rate" },
  { title: "Throughput", unit: "targets per second", key: "tokens_per_second", smooth: true, zero: true },
  { title: "Model FLOPs utilisation", unit: "% of the measured peak", key: "mfu", factor: 100, smooth: true, zero: true },
  { title: "Hardware FLOPs utilisation", unit: "with recomputation, %", key: "hfu", factor: 100, smooth: true, zero: true },
  { title: "Memory", unit: "GiB", key: "memory_gib", zero: true },
];
const LEFT = 52, RIGHT = 10, TOP = 8, BOTTOM = 24;
const DASHES = ["", "6 3", "2 3", "9 3 2 3", "1 4"];

function svg(name, attributes, parent) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (parent) parent.appendChild(node);
  return node;
}

function html(name, className, parent, text) {
  const node = document.createElement(name);
  node.className = className;
  if (text !== undefined) node.textContent = text;
  if (parent) parent.appendChild(node);
  return node;
}

function short(value) {
  const size = Math.abs(value);
  if (size === 0) return "0";
  for (const [limit, letter] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "K"]])
    if (size >= limit) return +(value / limit).toPrecision(4) + " " + letter;
  return size < 1e-3 ? value.toExponential(1) : String(+value.toPrecision(5));
}

// The curves of a panel: [{label, color, dash, points: [[x, y], ...]}].
function curves(panel) {
  const found = [];
  const several = runs.length > 1;
  const orders = [...new Set(runs.flatMap((run) => Object.keys(run.evaluations)))];
  runs.forEach((run, number) => {
    if (!view.shown[number]) return;
    if (panel.evaluations) {
      for (const [order, points] of Object.entries(run.evaluations)) {
        const place = orders.indexOf(order);
        found.push({
          label: several ? run.name + ", " + order : order,
          color: several ? number : place,
          dash: several ? DASHES[place % DASHES.length] : "",
          points: points.map((point) => [view.axis === "step" ? point[0] : point[1], point[2]]),
        });
      }
      return;
    }
    const values = run.steps[panel.key];
    const points = values.map((y, i) => [run.steps[view.axis][i], y === null ? null : y * (panel.factor || 1)]);
    found.push({ label: run.name, color: number, dash: "", points });
  });
  for (const curve of found) curve.points = curve.points.filter(([x, y]) => x !== null && y !== null && !(panel.log && y <= 0));
  return found.filter((curve) => curve.points.length);
}

// Exponential average, its start debiased.
function smoothed(points) {
  let sum = 0, weight = 0;
  return points.map(([x, y]) => {
    sum = view.smooth * sum + (1 - view.smooth) * y;
    weight = view.smooth * weight + (1 - view.smooth);
    return [x, sum / weight];
  });
}

function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((one) => one * power).find((one) => one >= rough);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-6; at += step) found.push(+at.toPrecision(12));
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
    for (const one of high / low > 200 ? [1] : [1, 2, 5]) found.push(one * 10 ** power);
  const inside = found.filter((one) => one >= low && one <= high);
  return inside.length > 1 ? inside : ticks(low, high, 4);
}

function extent(panel, lines) {
  const inView = lines.flatMap((points) => points.filter(([x]) => !view.range || (x >= view.range[0] && x <= view.range[1])));
  const ys = inView.map((point) => point[1]);
  let low = Math.min(...ys), high = Math.max(...ys);
  if (panel.zero && !panel.log) low = 0;
  if (low === high) [low, high] = [low - Math.abs(low || 1) * 0.05, high + Math.abs(high || 1) * 0.05];
  const pad = panel.log ? (high / low) ** 0.05 : (high - low) * 0.05;
  return panel.log ? [low / pad, high * pad] : [panel.zero ? 0 : low - pad, high + pad];
}

function wholeRange() {
  const xs = runs.flatMap((run, number) => (view.shown[number] ? run.steps[view.axis] : [])).filter((x) => x !== null);
  return xs.length ? [0, Math.max(...xs)] : [0, 1];
}

function drawChart(panel, box) {
  box.replaceChildren();
  const head = html("div", "chart-head", box);
  html("h3", "", head, panel.title);
  html("small", "", head, panel.unit);
  const found = curves(panel);
  if (!found.length) { html("p", "", box, "Not logged."); return; }
  if (!panel.zero) logButton(panel, head);
  const lines = found.map((curve) => (panel.smooth && view.smooth > 0 ? smoothed(curve.points) : curve.points));
  const width = box.clientWidth || 600, height = panel.wide ? 290 : 200;
  const [x0, x1] = view.range || wholeRange();
  const [y0, y1] = extent(panel, panel.smooth ? [...lines, ...found.map((curve) => curve.points)] : lines);
  if (!isFinite(y0)) { html("p", "", box, "Nothing in this range."); return; }
  const up = panel.log ? Math.log : (y) => y;
  const sx = (x) => LEFT + ((x - x0) / (x1 - x0 || 1)) * (width - LEFT - RIGHT);
  const sy = (y) => height - BOTTOM - ((up(y) - up(y0)) / (up(y1) - up(y0))) * (height - TOP - BOTTOM);
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": panel.title }, box);
  for (const y of panel.log ? logTicks(y0, y1) : ticks(y0, y1, 5)) {
    svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: sy(y), y2: sy(y) }, root);
    svg("text", { x: LEFT - 7, y: sy(y) + 4, "text-anchor": "end" }, root).textContent = short(y);
  }
  for (const x of ticks(x0, x1, Math.max(3, width / 110))) {
    svg("line", { class: "axis", x1: sx(x), x2: sx(x), y1: height - BOTTOM, y2: height - BOTTOM + 4 }, root);
    const edge = sx(x) > width - 30;
    svg("text", { x: edge ? width - 2 : sx(x), y: height - 6, "text-anchor": edge ? "end" : "middle" }, root).textContent = short(x);
  }
  svg("line", { class: "axis", x1: LEFT, x2: width - RIGHT, y1: height - BOTTOM, y2: height - BOTTOM }, root);
  const frame = svg("svg", { x: LEFT, y: 0, width: width - LEFT - RIGHT + 4, height: height - BOTTOM + 4, viewBox: `${LEFT} 0 ${width - LEFT - RIGHT + 4} ${height - BOTTOM + 4}`, style: "overflow:hidden" }, root);
  found.forEach((curve, number) => {
    const path = (points) => "M" + points.map(([x, y]) => sx(x).toFixed(1) + " " + sy(y).toFixed(1)).join("L");
    const color = "c" + (curve.color % 8);
    if (lines[number] !== curve.points) svg("path", { class: "curve raw " + color, d: path(curve.points) }, frame);
    svg("path", { class: "curve " + color, d: path(lines[number]), "stroke-dasharray": curve.dash }, frame);
    if (panel.evaluations && curve.points.length < 60)
      for (const [x, y] of curve.points) svg("circle", { class: "dot " + color, cx: sx(x), cy: sy(y), r: 3 }, frame);
  });
  if (panel.evaluations) drawKeys(found, box);
  listen(root, { panel, found, x0, x1, sx, width, height });
}

function logButton(panel, head) {
  const button = html("button", "", head, "log");
  button.setAttribute("aria-pressed", String(!!panel.log));
  button.onclick = () => { panel.log = !panel.log; drawAll(); };
}

function drawKeys(found, box) {
  const keys = html("div", "keys", box);
  for (const curve of found) {
    const key = html("span", "", keys);
    const sample = svg("svg", { viewBox: "0 0 24 8" }, key);
    svg("path", { class: "curve c" + (curve.color % 8), d: "M0 4H24", "stroke-dasharray": curve.dash }, sample);
    key.append(curve.label);
  }
}

// Pointing shows the values nearest to the pointer; dragging zooms all charts, a double click undoes.
function listen(root, { panel, found, x0, x1, sx, width, height }) {
  const tip = document.getElementById("tip");
  const cursor = svg("line", { class: "cursor", y1: TOP, y2: height - BOTTOM, visibility: "hidden" }, root);
  const brush = svg("rect", { class: "brush", y: TOP, height: height - TOP - BOTTOM, width: 0 }, root);
  let from = null;
  const at = (event) => {
    const place = event.clientX - root.getBoundingClientRect().left;
    return x0 + ((place - LEFT) / (width - LEFT - RIGHT)) * (x1 - x0);
  };
  root.onpointermove = (event) => {
    const x = Math.min(x1, Math.max(x0, at(event)));
    for (const end of ["x1", "x2"]) cursor.setAttribute(end, sx(x));
    cursor.setAttribute("visibility", "visible");
    if (from !== null) { brush.setAttribute("x", sx(Math.min(from, x))); brush.setAttribute("width", Math.abs(sx(x) - sx(from))); }
    tip.replaceChildren();
    let title = null;
    for (const curve of found) {
      const near = curve.points.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best));
      title = title ?? html("b", "", tip, view.axis + " " + short(near[0]));
      const row = html("div", "c" + (curve.color % 8), tip);
      const label = html("span", "", row);
      html("i", "", label);
      label.append(curve.label);
      html("span", "", row, short(near[1]));
    }
    tip.hidden = false;
    tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8) + "px";
    tip.style.top = Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8) + "px";
  };
  root.onpointerdown = (event) => { from = at(event); root.setPointerCapture(event.pointerId); };
  root.onpointerup = (event) => {
    const ends = [from, at(event)].map((x) => Math.min(x1, Math.max(x0, x))).sort((a, b) => a - b);
    from = null;
    if (ends[1] - ends[0] > (x1 - x0) * 0.01) { view.range = ends; drawAll(); } else brush.setAttribute("width", 0);
  };
  root.onpointerleave = () => { tip.hidden = true; cursor.setAttribute("visibility", "hidden"); };
  root.ondblclick = () => { view.range = null; drawAll(); };
}

function drawOrders() {
  const box = document.getElementById("orders");
  box.replaceChildren();
  const policies = [...new Set(runs.flatMap((run) => run.orders.map((span) => span.policy)))];
  const width = box.clientWidth || 600;
  const last = Math.max(1, ...runs.flatMap((run) => run.steps.step));
  runs.forEach((run, number) => {
    if (!view.shown[number]) return;
    if (runs.length > 1) html("h3", "", box, run.name);
    if (!run.orders.length) { html("p", "", box, "No step was logged."); return; }
    const root = svg("svg", { viewBox: `0 0 ${width} 50`, height: 50, role: "img", "aria-label": "orders of " + run.name }, box);
    for (const span of run.orders) {
      const x = (span.start / last) * width, wide = ((span.stop - span.start) / last) * width;
      const label = span.first === span.last ? span.last : span.first + " to " + span.last;
      const band = svg("g", { class: "band" }, root);
      const fill = `color-mix(in oklab, var(--c${policies.indexOf(span.policy) % 8}) 70%, black)`;
      svg("rect", { x, y: 2, width: Math.max(wide, 1), height: 28, rx: 4, style: "fill:" + fill }, band);
      svg("title", {}, band).textContent = `${label}: steps ${span.start + 1} to ${span.stop}`;
      const text = [label, span.policy].find((one) => one.length * 7 + 14 < wide);
      if (text) svg("text", { x: x + 8, y: 20 }, band).textContent = text;
    }
    for (const x of ticks(0, last, 8)) {
      const anchor = x === 0 ? "start" : x > last * 0.97 ? "end" : "middle";
      svg("text", { x: (x / last) * width, y: 45, "text-anchor": anchor }, root).textContent = short(x);
    }
  });
}

const boxes = PANELS.map((panel) => html("div", "chart" + (panel.wide ? " wide" : ""), document.getElementById("charts")));
function drawAll() {
  PANELS.forEach((panel, number) => drawChart(panel, boxes[number]));
  drawOrders();
  document.getElementById("reset").hidden = view.range === null;
}

html("div", "", document.body).id = "tip";
document.getElementById("tip").hidden = true;
document.getElementById("axis").onchange = (event) => { view.axis = event.target.value; view.range = null; drawAll(); };
document.getElementById("smooth").oninput = (event) => { view.smooth = +event.target.value; drawAll(); };
document.getElementById("reset").onclick = () => { view.range = null; drawAll(); };
for (const button of document.querySelectorAll("button.run"))
  button.onclick = () => {
    const number = +button.dataset.run;
    view.shown[number] = !view.shown[number];
    button.setAttribute("aria-pressed", String(view.shown[number]));
    drawAll();
  };
addEventListener("resize", drawAll);
drawAll();
