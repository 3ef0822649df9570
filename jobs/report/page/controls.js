"use strict";
// The controls of the view: search, filters, sorting and pages.

function showControls(view) {
  if (document.activeElement !== byId("search")) byId("search").value = view.q;
  byId("sort").value = view.sort;
  byId("only-edit").value = view.edit;
  byId("only-marks").value = view.marks;
  byId("each").setAttribute("aria-pressed", String(Boolean(view.each)));
  byId("each").disabled = view.sort === "edit";
  const named = !view.sort || ["edit", "status"].includes(view.sort);
  const [one, other] = named ? ["A to Z", "Z to A"] : ["Lowest first", "Highest first"];
  byId("direction").textContent = view.down ? `${other} ↓` : `${one} ↑`;
  for (const radio of byId("states").querySelectorAll("input")) radio.checked = radio.value === view.status;
  for (const radio of byId("verdicts").querySelectorAll("input")) radio.checked = radio.value === view.verdict;
  for (const figure of document.querySelectorAll(".plot[data-metric]")) {
    const metric = metricOf(figure.dataset.metric);
    const [low, high] = view.within.get(metric.key) ?? [Infinity, -Infinity];
    figure.querySelectorAll(".hit").forEach((bar, i) => {
      const middle = (metric.edges[i] + metric.edges[i + 1]) / 2;
      bar.setAttribute("aria-selected", middle >= low && middle <= high);
    });
  }
  const chip = (name, drop) => h("button.chip", { type: "button", onclick: drop,
    "aria-label": `Take away the filter ${name}` }, `${name} `, h("span", { "aria-hidden": "true" }, "✕"));
  byId("chips").replaceChildren(...[...view.within].map(([key, bounds]) => {
    const { label, unit } = metricOf(key);
    const [low, high] = bounds.map((bound) => withUnit(bound, unit));
    let range = `${low} to ${high}`;
    if (bounds[0] === -Infinity) range = `up to ${high}`;
    if (bounds[1] === Infinity) range = `from ${low}`;
    const drop = () => go({ within: new Map([...view.within].filter(([other]) => other !== key)) });
    return chip(`${label} ${range}`, drop);
  }));
  if (view.video) byId("chips").append(chip(`Video ${view.video}`, () => go({ video: "" })));
}

function makeControls() {
  const groups = Map.groupBy?.(METRICS, (metric) => metric.group) ?? new Map([["Metrics", METRICS]]);
  byId("sort").append(...[...groups].map(([label, metrics]) => h("optgroup", { label },
    metrics.map((metric) => h("option", { value: metric.key }, metric.label)))));
  const choice = (value, name, all, some, kind = "", of = "status") => h(`label.choice${kind}`, {},
    h("input", { type: "radio", name: of, value, onchange: () => go({ [of]: value }) }),
    h("span", {}, name),
    h("b", {}, some < all ? `${whole.format(some)} of ${whole.format(all)}` : whole.format(all)));
  const rows = statusCounts();
  const sum = (i) => rows.reduce((total, row) => total + row[i], 0);
  byId("states").append(choice("", "All", sum(1), sum(2)), ...rows.flatMap(([status, all, some]) => [
    choice(status, statusName(status), all, some),
    ...summary.states.filter(([s, code, n]) => s === status && code && n)
      .sort((a, b) => b[2] - a[2])
      .map(([, code, n, m]) => choice(`${status}/${code}`, code, n, m, ".code")),
  ]));
  byId("verdicts").hidden = !hasVerdicts;
  if (hasVerdicts) {
    byId("verdicts").append(choice("", "All", sum(1), sum(2), "", "verdict"),
      ...verdictCounts().map(([value, name, all, some, kind]) => choice(value, name, all, some, kind, "verdict")));
  }
  byId("masks").hidden = !summary.masks;
  byId("masks").addEventListener("click", toggleMasks);
  byId("only-marks").append(...Object.entries(MARKS).map(([value, [name]]) => h("option", { value }, name)));
  byId("only-edit").append(...summary.editIds.map((id) => h("option", { value: id }, id)));
  byId("only-edit").hidden = summary.editIds.length < 2;
  byId("only-edit").addEventListener("change", () => go({ edit: byId("only-edit").value }));
  byId("only-marks").addEventListener("change", () => go({ marks: byId("only-marks").value }));
  byId("each").addEventListener("click", () => go({ each: readView().each ? "" : "1" }));
  let typing = null;
  byId("search").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => go({ q: byId("search").value }, { replace: true }), 150);
  });
  byId("toolbar").addEventListener("submit", (event) => event.preventDefault());
  byId("sort").addEventListener("change", () =>
    go({ sort: byId("sort").value, ...(byId("sort").value === "edit" ? { each: "1" } : {}) }));
  byId("direction").addEventListener("click", () => go({ down: readView().down ? "" : "1" }));
  const turnTo = (page) => {
    go({ page: String(page) });
    byId("videos").scrollIntoView();
  };
  byId("previous").addEventListener("click", () => turnTo(Number(byId("page").value) - 1));
  byId("next").addEventListener("click", () => turnTo(Number(byId("page").value) + 1));
  byId("page").addEventListener("change", () => byId("page").value && turnTo(byId("page").value));
  byId("skip").addEventListener("click", () => byId("videos").focus());
  byId("together").append(...together.transport.elements);
  const wide = matchMedia("(min-width: 1000px)");
  const unfold = () => (byId("panel").open = wide.matches);
  wide.addEventListener("change", unfold);
  unfold();
}
