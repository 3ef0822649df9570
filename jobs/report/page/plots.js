"use strict";
// The job's numbers: what stands at the head of the page, and the distributions beside it.

const STATUS = { ok: "Done", failed: "Failed", quarantined: "Quarantined" };
if (summary.compare) STATUS.absent = `Only in ${summary.compare.there}`;
const TIME_ABOUT = {
  "GPU time": "Seconds of work times the GPUs at work; without loading models and waiting.",
  "Work time": "Seconds of work of all edits, those made side by side too; without loading models and waiting.",
};
const statusName = (status) => STATUS[status] ?? status;

/** The edits of each status, in the order of STATUS: [status, of all edits, of those shown]. */
function statusCounts() {
  const counts = new Map(Object.keys(STATUS).map((status) => [status, [0, 0]]));
  for (const [status, , all, some] of summary.states) {
    const before = counts.get(status) ?? [0, 0];
    counts.set(status, [before[0] + all, before[1] + some]);
  }
  return [...counts].map(([status, [all, some]]) => [status, all, some]).filter(([, all]) => all);
}

/** What a reader must know of the page as a whole: that it is a sample, that it compares. */
function showNotes() {
  const { shown, compare, sampled } = summary;
  const notes = [];
  if (sampled) {
    notes.push(`A sample: ${count(shown.edits, "edit")} of ${count(shown.videos, "video")}, chosen by a ` +
      `hash of the videos' ids, stand for ${whole.format(summary.edits + (compare?.onlyThere ?? 0))} edits ` +
      `of ${count(summary.videos, "video")}. Counts, sums and distributions are of all edits; search, ` +
      "filters and sorting see the sample.");
  }
  if (compare) {
    notes.push(`${compare.here} beside ${compare.there}: ${count(compare.both, "edit")} in both, ` +
      `${whole.format(compare.onlyHere)} only in ${compare.here}, ${whole.format(compare.onlyThere)} only in ` +
      `${compare.there}. Sums and distributions are those of ${compare.here}.`);
  }
  byId("notes").append(...notes.map((note) => h("p.notice", {}, note)));
}

function showSummary() {
  const facts = [count(summary.videos, "video"), count(summary.edits, "edit")];
  if (summary.finished) facts.push(`finished ${summary.finished.replace(/:\d\d UTC/, " UTC")}`);
  if (summary.retried) facts.push(`${count(summary.retried, "edit")} tried more than once`);
  byId("headline").textContent = facts.join(" · ");
  const done = statusCounts().find(([status]) => status === "ok")?.[1] ?? 0;
  const work = Object.values(summary.timings).reduce((a, b) => a + b, 0);
  const time = summary.gpuSeconds || work;
  const { skipped = 0, ...complete } = summary.forwards;
  const forwards = Object.values(complete).reduce((a, b) => a + b, 0);
  const more = skipped ? `, ${whole.format(Math.round(skipped))} skipped` : "";
  const timeName = summary.gpuSeconds ? "GPU time" : "Work time";
  const statuses = statusCounts().filter(([status]) => status !== "absent");
  byId("stats").append(...[
    tile("Edits done", `${whole.format(done)}`, ` of ${whole.format(summary.edits)}`,
      statuses.map(([status, n]) => [statusName(status), n, whole.format(n), status])),
    hasVerdicts && acceptedTile(),
    tile(timeName, duration(time), ` ${duration(time / summary.edits)} an edit`,
      Object.entries(summary.timings).map(([part, s]) => [part, s, duration(s)]), TIME_ABOUT[timeName]),
    tile("Forwards", whole.format(Math.round(forwards)), ` ${three.format(forwards / summary.edits)} an edit${more}`,
      Object.entries(complete).map(([kind, n]) => [kind, n, whole.format(Math.round(n))])),
  ].filter(Boolean));
}

/** How many edits the job's rules accept. */
function acceptedTile() {
  const counts = verdictCounts().filter(([kind]) => VERDICTS[kind]);
  const of = Object.fromEntries(counts.map(([kind, , all]) => [kind, all]));
  const style = { yes: "ok", no: "failed", none: "plain-part" };
  return tile("Edits accepted", whole.format(of.yes ?? 0), ` of ${whole.format((of.yes ?? 0) + (of.no ?? 0))}`,
    counts.map(([kind, name, n]) => [name, n, whole.format(n), style[kind]]));
}

/** A large number with the shares that it is made of: [name, size, text, status?] each. */
function tile(title, number, rest, shares, about = null) {
  const parts = shares.filter(([, size]) => size > 0);
  return h("article.stat", {},
    h("h2", {}, title),
    h("p.number", {}, number, h("span.quiet", {}, rest)),
    h("div.shares", { "aria-hidden": "true" }, parts.map(([, size, , status], i) =>
      h("span", { class: status ?? `part-${i % 6}`, style: `flex-grow:${size}` }))),
    h("ul.legend", {}, parts.map(([name, , text, status], i) =>
      h("li", {}, h("i", { class: status ?? `part-${i % 6}`, "aria-hidden": "true" }), `${name} `,
        h("b", {}, text)))),
    about && h("p.about.small.quiet", {}, about));
}

function showSettings() {
  if (!summary.settings.length) return;
  byId("settings").append(h("h2", {}, "Job"), ...summary.settings.map(([section, pairs]) =>
    h("details.setting", {}, h("summary", {}, section),
      h("dl", {}, pairs.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])))));
}

function showPlots(choose) {
  let group = null;
  for (const metric of METRICS) {
    if (metric.group !== group) byId("plots").append(h("h3", {}, (group = metric.group)));
    if (metric.bars) byId("plots").append(metric.bars.length > 1 ? plot(metric, choose) : same(metric));
  }
}

const heading = ({ label, unit }, readout) => h("figcaption", {},
  h("span", {}, label, unit && h("span.unit", {}, ` ${unit}`)), readout);

/** In place of a histogram where all edits have one value. */
const same = (metric) => h("figure.plot", { title: metric.about },
  heading(metric, h("span.small.quiet", {}, `all ${plain(metric.median, metric.unit)}`)),
  limitsOf(metric.key) && h("p.ends.small.quiet", {}, limitsOf(metric.key)));

/** A histogram whose bars can be chosen, by mouse or by arrow keys and Enter. */
function plot(metric, choose) {
  const { key, label, unit, bars, edges } = metric;
  const svg = histogram(metric);
  const readout = h("p.readout.small.quiet", { "aria-hidden": "true" });
  const rest = `median ${plain(metric.median, unit)}`;
  const name = (i) => `${plain(i ? edges[i] : metric.low, unit)} to ` +
    `${plain(i < bars.length - 1 ? edges[i + 1] : metric.high, unit)}: ${count(bars[i], "edit")}`;
  let current = -1;
  const point = (i) => {
    current = i;
    options.forEach((option, j) => option.classList.toggle("current", i === j));
    readout.textContent = i < 0 ? rest : name(i);
    if (i < 0) svg.removeAttribute("aria-activedescendant");
    else svg.setAttribute("aria-activedescendant", options[i].id);
  };
  // first and last bars are open: stray values beyond the edges count there
  const pick = (i) => choose(key, i ? edges[i] : -Infinity,
    i < bars.length - 1 ? edges[i + 1] : Infinity);
  const options = bars.map((n, i) => h("rect.hit", {
    id: `bar-${key}-${i}`, role: "option", "aria-label": name(i), "aria-selected": "false",
    x: i, y: 0, width: 1, height: 1, onclick: () => pick(i), onpointerenter: () => point(i),
  }));
  svg.append(...options);
  for (const [name, value] of Object.entries({
    role: "listbox", tabindex: 0, "aria-label": `${label}, distribution; choose a bar to filter`,
  })) svg.setAttribute(name, value);
  svg.addEventListener("pointerleave", () => point(-1));
  svg.addEventListener("blur", () => point(-1));
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) point(Math.min(bars.length - 1, Math.max(0, current + step)));
    else if (["Enter", " "].includes(event.key) && current >= 0) pick(current);
    else return;
    event.preventDefault();
  });
  point(-1);
  return h("figure.plot", { "data-metric": key, title: metric.about },
    heading(metric, readout), svg,
    h("p.ends.small.quiet", {}, h("span", {}, plain(metric.low, unit)), limitsOf(key),
      h("span", {}, plain(metric.high, unit))));
}

/** The bars of a metric, with lines at its rules' thresholds, and at a value if one is given. */
function histogram(metric, value = null) {
  const { bars, edges } = metric;
  const most = Math.max(...bars);
  const svg = h("svg.histogram", { viewBox: `0 0 ${bars.length} 1`, preserveAspectRatio: "none" });
  svg.append(...bars.map((n, i) => {
    const height = n ? Math.max(n / most, 0.03) : 0;
    return h("rect.bar", { x: i + 0.08, y: 1 - height, width: 0.84, height });
  }));
  svg.append(...thresholdLines(metric));
  if (value != null) {
    const share = (value - edges[0]) / (edges.at(-1) - edges[0]);
    const x = Math.min(1, Math.max(0, share)) * bars.length;
    svg.append(h("line.marker", { x1: x, x2: x, y1: 0, y2: 1, "vector-effect": "non-scaling-stroke" }));
  }
  return svg;
}
