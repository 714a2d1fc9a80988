
"use strict";
const { report, tuned, order, gains, ranks, trade_off, histories } = JSON.parse(document.getElementById("data").textContent);
const SINGLE_TASK = "single_task";
const SLOTS = 6; // colours; each also has a dash pattern of its own
const DASHES = ["", "7 3", "2 3", "10 3 2 3", "14 4", "4 2"];
const byMethod = new Map(report.rows.map((row) => [row.method, row]));
const tasks = Object.keys(report.metrics);
const baseline = report.baseline ?? null;
let printing = false;
for (const history of Object.values(histories)) { // a curve without a band has one of no width
  const groups = [...Object.values(history.epochs), history.weights, history.conflict ?? {}];
  for (const curve of groups.flatMap((group) => Object.values(group))) if (curve?.mean && !curve.low) curve.low = curve.high = curve.mean;
}
const $ = (id) => document.getElementById(id);

// -- building elements: text is always text, never markup ---------------------------------------------------------------

function make(namespace, tag, attributes, children) {
  const node = document.createElementNS(namespace, tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}
const el = (tag, attributes, ...children) => make("http://www.w3.org/1999/xhtml", tag, attributes, children);
const svg = (tag, attributes, ...children) => make("http://www.w3.org/2000/svg", tag, attributes, children);
/** Text that may break after the marks that names are made of. */
const breakable = (text) => text.split(/(?<=[_.+\/])/).flatMap((part) => [part, el("wbr")]).slice(0, -1);
const caption = (text, id) => el("caption", { id }, el("span", { class: "stay" }, text));
const say = (text) => { $("live").textContent = text; };

// -- numbers ------------------------------------------------------------------------------------------------------------

const known = (value) => value !== null && value !== undefined;
const digitsOf = (value) => (Math.abs(value) < 10 ? 4 : 2);
/** A half goes to the even digit, as in the terminal and in every other file of a comparison. */
function rounded(value, digits) {
  const half = /^50*$/.test(value.toFixed(digits + 60).slice(-60)); // toFixed is exact, and sends halves away from zero
  const cut = value.toFixed(digits + 1).slice(0, digits ? -1 : -2);
  return half && "02468".includes(cut.at(-1)) ? cut : value.toFixed(digits);
}
function fixed(value, digits, sign = false) {
  if (!known(value)) return "\u2013";
  const text = rounded(value, digits ?? digitsOf(value));
  const plain = Number(text) === 0 ? text.replace("-", "") : text;
  return sign && Number(plain) > 0 ? `+${plain}` : plain;
}
const short = (value) => (known(value) ? String(Number(value.toPrecision(4))) : "\u2013");
const span = (interval, digits) => (interval ? `${fixed(interval[0], digits)} to ${fixed(interval[1], digits)}` : null);
const clip = (name, room) =>
  name.length <= room ? name : `${name.slice(0, Math.ceil(room / 2) - 1)}\u2026${name.slice(-Math.floor(room / 2))}`;

/** The range that shows most of the values well: one diverged method must not squeeze all others into a line. */
function limits(values, reach = 3) {
  const sorted = [...values].sort((a, b) => a - b);
  if (sorted.length < 4) return [sorted[0], sorted.at(-1)];
  const at = (share) => { // the quantile as Python's statistics.quantiles has it, so that both draw the same
    const place = share * (sorted.length + 1) - 1;
    const below = Math.max(0, Math.min(sorted.length - 2, Math.floor(place)));
    return sorted[below] + (sorted[below + 1] - sorted[below]) * (place - below);
  };
  const room = reach * (at(0.75) - at(0.25));
  const inside = sorted.filter((value) => at(0.25) - room <= value && value <= at(0.75) + room);
  return [inside[0], inside.at(-1)];
}

// -- methods in colour --------------------------------------------------------------------------------------------------

const pinned = new Map(); // method -> slot
const listeners = []; // what depends on it
const colour = (slot) => (slot === null ? "var(--ink)" : `var(--c${slot % SLOTS})`);
const swatch = (slot) =>
  svg("svg", { class: "swatch", viewBox: "0 0 18 10", "aria-hidden": "true" },
    svg("line", { x1: 0, y1: 5, x2: 18, y2: 5, stroke: colour(slot), "stroke-width": 3, "stroke-dasharray": slot === null ? "4 2" : DASHES[slot % SLOTS] }));

function pin(method) {
  const used = new Set(pinned.values());
  let slot = method === SINGLE_TASK ? null : [...Array(SLOTS).keys()].find((number) => !used.has(number));
  if (slot === undefined) { // all taken: the oldest gives way
    const oldest = [...pinned.keys()].find((name) => name !== SINGLE_TASK);
    slot = pinned.get(oldest);
    pinned.delete(oldest);
  }
  pinned.set(method, slot);
}
function toggle(method) {
  if (pinned.has(method)) pinned.delete(method);
  else pin(method);
  say(`${method} is ${pinned.has(method) ? "" : "no longer "}shown in colour`);
  for (const listener of listeners) listener();
}
for (const method of order.filter((name) => name !== SINGLE_TASK).slice(0, 4)) pin(method);
if (order.includes(SINGLE_TASK)) pin(SINGLE_TASK);

// -- tooltip ------------------------------------------------------------------------------------------------------------

function showTip(text, x, y) {
  const tip = $("tip");
  tip.textContent = text;
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(x + 14, document.documentElement.clientWidth - width - 4))}px`;
  tip.style.top = `${y + 18 + height < window.innerHeight ? y + 18 : Math.max(4, y - height - 10)}px`;
}
const hideTip = () => { $("tip").hidden = true; };
document.addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });
document.addEventListener("scroll", hideTip, { capture: true, passive: true });

// -- header -------------------------------------------------------------------------------------------------------------

function header() {
  $("title").textContent = `Weightings compared on ${report.dataset}`;
  const seeds = [...new Set(report.rows.flatMap((row) => row.seeds))].sort((a, b) => a - b);
  $("about").textContent = [
    `${order.filter((method) => method !== SINGLE_TASK).length} methods`,
    `${tasks.length} task${tasks.length === 1 ? "" : "s"}: ${clip(tasks.join(", "), 160)}`,
    `seed${seeds.length === 1 ? "" : "s"} ${seeds.join(", ") || "none"}`,
    baseline === null ? "no baseline" : `baseline ${baseline}`,
    `data ${clip(report.fingerprint ?? "unknown", 22)}`,
  ].join(" \u00b7 ");
  const schemes = ["system", "light", "dark"];
  let scheme = 0;
  $("theme").addEventListener("click", () => {
    scheme = (scheme + 1) % schemes.length;
    document.documentElement.style.colorScheme = scheme ? schemes[scheme] : "light dark";
    $("theme").textContent = `Theme: ${schemes[scheme]}`;
  });

  const card = (title, name, value) => $("glance").append(
    el("div", {}, el("dt", {}, title), el("dd", {}, el("div", { class: "name" }, name), el("div", { class: "value" }, value))));
  const least = (rows, value) => rows.filter((row) => known(value(row))).sort((a, b) => value(a) - value(b))[0];
  const rows = order.map((method) => byMethod.get(method)).filter((row) => row.method !== SINGLE_TASK);
  const best = least(rows.filter((row) => row.method !== baseline), (row) => row.delta_m?.mean);
  if (best) card("Best delta_m", best.method, `${meanStd(best.delta_m, 2, true)} % against ${baseline}`);
  const ranked = least(rows, (row) => row.mean_rank);
  if (ranked && rows.length > 1) card("Best mean rank", ranked.method, `${fixed(ranked.mean_rank, 2)} of ${rows.length}`);
  const quick = least(rows, (row) => row.cost?.step_ms_median);
  if (quick) card("Cheapest step", quick.method, `${fixed(quick.cost.step_ms_median, 1)} ms`);
  const failed = report.rows.reduce((sum, row) => sum + (row.failed?.length ?? 0), 0);
  const runs = report.rows.reduce((sum, row) => sum + (row.runs?.length ?? row.seeds.length), 0);
  card("Runs", `${runs} finished`, failed ? `${failed} failed: see the table` : "none failed");
}
const meanStd = (summary, digits, sign) =>
  fixed(summary?.mean, digits, sign) + (known(summary?.std) ? ` \u00b1 ${fixed(summary.std, digits)}` : "");

// -- the table ----------------------------------------------------------------------------------------------------------

const MARKS = {
  better: ["+", "better", "better"],
  worse: ["\u2212", "worse", "worse"],
  "within spread": ["~", "within", "within spread"],
};
function columns() {
  const found = [];
  const add = (group, label, unit, better, summary, digits, sign) =>
    found.push({ group, label, unit, better, summary, digits, sign, value: (row) => summary(row)?.mean ?? null });
  const plain = (value) => (row) => (known(value(row)) ? { mean: value(row) } : null);
  if (baseline !== null) {
    add("all tasks", "delta_m", "%", "down", (row) => row.delta_m, 2, true);
    add("all tasks", "delta_p", "%", "up", (row) => row.delta_p, 2, true);
  }
  add("all tasks", "mean rank", "", "down", plain((row) => row.mean_rank), 2);
  for (const [task, metrics] of Object.entries(report.metrics))
    for (const [name, about] of Object.entries(metrics))
      add(task, name, about.unit === "fraction" ? "" : about.unit, about.higher_is_better ? "up" : "down", (row) => row.tasks?.[task]?.[name]);
  add("cost", "step", "ms", "down", plain((row) => row.cost?.step_ms_median), 1);
  add("cost", "run", "s", "down", plain((row) => row.cost?.seconds), 1);
  add("cost", "peak", "MiB", "down", plain((row) => row.cost?.peak_mib), 0);
  add("cost", "backward", "passes", "down", plain((row) => row.cost?.backward_passes_per_step), 1);
  add("", "seeds", "", "", plain((row) => row.seeds.length), 0);
  return found;
}

/** The best value of a column; nothing is the best of one, and the baseline does not compete in what it is the zero of. */
function bestOf(column) {
  const rows = report.rows.filter((row) => !(column.label.startsWith("delta_") && row.method === baseline));
  const values = rows.map(column.value).filter(known);
  if (values.length < 2 || !column.better || column.group === "cost") return null;
  return column.better === "up" ? Math.max(...values) : Math.min(...values);
}

function cell(column, row, best) {
  const summary = column.summary(row);
  const node = el("td", { class: column.first ? "group" : null });
  if (!known(summary?.mean)) {
    node.append("\u2013");
    return node;
  }
  const digits = column.digits ?? digitsOf(summary.mean);
  const mark = MARKS[summary.versus];
  const isBest = best !== null && Math.abs(summary.mean - best) <= 1e-12 * Math.abs(best);
  node.append(el("span", { class: isBest ? "best" : null }, fixed(summary.mean, digits, column.sign)));
  if (isBest) node.append(el("span", { class: "hidden" }, " best"));
  if (known(summary.std)) node.append(el("span", { class: "std" }, ` \u00b1 ${fixed(summary.std, digits)}`));
  if (column.marked) node.append(" ", el("span", { class: mark ? `mark ${mark[1]}` : "mark" },
    ...(mark ? [el("span", { "aria-hidden": "true" }, mark[0]), el("span", { class: "hidden" }, mark[2])] : [])));
  const interval = span(summary.interval, digits);
  if (interval) node.append(el("span", { class: "interval" }, interval));
  if (!known(summary.n)) return node;
  const seeds = Object.entries(summary.values ?? {}).map(([seed, value]) => `seed ${seed}: ${fixed(value, digits, column.sign)}`);
  node.title = [
    `${row.method}, ${column.group} ${column.label}`,
    interval ? `95 % interval ${interval}` : `${summary.n} seed${summary.n === 1 ? "" : "s"}: no interval`,
    known(summary.p) ? `${summary.versus ?? "undecided"} against ${report.reference}: p = ${short(summary.p)} (${summary.test})` : null,
    seeds.length <= 10 ? seeds.join(", ") : null,
  ].filter(Boolean).join("\n");
  return node;
}

function table() {
  const all = columns();
  all.forEach((column, number) => {
    column.first = column.group !== all[number - 1]?.group;
    column.marked = report.rows.some((row) => column.summary(row)?.versus);
  });
  const groups = all.filter((column) => column.first);
  const head = el("tr", {}, el("th", { "aria-hidden": "true" }),
    groups.map((column) => el("th", { class: "group", scope: "colgroup", colspan: all.filter((other) => other.group === column.group).length }, column.group)));
  const heads = new Map();
  const heading = (key, label, unit, better, first) => {
    const arrow = { up: " \u2191", down: " \u2193" }[better] ?? "";
    const words = { up: ", higher is better", down: ", lower is better" }[better] ?? "";
    const node = el("th", { scope: "col", class: first ? "group" : null },
      el("button", { type: "button", onclick: () => sort(key) }, label, el("span", { "aria-hidden": "true" }, arrow), el("span", { class: "hidden" }, words)),
      el("span", { class: "unit" }, unit || "\u00a0"));
    heads.set(key, node);
    return node;
  };
  const method = { label: "method", better: "", value: (row) => row.method };
  const second = el("tr", {}, heading(method, "method", "", ""), all.map((column) => heading(column, column.label, column.unit, column.better, column.first)));
  second.firstChild.style.textAlign = "left";
  const best = new Map(all.map((column) => [column, bestOf(column)]));
  const bodies = new Map(report.rows.map((row) => [row, lines(row)]));
  const body = el("tbody", {});
  $("table-box").append(el("table", { id: "results-table" },
    caption("Test scores. A heading sorts, best first; again, it turns round. A name shows its method in colour in the figures.", "table-caption"),
    el("thead", {}, head, second), body));

  function lines(row) {
    const pick = el("button", { type: "button", class: "pick", onclick: () => toggle(row.method) }, el("span", { class: "what" }, breakable(row.method)));
    const badges = [[baseline, "baseline"], [report.reference, "reference"]].filter(([name]) => name === row.method);
    const counts = Object.entries(row.counts ?? row.cost?.counts ?? {});
    const first = el("th", { scope: "row" }, row.seeds.length ? pick : row.method, badges.map(([, word]) => el("span", { class: "badge" }, word)));
    if (counts.length) first.append(el("span", { class: "badge", title: counts.map(([what, times]) => `${what}: ${times} times`).join("\n") }, `${counts.reduce((sum, [, times]) => sum + times, 0)} events`));
    const paint = () => {
      pick.setAttribute("aria-pressed", pinned.has(row.method));
      pick.querySelector(".swatch")?.remove();
      if (pinned.has(row.method)) pick.prepend(swatch(pinned.get(row.method)));
    };
    paint();
    listeners.push(paint);
    const found = row.seeds.length ? [el("tr", {}, first, all.map((column) => cell(column, row, best.get(column))))] : [];
    for (const failure of row.failed ?? [])
      found.push(el("tr", { class: "failed" }, el("th", { scope: "row" }, row.method),
        el("td", { colspan: all.length }, el("span", { class: "reason" }, `seed ${failure.seed} failed: ${failure.error}`))));
    return found;
  }

  let sorted = null, turned = false;
  function sort(key, aloud = true) {
    turned = key === sorted ? !turned : false;
    sorted = key;
    const down = (key.better === "up") !== turned;
    const rows = [...report.rows].sort((a, b) => {
      const [x, y] = [key.value(a), key.value(b)];
      if (!known(x) || !known(y) || !a.seeds.length || !b.seeds.length) // what is not known comes last, either way
        return (known(y) && b.seeds.length ? 1 : 0) - (known(x) && a.seeds.length ? 1 : 0);
      return (typeof x === "string" ? (x < y ? -1 : x > y ? 1 : 0) : x - y) * (down ? -1 : 1);
    });
    body.replaceChildren(...rows.flatMap((row) => bodies.get(row)));
    for (const [column, node] of heads) {
      if (column === key) node.setAttribute("aria-sort", down ? "descending" : "ascending");
      else node.removeAttribute("aria-sort");
    }
    if (aloud) say(`sorted by ${key.group ?? ""} ${key.label}, ${down ? "descending" : "ascending"}`);
  }
  sort(all.find((column) => report.rows.some((row) => known(column.value(row)))) ?? method, false);

  body.addEventListener("click", (event) => { // where nothing hovers: a touch shows what a title would
    const title = event.target.closest("td")?.title;
    if (title) showTip(title, event.clientX, event.clientY);
  });
  document.addEventListener("click", (event) => { if (!event.target.closest("td[title], svg")) hideTip(); });
  $("find").addEventListener("input", () => {
    const wanted = $("find").value.trim().toLowerCase();
    for (const [row, nodes] of bodies) for (const node of nodes) node.hidden = !row.method.toLowerCase().includes(wanted);
    say(`${report.rows.filter((row) => row.method.toLowerCase().includes(wanted)).length} methods`);
  });
  $("intervals").addEventListener("change", () => $("results-table").classList.toggle("with-intervals", $("intervals").checked));
  const notes = [el("span", {}, el("b", {}, "bold"), " best of its column")];
  if (all.some((column) => column.marked))
    for (const [sign, kind, words] of Object.values(MARKS))
      notes.push(el("span", {}, el("span", { class: `mark ${kind}` }, sign), kind === "within" ? ` differs from ${report.reference} by no more than the spread over seeds` : ` ${words} than ${report.reference}`));
  notes.push(el("span", {}, "\u2191 higher is better, \u2193 lower is better"));
  $("table-legend").append(...notes);
}

// -- charts -------------------------------------------------------------------------------------------------------------

const charts = []; // functions that draw again, for the width and the colours of the moment
function scale([low, high], [from, to], log = false) {
  const place = log ? Math.log10 : (value) => value;
  const [a, b] = [place(low), place(high)];
  return (value) => from + ((place(value) - a) / (b - a || 1)) * (to - from);
}
function ticks(low, high, count, log, whole) {
  if (log) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
      for (const first of [1, 2, 5]) found.push(first * 10 ** power);
    const inside = found.filter((value) => low <= value && value <= high);
    const tens = inside.filter((value) => Math.abs(Math.log10(value) % 1) < 1e-9);
    const kept = inside.length > count + 2 ? tens : inside;
    return kept.filter((_, number) => number % Math.ceil(kept.length / (count + 2)) === 0);
  }
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(power * [1, 2, 5, 10].find((first) => first * power >= rough * 0.999), whole ? 1 : 0);
  const found = [];
  for (let number = Math.ceil(low / step - 1e-9); number * step <= high + step * 1e-9; number++) found.push(number * step);
  return found;
}
const tickText = (value) => {
  const size = Math.abs(value);
  return size !== 0 && (size >= 1e5 || size < 1e-4) ? value.toExponential(0).replace("e+", "e") : String(Number(value.toPrecision(6)));
};

/**
 * Axes in `host`, drawn again when the width changes.
 *
 * `draw(area)` gets the scales, draws into `area.plot`, and returns the marks: rows of {x, y, text, method}, which the
 * pointer finds and the arrow keys walk over.
 */
function chart(host, label, height, settle, draw) {
  const at = { row: 0, column: -1 }; // the mark that the arrow keys are at
  const again = () => {
    const width = Math.max(240, Math.floor(host.clientWidth || 600));
    const axes = settle(width);
    const tall = axes.height ?? (printing && height > 300 ? 270 : height);
    const box = { left: axes.left ?? 52, right: width - 14, top: axes.y.label ? 24 : 8, bottom: tall - 40 };
    const x = scale(axes.x.domain, [box.left, box.right], axes.x.log);
    const y = axes.y.band ? null : scale(axes.y.domain, [box.bottom, box.top], axes.y.log);
    const plot = svg("g", {});
    const frame = svg("g", { "aria-hidden": "true" });
    const id = `clip-${charts.indexOf(again)}`;
    for (const value of ticks(...axes.x.domain, Math.min(9, width / 90), axes.x.log, axes.x.whole))
      frame.append(svg("line", { class: "grid", x1: x(value), x2: x(value), y1: box.top, y2: box.bottom }),
        svg("text", { x: x(value), y: box.bottom + 16, "text-anchor": "middle" }, tickText(value)));
    if (y) for (const value of ticks(...axes.y.domain, tall / 50, axes.y.log))
      frame.append(svg("line", { class: "grid", x1: box.left, x2: box.right, y1: y(value), y2: y(value) }),
        svg("text", { x: box.left - 7, y: y(value) + 4, "text-anchor": "end" }, tickText(value)));
    if (axes.y.label) frame.append(svg("text", { x: 2, y: 12 }, axes.y.label));
    frame.append(svg("text", { x: box.right, y: tall - 6, "text-anchor": "end" }, axes.x.label));
    const node = svg("svg", { class: "chart", width, height: tall, viewBox: `0 0 ${width} ${tall}`, role: "img", tabindex: 0, "aria-label": `${label} Arrow keys read out the values, Enter puts a method in colour; a table of the values follows.` },
      svg("defs", {}, svg("clipPath", { id }, svg("rect", { x: box.left, y: box.top - 4, width: box.right - box.left, height: box.bottom - box.top + 8 }))),
      frame, plot);
    const marks = draw({ plot, x, y, box, width, clip: `url(#${id})` }).filter((row) => row.length);
    explore(node, marks, at);
    const focused = host.contains(document.activeElement);
    host.replaceChildren(node);
    if (focused) node.focus({ preventScroll: true });
  };
  charts.push(again);
  return again;
}

function explore(node, marks, at) {
  const halo = svg("circle", { class: "halo", r: 6, visibility: "hidden" });
  node.append(halo);
  const show = (mark, aloud) => {
    halo.setAttribute("cx", mark.x);
    halo.setAttribute("cy", mark.y);
    halo.setAttribute("visibility", "visible");
    const frame = node.getBoundingClientRect();
    const shrink = frame.width / node.viewBox.baseVal.width;
    showTip(mark.text, frame.left + mark.x * shrink, frame.top + mark.y * shrink);
    if (aloud) say(mark.text);
  };
  const leave = () => { halo.setAttribute("visibility", "hidden"); hideTip(); };
  const nearest = (event) => {
    const frame = node.getBoundingClientRect();
    const [px, py] = [event.clientX - frame.left, event.clientY - frame.top];
    let best = null, least = 45 ** 2;
    marks.forEach((points, r) => points.forEach((mark, c) => {
      const away = (mark.x - px) ** 2 + (mark.y - py) ** 2;
      if (away < least) [least, best] = [away, [r, c]];
    }));
    return best;
  };
  node.addEventListener("pointermove", (event) => {
    const found = nearest(event);
    if (!found) return leave();
    [at.row, at.column] = found;
    show(marks[at.row][at.column], false);
  });
  node.addEventListener("pointerleave", leave);
  node.addEventListener("blur", leave);
  node.addEventListener("click", (event) => {
    const found = nearest(event);
    if (found && marks[found[0]][found[1]].method) toggle(marks[found[0]][found[1]].method);
  });
  node.addEventListener("keydown", (event) => {
    const mark = marks[at.row]?.[at.column];
    if (event.key === "Enter" && mark?.method) toggle(mark.method);
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    if (!step || !marks.length) return;
    event.preventDefault();
    at.row = (at.row + step[0] + marks.length) % marks.length;
    at.column = Math.max(0, Math.min(marks[at.row].length - 1, at.column + step[1]));
    show(marks[at.row][at.column], true);
  });
}

/** A figure: title, how to read it, choices, drawing, and the values as a table that is filled when it is opened. */
function figure(id, title, about, values) {
  const choices = el("div", { class: "choices" });
  const body = el("div", {});
  const box = el("details", { class: "values" }, el("summary", {}, "Values as a table"));
  box.addEventListener("toggle", () => {
    if (!box.open) return;
    box.querySelector(".scroll")?.remove();
    const [heads, rows] = values();
    box.append(el("div", { class: "scroll", role: "region", tabindex: 0, "aria-label": `Values: ${title}` }, el("table", {}, caption(title),
      el("thead", {}, el("tr", {}, heads.map((head) => el("th", { scope: "col" }, head)))),
      el("tbody", {}, rows.map(([first, ...rest]) => el("tr", {}, el("th", { scope: "row" }, first), rest.map((value) => el("td", {}, value))))))));
  });
  $("figures").append(el("figure", { id, "aria-labelledby": `${id}-title` },
    el("figcaption", {}, el("div", {}, el("h3", { id: `${id}-title` }, title), el("p", {}, about)), choices), body, values ? box : null));
  const choose = (label, options, changed) => {
    const select = el("select", {}, options.map((option) => el("option", { value: option }, clip(option, 44))));
    select.addEventListener("change", () => { changed(select.value); if (box.open) { box.open = false; } });
    if (options.length > 1) choices.append(el("label", {}, el("span", {}, label), select));
    return options[0];
  };
  return { body, choose };
}

function label(plot, box, points) {
  const taken = [];
  for (const { x, y, name, strong } of points) {
    const text = clip(name, 44);
    const wide = text.length * (strong ? 7.1 : 6.6);
    for (const [dx, dy] of [[8, -7], [-8, 15], [8, 15], [-8, -7], [11, 4], [-11, 4]]) {
      const left = dx > 0 ? x + dx : x + dx - wide;
      const rect = [left, y + dy - 11, left + wide, y + dy + 3];
      const hits = taken.some((other) => rect[0] < other[2] && other[0] < rect[2] && rect[1] < other[3] && other[1] < rect[3])
        || points.some((other) => (other.x !== x || other.y !== y) && rect[0] - 5 < other.x && other.x < rect[2] + 5 && rect[1] - 4 < other.y && other.y < rect[3] + 4);
      if (hits || rect[0] < box.left || rect[2] > box.right + 10 || rect[1] < box.top - 8 || rect[3] > box.bottom) continue;
      taken.push(rect);
      plot.append(svg("text", { class: strong ? "name strong" : "name", x: x + dx, y: y + dy, "text-anchor": dx > 0 ? "start" : "end" }, text));
      break;
    }
  }
}

function qualityCost() {
  if (trade_off.length < 2) return;
  const what = baseline === null ? "mean rank" : "delta_m";
  const unit = baseline === null ? "" : " %";
  const { body } = figure("quality-cost", "Quality against cost: lower left is better",
    `The line is the Pareto front: nothing else is both as good and as cheap.${baseline === null ? "" : ` delta_m is the mean change for the worse against ${baseline}.`} A point shows its values; a click puts its method in colour.`,
    () => [["method", "ms per step", what, "95 % interval", "on the front"], trade_off.map((p) => [p.method, fixed(p.cost, 1), fixed(p.quality, 2), span(p.interval, 2) ?? "\u2013", p.front ? "yes" : "no"])]);
  const costs = trade_off.map((point) => point.cost);
  const [low, high] = limits(trade_off.map((point) => point.quality));
  const room = 0.15 * (high - low) || 1;
  const log = Math.max(...costs) > 8 * Math.min(...costs) && Math.min(...costs) > 0;
  const wide = Math.max(...costs) - Math.min(...costs) || Math.max(...costs) || 1;
  const domain = log ? [Math.min(...costs) / 1.2, Math.max(...costs) * 1.3] : [Math.max(0, Math.min(...costs) - 0.08 * wide), Math.max(...costs) + 0.12 * wide];
  listeners.push(chart(body, "Scatter plot of quality against cost.", 420, () => ({
    x: { label: "median ms per training step, lower is better", domain, log },
    y: { label: `${what}${unit ? ", %" : ""}, lower is better`, domain: [low - room, high + room] },
  }), ({ plot, x, y, box, width, clip: inside }) => {
    const top = (point) => Math.min(point.quality, high + room);
    if (baseline !== null && low - room < 0 && high + room > 0) plot.append(svg("line", { class: "zero", x1: box.left, x2: box.right, y1: y(0), y2: y(0) }));
    const front = trade_off.filter((point) => point.front);
    plot.append(svg("path", { class: "front", "clip-path": inside, d: front.map((point, number) => (number ? `H${x(point.cost)}V${y(point.quality)}` : `M${x(point.cost)} ${y(point.quality)}`)).join("") + `H${box.right}` }));
    for (const point of trade_off) {
      const shade = pinned.has(point.method) ? colour(pinned.get(point.method)) : point.front ? "var(--accent)" : "var(--dot)";
      const [cx, cy] = [x(point.cost), y(top(point))];
      if (point.interval) plot.append(svg("line", { x1: cx, x2: cx, y1: y(point.interval[0]), y2: y(point.interval[1]), stroke: shade, "stroke-width": 1.2, opacity: 0.5, "clip-path": inside }));
      plot.append(point.quality > high + room ? svg("path", { class: "dot", fill: shade, d: `M${cx} ${cy - 6}l6 10h-12z` })
        : point.method === baseline ? svg("rect", { class: "dot", fill: shade, x: cx - 5.5, y: cy - 5.5, width: 11, height: 11 })
          : svg("circle", { class: "dot", fill: shade, cx, cy, r: 6 }));
    }
    const strong = (point) => pinned.has(point.method) || point.front || point.method === baseline;
    const named = [...trade_off].sort((a, b) => strong(b) - strong(a) || a.quality - b.quality);
    label(plot, box, named.filter((point) => width > 560 || strong(point)).map((point) => ({ x: x(point.cost), y: y(top(point)), strong: strong(point), name: point.method + (point.quality > high + room ? ` (${fixed(point.quality, 1)}${unit})` : "") })));
    return [trade_off.map((point) => ({ x: x(point.cost), y: y(top(point)), method: point.method,
      text: `${point.method}${point.front ? ", on the front" : ""}\n${what} ${fixed(point.quality, 2)}${unit}${point.interval ? `, 95 % interval ${span(point.interval, 2)}` : ""}\n${fixed(point.cost, 1)} ms per step` }))];
  }));
}

function improvement() {
  if (!Object.keys(gains).length) return;
  const ALL = "all tasks";
  const everything = {};
  for (const row of report.rows) if (known(row.delta_p?.mean)) everything[row.method] = { mean: row.delta_p.mean, interval: row.delta_p.interval ?? null };
  const options = [...(Object.keys(everything).length ? [ALL] : []), ...Object.keys(gains)];
  let task = options[0];
  const found = () => (task === ALL ? everything : gains[task]);
  const methods = () => order.filter((method) => method !== baseline && found()[method]);
  const { body, choose } = figure("improvement", `Improvement over ${baseline}: right is better`,
    "Means over a task's metrics, in percent; whiskers are 95 % intervals over seeds. A bar is pale where its interval holds zero, or is not known because there is one seed. The band around zero is the baseline's own interval.",
    () => [["method", `${task}, improvement in %`, "95 % interval"], methods().map((method) => [method, fixed(found()[method].mean, 2, true), span(found()[method].interval, 2) ?? "\u2013"])]);
  const again = chart(body, `Bars: improvement over ${baseline} by method.`, 0, (width) => {
    const [low, high] = limits(methods().map((method) => found()[method].mean).concat(0));
    const room = 0.5 * Math.max(Math.abs(low), Math.abs(high)) || 1;
    return { x: { label: "improvement, %", domain: [Math.min(low, 0) - room, Math.max(high, 0) + room] }, y: { band: true }, left: Math.min(230, width * 0.36), height: 52 + 24 * methods().length };
  }, ({ plot, x, box, clip: inside }) => {
    const own = found()[baseline]?.interval;
    const bars = svg("g", { "clip-path": inside });
    if (own) bars.append(svg("rect", { x: x(own[0]), width: Math.max(0, x(own[1]) - x(own[0])), y: box.top, height: box.bottom - box.top, fill: "var(--grid)" }));
    const marks = methods().map((method, number) => {
      const { mean, interval } = found()[method];
      const y = box.top + 12 + number * 24;
      const clear = interval && (interval[0] > 0 || interval[1] < 0);
      bars.append(svg("rect", { x: Math.min(x(0), x(mean)), width: Math.abs(x(mean) - x(0)), y: y - 8, height: 16, rx: 2, fill: mean > 0 ? "var(--up)" : "var(--down)", opacity: clear ? 1 : 0.4 }));
      if (interval) bars.append(svg("line", { class: "whisker", x1: x(interval[0]), x2: x(interval[1]), y1: y, y2: y }));
      const room = Math.floor((box.left - 10) / (pinned.has(method) ? 7.2 : 6.6));
      const name = clip(method, 2 * room);
      const rows = name.length > room ? [name.slice(0, room), name.slice(room)] : [name];
      plot.append(svg("text", { class: `name${pinned.has(method) ? " strong" : ""}`, "text-anchor": "end" },
        rows.map((part, row) => svg("tspan", { x: box.left - 8, y: y + (rows.length > 1 ? -2 + 12 * row : 4) }, part))));
      return { x: Math.max(box.left, Math.min(box.right, x(mean))), y, method, text: `${method}, ${task}\n${fixed(mean, 2, true)} %${interval ? `, 95 % interval ${span(interval, 2)}` : ""}` };
    });
    plot.append(bars, svg("line", { x1: x(0), x2: x(0), y1: box.top, y2: box.bottom, stroke: "var(--ink)" }));
    return [marks];
  });
  listeners.push(again);
  choose("Task", options, (chosen) => { task = chosen; again(); });
}

/** Lines with bands: grey ones below, those with a slot above. `all()` gives {name, curve, slot, method}. */
function lineChart(host, title, height, axes, all) {
  return chart(host, title, height, () => {
    const lines = all();
    const bright = lines.filter((line) => line.slot !== undefined);
    let [low, high] = limits(lines.flatMap((line) => line.curve.mean));
    for (const line of bright) [low, high] = [Math.min(low, ...line.curve.low), Math.max(high, ...line.curve.high)];
    const log = axes.log === true || (axes.log === "wide" && low > 0 && high > 100 * low);
    const room = 0.06 * (high - low) || Math.abs(high) || 1;
    const places = lines.flatMap((line) => [line.curve.x[0], line.curve.x.at(-1)]);
    return { x: { label: axes.x, domain: [Math.min(...places), Math.max(...places)], whole: true }, y: { label: axes.y(), domain: log && low > 0 ? [low / 1.15, high * 1.15] : [low - room, high + room], log: log && low > 0 } };
  }, ({ plot, x, y, clip: inside }) => {
    const lines = all();
    const path = (xs, ys) => xs.map((value, number) => `${number ? "L" : "M"}${x(value).toFixed(1)} ${y(ys[number]).toFixed(1)}`).join("");
    const drawn = svg("g", { "clip-path": inside });
    const bright = (line) => line.slot !== undefined;
    for (const { curve, slot } of [...lines.filter((line) => !bright(line)), ...lines.filter(bright).reverse()]) {
      if (slot === undefined) {
        drawn.append(svg("path", { class: "line grey", d: path(curve.x, curve.mean) }));
        continue;
      }
      if (curve.low.some((value, number) => value !== curve.high[number]))
        drawn.append(svg("path", { class: "band", fill: colour(slot), d: `${path(curve.x, curve.low)}${path([...curve.x].reverse(), [...curve.high].reverse()).replace("M", "L")}Z` }));
      drawn.append(svg("path", { class: "line", stroke: colour(slot), "stroke-dasharray": slot === null ? "6 4" : DASHES[slot % SLOTS], d: path(curve.x, curve.mean) }));
    }
    plot.append(drawn);
    return [...lines.filter(bright), ...lines.filter((line) => !bright(line))].map(({ name, curve, method }) => curve.x.map((value, number) => ({
      x: x(value), y: y(curve.mean[number]), method,
      text: `${name}\n${axes.at} ${short(value)}: ${short(curve.mean[number])}${curve.low[number] !== curve.high[number] ? `, seeds from ${short(curve.low[number])} to ${short(curve.high[number])}` : ""}`,
    })));
  });
}
const inOrder = () => order.filter((method) => histories[method]);
const ends = (curve) => [short(curve.mean[0]), short(curve.mean.at(-1)), short(Math.min(...curve.mean)), short(Math.max(...curve.mean))];

function losses() {
  const quantities = (task) => [...new Set(inOrder().flatMap((method) => Object.keys(histories[method].epochs[task] ?? {})))];
  const there = tasks.filter((task) => quantities(task).length);
  if (!there.length) return;
  const first = ["validation loss", "training loss"];
  let task = there[0], quantity = first[0];
  const lines = () => inOrder().filter((method) => histories[method].epochs[task]?.[quantity])
    .map((method) => ({ name: method, method, curve: histories[method].epochs[task][quantity], slot: pinned.get(method) }));
  const better = () => (first.includes(quantity) || !report.metrics[task]?.[quantity]?.higher_is_better ? "lower" : "higher");
  const { body, choose } = figure("curves", "Training curves",
    "Loss and validation scores by epoch, means over seeds; bands reach from the lowest seed to the highest. Methods in colour are chosen above; a click on a grey line adds it.",
    () => [["method", "first", "last", "lowest", "highest"], lines().map((line) => [line.name, ...ends(line.curve)])]);
  const host = el("div", {});
  body.append(host);
  const again = lineChart(host, "Training curves by method.", 380, { x: "epoch", at: "epoch", y: () => `${clip(task, 24)}: ${quantity}, ${better()} is better` }, lines);
  listeners.push(again);
  choose("Task", there, (chosen) => { task = chosen; offer(); again(); });
  const which = el("select", { "aria-label": "Quantity" });
  const offer = () => {
    const found = [...first.filter((name) => quantities(task).includes(name)), ...quantities(task).filter((name) => !first.includes(name))];
    if (!found.includes(quantity)) quantity = found[0];
    which.replaceChildren(...found.map((name) => el("option", { value: name, selected: name === quantity }, name)));
  };
  which.addEventListener("change", () => { quantity = which.value; again(); });
  body.parentNode.querySelector(".choices").append(el("label", {}, el("span", {}, "Show"), which));
  offer();
}

const keys = (names) => el("ul", { class: "keys" }, names.map((name, number) => el("li", {}, swatch(number), name)));

function weights() {
  const able = inOrder().filter((method) => Object.keys(histories[method].weights).length);
  if (!able.length) return;
  const named = tasks.filter((task) => able.some((method) => histories[method].weights[task]));
  const { body } = figure("weights", "Task weights over training",
    "The factor of each task in the update; every method has its own scale. Means over seeds; bands reach from the lowest seed to the highest. One panel for each method in colour.",
    () => [["method and task", "first", "last", "lowest", "highest"], able.flatMap((method) => Object.entries(histories[method].weights).map(([task, curve]) => [`${method}: ${task}`, ...ends(curve)]))]);
  const panels = el("div", { class: "panels" });
  body.append(keys(named), panels);
  let drawn = [];
  const again = () => {
    for (const draw of drawn) charts.splice(charts.indexOf(draw), 1);
    const shown = able.filter((method) => pinned.has(method));
    panels.replaceChildren();
    if (!shown.length) panels.append(el("p", { class: "hint" }, "No method in colour has weights; choose one above."));
    drawn = shown.map((method) => {
      const host = el("div", {});
      panels.append(el("div", {}, el("h4", {}, method), host));
      const draw = lineChart(host, `Task weights of ${method}.`, 190, { x: "training step", at: "step", y: () => "", log: "wide" },
        () => named.filter((task) => histories[method].weights[task]).map((task) => ({ name: `${method}: ${task}`, curve: histories[method].weights[task], slot: named.indexOf(task) })));
      draw();
      return draw;
    });
  };
  listeners.push(again);
  again();
}

/** A cell's background: `share` from 0 to 1 of a colour on paper, light enough for the text on it. */
const tint = (name, share) => `color-mix(in srgb, var(--${name}) ${Math.round(55 * share)}%, var(--paper))`;
function heatTable(about, corner, heads, rows) {
  return el("div", { class: "scroll heat", role: "region", tabindex: 0, "aria-label": about }, el("table", {}, caption(about),
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, corner), heads.map((head) => el("th", { scope: "col", class: "head" }, breakable(head))))),
    el("tbody", {}, rows.map(([first, ...cells]) => el("tr", {}, el("th", { scope: "row" }, breakable(first)), cells.map(({ text, background }) => {
      const node = el("td", {}, text);
      if (background) node.style.background = background;
      return node;
    }))))));
}

function conflicts() {
  const able = inOrder().filter((method) => histories[method].conflict);
  if (!able.length) return;
  const kinds = { cosine: "mean cosine", similarity: "mean magnitude similarity", condition: "condition number" };
  const { body, choose } = figure("conflict", "Gradient conflict over training",
    "Cosine between task gradients: \u22121 opposed, 0 orthogonal, 1 aligned. Magnitude similarity: 1 where gradients are equally long. Condition number of the Gramian: large where gradients are nearly dependent or very unequal. Means over pairs of tasks and over seeds.",
    () => [["method and quantity", "first", "last", "lowest", "highest"], able.flatMap((method) => Object.entries(kinds).filter(([key]) => histories[method].conflict[key]).map(([key, title]) => [`${method}: ${title}`, ...ends(histories[method].conflict[key])]))]);
  const panels = el("div", { class: "panels" });
  const heat = el("div", {});
  body.append(panels, heat);
  for (const [key, title] of Object.entries(kinds)) {
    const lines = () => able.filter((method) => histories[method].conflict[key]).map((method) => ({ name: method, method, curve: histories[method].conflict[key], slot: pinned.get(method) }));
    if (!lines().length) continue;
    const host = el("div", {});
    panels.append(el("div", {}, el("h4", {}, title), host));
    listeners.push(lineChart(host, `${title} by method.`, 230, { x: "training step", at: "step", y: () => "", log: key === "condition" }, lines));
  }
  const map = (method) => {
    const { tasks: names, cosines } = histories[method].conflict;
    heat.replaceChildren(el("h4", {}, `Mean cosine between tasks: ${method}`), heatTable("Means over training and seeds; blue is aligned, orange is opposed.", "", names,
      cosines.map((row, i) => [names[i], ...row.map((value) => ({ text: fixed(value, 2), background: known(value) ? tint(value < 0 ? "c1" : "c0", Math.abs(value)) : null }))])));
  };
  map(choose("Cosines of", able, map));
}

function rankTable() {
  const methods = Object.keys(ranks).sort((a, b) => (byMethod.get(a).mean_rank ?? Infinity) - (byMethod.get(b).mean_rank ?? Infinity));
  if (methods.length < 2) return;
  const heads = Object.entries(report.metrics).flatMap(([task, metrics]) => Object.keys(metrics).map((name) => `${task} ${name}`));
  const { body } = figure("ranks", "Ranks: 1 is best", "Rank of each method's mean over seeds by metric; ties share a rank. Networks for a single task take no part.");
  const shade = (rank) => (known(rank) ? tint("c0", 1 - (rank - 1) / Math.max(1, methods.length - 1)) : null);
  body.append(heatTable("The bluer, the better. The first column is the mean over metrics.", "method", ["mean rank", ...heads], methods.map((method) => [method,
    { text: fixed(byMethod.get(method).mean_rank, 2) }, ...ranks[method].map((rank) => ({ text: known(rank) ? String(rank) : "\u2013", background: shade(rank) }))])));
}

// -- the rest -----------------------------------------------------------------------------------------------------------

function pins() {
  const paint = () => {
    const focused = document.activeElement?.closest?.("#pins, #pin");
    $("pins").replaceChildren(...[...pinned].map(([method, slot]) => el("li", {}, el("button", { type: "button", "aria-label": `${method}: take the colour away`, onclick: () => toggle(method) }, swatch(slot), clip(method, 40)))));
    const others = order.filter((method) => !pinned.has(method));
    $("pin").replaceChildren(el("option", { value: "" }, "add a method\u2026"), ...others.map((method) => el("option", { value: method }, clip(method, 60))));
    $("pin").hidden = !others.length;
    if (focused?.id === "pins") ($("pins").querySelector("button") ?? $("pin")).focus();
  };
  $("pin").addEventListener("change", () => { if ($("pin").value) toggle($("pin").value); });
  listeners.push(paint);
  paint();
}

function published() {
  const found = report.published;
  if (!found?.rows?.length) return;
  const value = (entry) => [fixed(entry.published), fixed(entry.ours), fixed(entry.gap, null, true)];
  const rows = found.rows.flatMap((row) => [
    ...Object.entries(row.tasks ?? {}).flatMap(([task, metrics]) => Object.entries(metrics).map(([name, entry]) => [row.method, `${task} ${name}`, entry.unit ?? "", ...value(entry)])),
    ...(row.delta ? [[row.method, found.convention ?? "delta", "%", ...value(row.delta)]] : []),
  ]);
  $("published").hidden = false;
  $("published").append(el("p", { class: "hint" }, found.title ?? found.name ?? ""),
    el("div", { class: "scroll", role: "region", tabindex: 0, "aria-label": "Published results" }, el("table", {}, caption("A gap is ours minus theirs, in the published unit."),
      el("thead", {}, el("tr", {}, ["method", "metric", "unit", "published", "ours", "gap"].map((head) => el("th", { scope: "col" }, head)))),
      el("tbody", {}, rows.map(([first, ...rest]) => el("tr", {}, el("th", { scope: "row" }, first), rest.map((text) => el("td", {}, text))))))),
    el("ul", {}, [...found.rows.filter((row) => row.note).map((row) => `${row.method}: ${row.note}`), ...(found.notes ?? [])].map((note) => el("li", {}, note))));
}

function rest() {
  const counted = report.rows.flatMap((row) => Object.entries(row.counts ?? row.cost?.counts ?? {}).map(([what, times]) => `${row.method}: ${what}: ${times} times`));
  const notes = [...(report.notes ?? []), ...tuned, ...counted];
  if (notes.length) $("notes").append(...notes.map((note) => el("li", {}, note)));
  else $("notes").closest("section").remove();
  for (const node of document.querySelectorAll("[data-needs]")) if (!known(report[node.dataset.needs])) node.remove();
  for (const node of document.querySelectorAll("[data-name]")) node.textContent = report[node.dataset.name];
  const runs = report.rows.filter((row) => row.runs?.length);
  if (!runs.length) $("runs").closest("section").remove();
  else $("runs").append(el("table", {}, caption("What each row was computed from."), el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "method"), el("th", { scope: "col" }, "folders"))),
    el("tbody", {}, runs.map((row) => { const cell = el("td", {}, row.runs.join(", ")); cell.style.whiteSpace = "normal"; cell.style.textAlign = "left"; return el("tr", {}, el("th", { scope: "row" }, row.method), cell); }))));
}

header();
table();
pins();
for (const draw of [qualityCost, improvement, losses, weights, conflicts, rankTable]) draw();
if (!$("figures").childElementCount) $("figures").closest("section").remove();
published();
rest();
const redraw = () => { for (const draw of [...charts]) draw(); };
redraw();
let width = document.body.clientWidth;
const print = (now) => { // the style sheet lays the page out as on paper, and the charts are drawn for that
  printing = now;
  document.documentElement.classList.toggle("printing", now);
  redraw();
};
window.addEventListener("beforeprint", () => print(true));
window.addEventListener("afterprint", () => print(false));
new ResizeObserver(() => {
  if (printing || document.body.clientWidth === width) return;
  width = document.body.clientWidth;
  redraw();
}).observe(document.body);
