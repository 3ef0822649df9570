"use strict";
// The summary of the runs: edits over time, how busy the groups were, cost against the plan.

const SLOW_AT_FIRST = 5;
const percent = new Intl.NumberFormat("en", { style: "percent", maximumFractionDigits: 0 });
const sumOf = (parts) => Object.values(parts).reduce((a, b) => a + b, 0);

/** A moment as `28 Nov, 11:40`, in UTC as all of the page. */
const moment = (time, seconds = false) => new Intl.DateTimeFormat("en-GB", {
  timeZone: "UTC", day: "numeric", month: "short", hour: "2-digit", minute: "2-digit",
  ...(seconds && { second: "2-digit" }),
}).format(time);

/** A size in bytes in the unit that makes it readable. */
function bytes(size) {
  const at = Math.min(4, Math.max(0, Math.floor(Math.log10(Math.max(1, size)) / 3)));
  return `${three.format(size / 1000 ** at)} ${["B", "kB", "MB", "GB", "TB"][at]}`;
}

/** Show the last run; a button leads to all of them where there are several. `choose` filters. */
function showRuns(choose) {
  const { run } = summary;
  if (!run?.all.edits) return;
  const several = run.all.runs.length > 1;
  const title = h("span.quiet.small");
  const grid = h("div.run-grid");
  const buttons = [["Last run", false], [`All ${whole.format(run.all.runs.length)} runs`, true]].map(([name, all]) =>
    h("button", { type: "button", onclick: () => show(all) }, name));
  const show = (all) => {
    const shown = all ? run.all : run.last;
    title.textContent = whenOf(shown, all ? null : run.seconds);
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(Boolean(i) === all)));
    grid.replaceChildren(...[
      overTime(shown), busy(shown, all ? [] : run.stages), cost(shown), !all && against(run.plan),
      slowest(shown, choose), failures(shown, choose),
    ].filter(Boolean));
  };
  show(false);
  const open = matchMedia("(min-width: 1000px)").matches; // on a small screen the videos come first
  byId("runs").append(h("details", { open },
    h("summary", { id: "runs-title" }, "Summary", title),
    several && h("div.modes", { role: "group", "aria-label": "Which runs" }, buttons), grid));
}

/** When a run began, and how long it took. */
function whenOf(totals, seconds) {
  const [start, end] = [totals.started_at, totals.ended_at].map((time) => time && new Date(time));
  if (!start || !end) return "";
  const took = seconds ?? (end - start) / 1000;
  return `${moment(start)} to ${moment(end)} UTC · ${duration(took)}`;
}

const box = (name, title, readout, ...content) => h(`article.stat.${name}`, {},
  h("header", {}, h("h3", {}, title), readout), content);

/** Edits by when they were finished: what was made below, what failed above it. */
function overTime({ throughput, ok }) {
  if (!throughput || !ok) return null;
  const { bucket_s: width, ok: made, failed } = throughput;
  const start = new Date(throughput.starts_at);
  const at = (i) => new Date(start.getTime() + i * width * 1000);
  const most = Math.max(...made.map((n, i) => n + failed[i]), 1);
  const rate = (n) => {
    const [unit, per] = n / width >= 1 ? ["s", 1] : n / width >= 1 / 60 ? ["min", 60] : ["h", 3600];
    return `${three.format((n / width) * per)} edits/${unit}`;
  };
  const rest = `mean ${rate(ok / made.length)}`;
  const readout = h("p.readout.small.quiet", {}, rest);
  const svg = h("svg.histogram.over-time", {
    viewBox: `0 0 ${made.length} 1`, preserveAspectRatio: "none", role: "img",
    "aria-label": `Edits over time: ${count(made.length, "interval")} of ${duration(width)}, ` +
      `${rest}, at most ${rate(most)}`,
    onpointerleave: () => { readout.textContent = rest; },
    onpointermove: (event) => {
      const { left, width: wide } = svg.getBoundingClientRect();
      const i = Math.min(made.length - 1, Math.max(0, Math.floor(((event.clientX - left) / wide) * made.length)));
      readout.textContent = `${moment(at(i), width < 60)}: ${count(made[i], "edit")}` +
        (failed[i] ? `, ${whole.format(failed[i])} failed` : "");
    },
  });
  const gap = made.length > 60 ? 0 : 0.08; // between thin bars one would be wider than they are
  made.forEach((n, i) => {
    const [good, bad] = [n / most, failed[i] / most];
    const bar = { x: i + gap, width: 1 - 2 * gap };
    if (n) svg.append(h("rect.bar", { ...bar, y: 1 - good, height: good }));
    if (failed[i]) svg.append(h("rect.bar.failed", { ...bar, y: 1 - good - bad, height: bad }));
  });
  return box("over", "Edits over time", readout, svg,
    h("p.ends.small.quiet", {}, h("span", {}, moment(start)), h("span", {}, `peak ${rate(most)}`),
      h("span", {}, moment(at(made.length)))));
}

/** A bar of a share of 1, with what it says above it. */
const share = (name, value, text, kind = "part-0") => h("div.share", {},
  h("p.small", {}, h("span", {}, name), h("b", {}, text)),
  h("div.track", { "aria-hidden": "true" },
    h("span", { class: kind, style: `width:${Math.min(100, 100 * value)}%` })));

/** How busy each stage's groups were, and what the work went into. */
function busy({ timings }, stages) {
  const bars = stages.filter(({ held_s: held }) => held > 0).map((stage) => share(
    `${stage.stage}, ${count(stage.groups, "group")}${stage.gpus > 1 ? ` of ${stage.gpus} GPUs` : ""}`,
    stage.busy_s / stage.held_s, percent.format(Math.min(1, stage.busy_s / stage.held_s))));
  const work = sumOf(timings);
  if (!bars.length && !work) return null;
  const parts = Object.entries(timings).filter(([, s]) => s > 0).sort(([, a], [, b]) => b - a).slice(0, 4)
    .map(([part, s]) => share(part, s / work, percent.format(s / work), "part-2"));
  return bars.length
    ? box("busy", "Groups busy", null, bars, h("p.about.small.quiet", {},
        "Seconds at the model, of those that the run had its groups; starting and loading count as idle."))
    : box("busy", "What the work went into", null, parts);
}

/** What was computed against what the plan asks for, and what else the edits cost. */
function cost(totals) {
  const { forwards, planned, ok, gpu_seconds: gpu, wasted_forwards: wasted } = totals;
  const { skipped = 0, ...complete } = forwards;
  const computed = sumOf(complete);
  const asked = planned ? sumOf(planned) : 0;
  const most = Math.max(computed, asked);
  if (!most) return null;
  const more = asked ? computed / asked - 1 : 0;
  const readout = asked > 0 && h("p.readout.small.quiet", {},
    Math.abs(more) < 0.005 ? "as planned" : `${more > 0 ? "+" : "−"}${percent.format(Math.abs(more))}`);
  const facts = [
    gpu > 0 && ["GPU time", `${duration(gpu)}${ok ? `, ${three.format(gpu / ok)} s an edit` : ""}`],
    ["Inverted", count(totals.inverted, "video")],
    totals.reused > 0 && ["Trajectory reused", count(totals.reused, "video")],
    totals.retried > 0 && ["Tried again", count(totals.retried, "edit")],
    skipped > 0 && ["Skipped after the first block", `${whole.format(Math.round(skipped))} forwards`],
    wasted > 0 && ["Spent on failed edits", percent.format(wasted / computed)],
    totals.size_bytes > 0 && ["Edited videos", bytes(totals.size_bytes)],
  ].filter(Boolean);
  return box("cost", "Cost against the plan", readout,
    asked > 0 && share("Planned forwards", asked / most, whole.format(Math.round(asked)), "plain-part"),
    share("Computed forwards", computed / most, whole.format(Math.round(computed))),
    h("dl.facts", {}, facts.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])));
}

/** The figures of the last run beside those that were planned when it began. */
function against(plan) {
  if (!plan) return null;
  const hours = (value) => duration(3600 * value);
  const lines = [
    ["Edits", plan.edits, whole.format], ["Forwards", plan.forwards, whole.format],
    ["GPU time", plan.gpu_hours, hours], ["Time", plan.wall_hours, hours],
    ["Trajectories and edits", plan.storage_bytes, bytes], ["Memory of a rank", plan.memory_bytes, bytes],
  ].filter(([, { planned, actual }]) => planned !== null && actual !== null);
  const speed = plan.gpu && `Hours from the ${plan.basis} speed of ${plan.gpu}.`;
  return box("against", "Plan and actual", null,
    h("dl.facts", {}, lines.map(([name, { planned, actual, ratio }, text]) => [h("dt", {}, name),
      h("dd", {}, `${text(actual)} of ${text(planned)}${ratio === null ? "" : `, ${percent.format(ratio)}`}`)])),
    speed && h("p.about.small.quiet", {}, speed));
}

/** The edits that took longest; each leads to its card. */
function slowest({ slowest: edits }, choose) {
  if (!edits.length) return null;
  const most = edits[0].seconds;
  const line = ({ video_id: video, edit_id: edit, seconds, parts }) => {
    const some = Object.entries(parts).filter(([, s]) => s > 0);
    return h("li", {},
      h("button.link", { type: "button", title: some.map(([part, s]) => `${part} ${inSeconds(s)}`).join(", "),
        onclick: () => lead(choose, { video, edit }) }, `${video} / ${edit}`),
      h("b.small", {}, inSeconds(seconds)),
      h("div.shares", { "aria-hidden": "true", style: `width:${(100 * seconds) / most}%` },
        some.map(([, s], i) => h("span", { class: `part-${i % 6}`, style: `flex-grow:${s}` }))));
  };
  const rest = edits.slice(SLOW_AT_FIRST);
  return box("slow", "Slowest edits", null, h("ol", {}, edits.slice(0, SLOW_AT_FIRST).map(line)),
    rest.length > 0 && h("details", {}, h("summary", {}, `${rest.length} more`), h("ol", {}, rest.map(line))));
}

/** Show the edits of a choice alone: no other filter hides them. */
function lead(choose, changes) {
  choose({ ...defaults, ...changes, within: new Map() });
  byId("videos").scrollIntoView();
}

const inSeconds = (seconds) => (seconds < 600 ? `${three.format(seconds)} s` : duration(seconds));

/** Error codes by how often they occur; each leads to the edits that have it. */
function failures({ failures: codes }, choose) {
  if (!codes.length) return null;
  const most = codes[0].edits;
  const statusOf = (code) => summary.states.find(([, c]) => c === code)?.[0] ?? "failed";
  return box("why", "Failures by code", h("p.readout.small.quiet", {}, "choose one to filter"),
    h("ul", {}, codes.map(({ code, edits }) => h("li", {},
      h("button.link", { type: "button",
        onclick: () => lead(choose, { status: `${statusOf(code)}/${code}` }) }, h("code", {}, code)),
      h("b.small", {}, whole.format(edits)),
      h("div.track", { "aria-hidden": "true" },
        h("span", { class: statusOf(code), style: `width:${(100 * edits) / most}%` }))))));
}
