"use strict";
// What is shown: the view lives in the page's address, so each view can be linked to and gone back to.

const CARDS_ON_PAGE = 12;
const defaults = { page: "1", status: "", q: "", sort: "", down: "" };
let latest = 0; // of several views asked for quickly, only the last is drawn

/** The view that the address names. `within` maps a metric to the bounds of its values. */
function readView() {
  const fields = new URLSearchParams(location.hash.slice(1));
  const view = Object.fromEntries(
    Object.entries(defaults).map(([name, value]) => [name, fields.get(name) ?? value]));
  view.within = new Map([...fields].filter(([name]) => name.startsWith("in."))
    .map(([name, bounds]) => [name.slice(3), bounds.split("~").map(Number)])
    .filter(([key, bounds]) => metricOf(key) && bounds.length === 2));
  if (!metricOf(view.sort)) view.sort = "";
  return view;
}

/** Change the view; what is found changes with everything but the page, so start at page 1. */
function go(changes, { replace = false } = {}) {
  const view = { ...readView(), page: "1", ...changes };
  const fields = new URLSearchParams(
    Object.keys(defaults).filter((name) => view[name] !== defaults[name]).map((name) => [name, view[name]]));
  for (const [key, bounds] of view.within) fields.set(`in.${key}`, bounds.join("~"));
  const address = `#${fields}` === "#" ? "#all" : `#${fields}`; // an empty one scrolls to the top
  if (replace) location.replace(address);
  else location.hash = address;
}

/** The videos of a view in order, each with the places of the edits that match (null for all). */
async function find(view) {
  const needed = ["layout"];
  if (view.status) needed.push("state");
  if (view.q.trim()) needed.push("text");
  const keys = new Set([...view.within.keys(), ...(view.sort ? [view.sort] : [])]);
  for (const key of keys) needed.push(`number:${key}`);
  if (needed.length === 1) {
    const all = Array.from({ length: summary.videos }, (_, video) => ({ video, places: null }));
    return { found: view.down ? all.reverse() : all, edits: summary.edits };
  }
  const values = await Promise.all(needed.map(column));
  const columns = Object.fromEntries(needed.map((name, i) => [name, values[i]]));
  const filters = makeFilters(view, columns);
  const numbers = view.sort && columns[`number:${view.sort}`];
  const better = view.down ? Math.max : Math.min;
  const found = [];
  let first = 0;
  let edits = 0;
  columns.layout.forEach((size, video) => {
    const places = [];
    let value = null;
    for (let place = 0; place < size; place++) {
      const edit = first + place;
      if (!filters.every((filter) => filter(edit, video))) continue;
      places.push(place);
      const number = numbers && numbers[edit];
      if (number != null) value = value === null ? number : better(value, number);
    }
    first += size;
    edits += places.length;
    if (places.length) found.push({ video, places: places.length < size ? places : null, value });
  });
  const sign = view.down ? -1 : 1;
  if (view.sort) {
    found.sort((a, b) => (a.value === null) - (b.value === null) // without a value: last either way
      || sign * ((a.value > b.value) - (a.value < b.value)) || a.video - b.video);
  } else if (view.down) found.reverse();
  return { found, edits };
}

/** Functions of (edit, video), by their places among all, that say whether to show the edit. */
function makeFilters(view, columns) {
  const filters = [];
  if (view.status) {
    const [status, code] = view.status.split("/");
    const right = summary.states.map(([s, c]) => s === status && (!code || c === code));
    filters.push((edit) => right[columns.state[edit]]);
  }
  const words = view.q.toLowerCase().split(/\s+/).filter(Boolean);
  if (words.length) {
    const { videos, edits } = columns.text;
    filters.push((edit, video) => {
      const text = `${videos[video]} ${edits[edit]}`.toLowerCase();
      return words.every((word) => text.includes(word));
    });
  }
  for (const [key, [low, high]] of view.within) {
    const numbers = columns[`number:${key}`];
    filters.push((edit) => numbers[edit] != null && numbers[edit] >= low && numbers[edit] <= high);
  }
  return filters;
}

async function show() {
  const turn = ++latest;
  const view = readView();
  showControls(view);
  try {
    const { found, edits } = await find(view);
    const pages = Math.max(1, Math.ceil(found.length / CARDS_ON_PAGE));
    const page = Math.min(pages, Math.max(1, parseInt(view.page, 10) || 1));
    const chosen = found.slice((page - 1) * CARDS_ON_PAGE, page * CARDS_ON_PAGE);
    const per = summary.cardsPerFile;
    const files = await Promise.all(chosen.map(({ video }) => load(summary.cards[Math.floor(video / per)])));
    if (turn !== latest) return;
    for (const deck of [...decks]) if (deck.element !== byId("certificate")) deck.close();
    byId("cards").replaceChildren(...chosen.map(({ video, places }, i) =>
      makeCard(files[i][video % per], places, view.sort)));
    showFound(found.length, edits, page, pages);
    together.show();
    performance.mark("shown");
  } catch (error) {
    byId("cards").replaceChildren(h("p.notice", { role: "alert" }, error.message));
  }
}

function showFound(videos, edits, page, pages) {
  const first = (page - 1) * CARDS_ON_PAGE + 1;
  const last = Math.min(videos, page * CARDS_ON_PAGE);
  byId("count").textContent = videos
    ? (pages > 1 ? `${whole.format(first)}–${whole.format(last)} of ` : "") +
      `${count(videos, "video")}, ${count(edits, "edit")}`
    : "Nothing matches. Take a filter away or search for something else.";
  byId("pager").hidden = pages < 2;
  byId("together").hidden = !videos;
  byId("page").value = page;
  byId("page").max = pages;
  byId("pages").textContent = whole.format(pages);
  byId("previous").disabled = page <= 1;
  byId("next").disabled = page >= pages;
}

function showControls(view) {
  if (document.activeElement !== byId("search")) byId("search").value = view.q;
  byId("sort").value = view.sort;
  const [one, other] = view.sort ? ["Lowest first", "Highest first"] : ["A to Z", "Z to A"];
  byId("direction").textContent = view.down ? `${other} ↓` : `${one} ↑`;
  for (const radio of byId("states").querySelectorAll("input")) radio.checked = radio.value === view.status;
  for (const figure of document.querySelectorAll(".plot[data-metric]")) {
    const metric = metricOf(figure.dataset.metric);
    const [low, high] = view.within.get(metric.key) ?? [Infinity, -Infinity];
    figure.querySelectorAll(".hit").forEach((bar, i) => {
      const middle = (metric.edges[i] + metric.edges[i + 1]) / 2;
      bar.setAttribute("aria-selected", middle >= low && middle <= high);
    });
  }
  byId("chips").replaceChildren(...[...view.within].map(([key, bounds]) => {
    const { label, unit } = metricOf(key);
    const [low, high] = bounds.map((bound) => withUnit(bound, unit));
    let range = `${low} to ${high}`;
    if (bounds[0] === -Infinity) range = `up to ${high}`;
    if (bounds[1] === Infinity) range = `from ${low}`;
    const drop = () => go({ within: new Map([...view.within].filter(([other]) => other !== key)) });
    return h("button.chip", { type: "button", onclick: drop,
      "aria-label": `Take away the filter ${label} ${range}` },
      `${label} ${range} `, h("span", { "aria-hidden": "true" }, "✕"));
  }));
}

function makeControls() {
  const groups = Map.groupBy?.(METRICS, (metric) => metric.group) ?? new Map([["Metrics", METRICS]]);
  byId("sort").append(...[...groups].map(([label, metrics]) => h("optgroup", { label },
    metrics.map((metric) => h("option", { value: metric.key }, metric.label)))));
  const choice = (value, name, n, kind = "") => h(`label.choice${kind}`, {},
    h("input", { type: "radio", name: "status", value, onchange: () => go({ status: value }) }),
    h("span", {}, name), h("b", {}, whole.format(n)));
  byId("states").append(choice("", "All", summary.edits), ...statusCounts().flatMap(([status, n]) => [
    choice(status, statusName(status), n),
    ...summary.states.filter(([s, code]) => s === status && code)
      .sort((a, b) => b[2] - a[2])
      .map(([, code, some]) => choice(`${status}/${code}`, code, some, ".code")),
  ]));
  let typing = null;
  byId("search").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => go({ q: byId("search").value }, { replace: true }), 150);
  });
  byId("toolbar").addEventListener("submit", (event) => event.preventDefault());
  byId("sort").addEventListener("change", () => go({ sort: byId("sort").value }));
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

showSummary();
makeControls();
showPlots((key, low, high) => go({ within: new Map(readView().within).set(key, [low, high]) }));
showSettings();
addEventListener("hashchange", show);
show();
