"use strict";
// Which edits are accepted and by which rules, the masks of edits, and their candidates.

const RULES = summary.rules ?? []; // {text, key, op, number} each
const SIGNS = { ">=": "≥", "<=": "≤", ">": ">", "<": "<", "==": "=", "!=": "≠" };
const VERDICTS = { yes: "Accepted", no: "Rejected", none: "No verdict" };
const verdictOf = (accepted) => (accepted == null ? "none" : accepted ? "yes" : "no");
const rulesOf = (key) => RULES.filter((rule) => rule.key === key);
const hasVerdicts = (summary.verdicts ?? []).some(([accepted]) => accepted != null);

/** A rule's threshold in words: `≥ 30 dB`. */
const limit = ({ key, op, number }) =>
  `${SIGNS[op]} ${withUnit(number, metricOf(key)?.unit ?? "")}`;

/** The rule that a reason of `rejected_for` is of, if the page knows it. */
const ruleOf = (reason) => RULES.find(({ text }) => reason === text || reason.startsWith(`${text}:`));

/** Whether an edit is rejected for a number. */
const failsFor = (edit, key) => (edit.rejected ?? []).some((reason) => ruleOf(reason)?.key === key);

/** The numbers of rules that a tile shows beside those which its verdict names. */
const ruleKeysBeside = (edit) => RULES.map(({ key }) => key)
  .filter((key) => summary.compare || !failsFor(edit, key));

/** How many edits have each verdict, and each reason: [value, name, of all, of those shown, indent?]. */
function verdictCounts() {
  const counts = new Map(Object.keys(VERDICTS).map((kind) => [kind, [0, 0]]));
  const reasons = new Map();
  const add = (map, key, all, some) => {
    const before = map.get(key) ?? [0, 0];
    map.set(key, [before[0] + all, before[1] + some]);
  };
  for (const [accepted, why, all, some] of summary.verdicts) {
    add(counts, verdictOf(accepted), all, some);
    for (const reason of why) add(reasons, reason, all, some);
  }
  const most = [...reasons].sort(([, [a]], [, [b]]) => b - a);
  return [...counts].filter(([, [all]]) => all).flatMap(([kind, [all, some]]) => [
    [kind, VERDICTS[kind], all, some],
    ...(kind === "no" ? most.map(([reason, [n, m]]) => [`no/${reason}`, reason, n, m, ".code"]) : []),
  ]);
}

/** Whether each verdict of the summary passes the filter of a view: `yes`, `no`, `no/REASON`. */
function passingVerdicts(wanted) {
  const [kind, ...rest] = wanted.split("/");
  const reason = rest.join("/");
  return summary.verdicts.map(([accepted, why]) =>
    verdictOf(accepted) === kind && (!reason || why.includes(reason)));
}

/** The verdict on a tile or in the large view, with each reason and the number that it is about. */
function makeVerdict(outcome, name = "") {
  if (outcome.accepted == null) return false;
  const value = (reason) => {
    const rule = ruleOf(reason);
    const metric = rule && metricOf(rule.key);
    const number = metric && reason === rule.text ? numberOf(outcome, rule.key) : null;
    return number == null ? false : h("b", {}, withUnit(number, metric.unit));
  };
  return h(`div.verdict.${verdictOf(outcome.accepted)}`, {},
    h("p", {}, h("span", { "aria-hidden": "true" }, outcome.accepted ? "● " : "○ "),
      [name, VERDICTS[verdictOf(outcome.accepted)]].filter(Boolean).join(": ")),
    (outcome.rejected ?? []).length > 0 && h("ul", {}, outcome.rejected.map((reason) =>
      h("li", {}, h("span", {}, reason), value(reason)))));
}

/** A line in a histogram at each threshold that a rule sets. */
function thresholdLines({ key, bars, edges }) {
  return rulesOf(key).map(({ number }) => {
    const share = (number - edges[0]) / (edges.at(-1) - edges[0]);
    const x = Math.min(1, Math.max(0, share)) * bars.length;
    return h("line.threshold", { x1: x, x2: x, y1: 0, y2: 1, "vector-effect": "non-scaling-stroke" });
  });
}

const limitsOf = (key) => rulesOf(key).length > 0 &&
  h("span.limit", {}, `Accepted: ${rulesOf(key).map(limit).join(", ")}`);

/** The mask of an edit as a clip that lies over it: what the mask leaves out is darkened. */
function makeMask(mask, name, deck) {
  const video = h("video.mask", { "data-src": mask, "aria-label": `Mask of ${name}`, loop: true,
    playsinline: true, preload: "auto" });
  video.muted = true; // the attribute does nothing on an element made by a script
  video.addEventListener("error", () => video.getAttribute("src") && video.remove());
  deck.add(video);
  return video;
}

function toggleMasks() {
  if (!summary.masks) return;
  const shown = document.body.classList.toggle("masks");
  byId("masks").setAttribute("aria-pressed", String(shown));
  announce(shown ? "Masks are shown" : "Masks are hidden");
}

/** All tries at an edit, with their numbers and files. */
function makeCandidates(edit) {
  const { candidates = [] } = edit;
  if (!candidates.length) return false;
  const metrics = METRICS.filter(({ key }) => candidates.some(({ numbers }) => numbers[key] != null));
  const head = ["", "Changes", ...metrics.map(({ label }) => label), "File"];
  const row = ({ number, changes, clip, code, error, numbers }) => {
    const chosen = number === edit.chosen;
    return h(`tr${chosen ? ".chosen" : ""}`, {},
      h("th", { scope: "row" }, number, chosen && h("span.small", {}, " chosen")),
      h("td", {}, changes || "none", error && h("p.error.small", {}, `${code}: ${error}`)),
      metrics.map(({ key, unit }) => h("td.value", {}, withUnit(numbers[key], unit))),
      h("td", {}, clip ? h("a", { href: clip, target: "_blank", rel: "noopener" }, "Open") : "–"));
  };
  return h("section.candidates", { "aria-label": "Candidates" },
    h("h3", {}, count(candidates.length, "candidate")),
    h("div.scrolls", { tabindex: 0, role: "region", "aria-label": "Table of candidates" }, h("table", {},
      h("thead", {}, h("tr", {}, head.map((name) => h("th", { scope: "col" }, name || h("span.unseen", {}, "Number"))))),
      h("tbody", {}, candidates.map(row)))));
}
