"use strict";
// What is shown: the view lives in the page's address, so each view can be linked to and gone back to.

const CARDS_ON_PAGE = 12;
const defaults = {
  page: "1", status: "", q: "", sort: "", down: "", edit: "", video: "", marks: "", each: "",
  verdict: "",
};
const SORTS = ["edit", "status", "rating"]; // beside the metrics; "" sorts by video
const MARKS = { // what the edits may be filtered by: [name, does a mark pass]
  pick: ["Picked", ({ pick }) => pick === "pick"],
  reject: ["Rejected", ({ pick }) => pick === "reject"],
  none: ["Not judged yet", ({ pick, rating }) => !pick && !rating],
  rated: ["Rated 4 or 5", ({ rating }) => rating >= 4],
  note: ["With a note", ({ note }) => note !== ""],
};
let latest = 0; // of several views asked for quickly, only the last is drawn
let drawn = []; // what waits for the page to be drawn

/** The view that the address names. `within` maps a metric to the bounds of its values. */
function readView() {
  const fields = new URLSearchParams(location.hash.slice(1));
  const view = Object.fromEntries(
    Object.entries(defaults).map(([name, value]) => [name, fields.get(name) ?? value]));
  view.within = new Map([...fields].filter(([name]) => name.startsWith("in."))
    .map(([name, bounds]) => [name.slice(3), bounds.split("~").map(Number)])
    .filter(([key, bounds]) => metricOf(key) && bounds.length === 2));
  if (!metricOf(view.sort) && !SORTS.includes(view.sort)) view.sort = "";
  if (!MARKS[view.marks]) view.marks = "";
  if (view.sort === "edit") view.each = "1"; // edits of one name stand together
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

/** The cards of a view in order: a video, and the places of its edits that match (null for all). */
async function find(view) {
  const columns = await columnsFor(view);
  const filters = makeFilters(view, columns);
  const valueOf = makeValues(view, columns);
  const better = view.down ? Math.max : Math.min;
  const found = [];
  let first = 0;
  let edits = 0;
  columns.layout.forEach((size, video) => {
    const places = [];
    const values = [];
    for (let place = 0; place < size; place++) {
      const edit = first + place;
      if (!filters.every((filter) => filter(edit, video))) continue;
      places.push(place);
      values.push(valueOf(edit, video));
    }
    first += size;
    edits += places.length;
    if (view.each) places.forEach((place, i) => found.push({ video, places: [place], value: values[i] }));
    else if (places.length) {
      const all = places.length === size;
      const value = values.reduce((a, b) => (a === null ? b : b === null ? a : better(a, b)), null);
      found.push({ video, places: all ? null : places, value });
    }
  });
  const sign = view.down ? -1 : 1;
  if (view.sort) {
    found.sort((a, b) => (a.value === null) - (b.value === null) // without a value: last either way
      || sign * ((a.value > b.value) - (a.value < b.value)) || a.video - b.video);
  } else if (view.down) found.reverse();
  return { found, edits };
}

/** The columns that a view is found by; no others are loaded. */
async function columnsFor(view) {
  const needed = ["layout"];
  if (view.status || view.sort === "status") needed.push("state");
  if (view.verdict) needed.push("verdict");
  if (view.q.trim()) needed.push("text");
  if (view.edit || view.video || view.marks || ["edit", "rating"].includes(view.sort)) needed.push("ids");
  const keys = new Set([...view.within.keys(), ...(metricOf(view.sort) ? [view.sort] : [])]);
  for (const key of keys) needed.push(`number:${key}`);
  const values = await Promise.all(needed.map(column));
  return Object.fromEntries(needed.map((name, i) => [name, values[i]]));
}

/** A function of (edit, video), by their places among all, to what the view is sorted by. */
function makeValues(view, columns) {
  if (view.sort === "edit") return (edit) => columns.ids.edit[edit];
  if (view.sort === "rating") {
    const { videos, names, edit: ids } = columns.ids;
    return (edit, video) => picks.get(videos[video], names[ids[edit]]).rating;
  }
  if (view.sort === "status") {
    const ranks = summary.states.map(([status, code]) => `${status}/${code ?? ""}`);
    const sorted = [...ranks].sort();
    return (edit) => sorted.indexOf(ranks[columns.state[edit]]);
  }
  const numbers = view.sort && columns[`number:${view.sort}`];
  return (edit) => (numbers ? numbers[edit] : null);
}

/** Functions of (edit, video), by their places among all, that say whether to show the edit. */
function makeFilters(view, columns) {
  const filters = [];
  if (view.status) {
    const [status, code] = view.status.split("/");
    const right = summary.states.map(([s, c]) => s === status && (!code || c === code));
    filters.push((edit) => right[columns.state[edit]]);
  }
  if (view.verdict) {
    const right = passingVerdicts(view.verdict);
    filters.push((edit) => right[columns.verdict[edit]]);
  }
  const words = view.q.toLowerCase().split(/\s+/).filter(Boolean);
  if (words.length) {
    const { videos, edits } = columns.text;
    filters.push((edit, video) => {
      const text = `${videos[video]} ${edits[edit]}`.toLowerCase();
      return words.every((word) => text.includes(word));
    });
  }
  if (columns.ids) {
    const { videos, names, edit: ids } = columns.ids;
    if (view.video) filters.push((edit, video) => videos[video] === view.video);
    if (view.edit) filters.push((edit) => names[ids[edit]] === view.edit);
    const passes = MARKS[view.marks]?.[1];
    if (passes) filters.push((edit, video) => passes(picks.get(videos[video], names[ids[edit]])));
  }
  for (const [key, [low, high]] of view.within) {
    const numbers = columns[`number:${key}`];
    filters.push((edit) => numbers[edit] != null && numbers[edit] >= low && numbers[edit] <= high);
  }
  return filters;
}

/** The file that holds the card of a video, and its place in it. */
function whereIs(video) {
  const file = summary.firsts.findLastIndex((first) => first <= video);
  return [summary.cards[file], video - summary.firsts[file]];
}

/** Resolves when the page has been drawn the next time. */
const nextShow = () => new Promise((resolve) => drawn.push(resolve));

async function show() {
  const turn = ++latest;
  const view = readView();
  showControls(view);
  try {
    const { found, edits } = await find(view);
    const onPage = CARDS_ON_PAGE * (view.each ? 2 : 1);
    const pages = Math.max(1, Math.ceil(found.length / onPage));
    const page = Math.min(pages, Math.max(1, parseInt(view.page, 10) || 1));
    const chosen = found.slice((page - 1) * onPage, page * onPage);
    const files = await Promise.all(chosen.map(({ video }) => load(whereIs(video)[0])));
    if (turn !== latest) return;
    for (const deck of [...decks]) if (deck.element !== byId("certificate")) deck.close();
    byId("cards").classList.toggle("each", Boolean(view.each));
    byId("cards").replaceChildren(...chosen.map(({ video, places }, i) =>
      makeCard(files[i][whereIs(video)[1]], places, view.sort, Boolean(view.each))));
    setCurrent(currentTile());
    showFound(view, found.length, edits, page, onPage);
    together.show();
    performance.mark("shown");
  } catch (error) {
    byId("cards").replaceChildren(h("p.notice", { role: "alert" }, error.message));
  }
  for (const resolve of drawn.splice(0)) resolve();
}

function showFound(view, found, edits, page, onPage) {
  const pages = Math.max(1, Math.ceil(found / onPage));
  const first = (page - 1) * onPage + 1;
  const range = pages > 1 ? `${whole.format(first)}–${whole.format(Math.min(found, page * onPage))} of ` : "";
  byId("count").textContent = !found
    ? "Nothing matches. Take a filter away or search for something else."
    : range + (view.each ? count(edits, "edit") : `${count(found, "video")}, ${count(edits, "edit")}`);
  byId("pager").hidden = pages < 2;
  byId("together").hidden = !found;
  byId("page").value = page;
  byId("page").max = pages;
  byId("pages").textContent = whole.format(pages);
  byId("previous").disabled = page <= 1;
  byId("next").disabled = page >= pages;
}

showSummary();
showRuns(go);
showNotes();
makeMarks();
makeControls();
makeKeys();
showPlots((key, low, high) => go({ within: new Map(readView().within).set(key, [low, high]) }));
showSettings();
addEventListener("hashchange", show);
show();
