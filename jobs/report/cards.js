"use strict";
// One card for each video: its source, its edits, and each edit's certificate.

const EDITS_AT_FIRST = 7;
const SMALL_PX = 200; // clips narrower than this are enlarged with their pixels kept sharp
const ON_TILE = ["motion_agreement", "flicker"];

/** A card with the edits at the given places in the video; all of them if none are given. */
function makeCard(card, places, sortKey) {
  const shown = places ?? card.edits.map((_, i) => i);
  const element = h("article.card", { "aria-label": `Video ${card.id}` });
  const made = card.edits.find((edit) => edit.clip) ?? card.edits[0];
  const deck = new Deck(card.id, element, made.size[2], made.size[3]);
  const { wide } = shapeOf(card);
  const columns = Math.min(wide ? 5 : 6, Math.max(3, card.edits.length + 1));
  const tiles = h("div.tiles", { style: `--columns:${columns};--least:${wide ? 210 : 150}px` });
  if (card.source) tiles.append(makeSource(card, deck));
  const addTiles = (some) => tiles.append(
    ...some.map((i) => makeTile(card, card.edits[i], deck, sortKey)));
  addTiles(shown.slice(0, EDITS_AT_FIRST));
  const rest = shown.slice(EDITS_AT_FIRST);
  const more = rest.length > 0 && h("button.more", { type: "button", onclick: () => {
    more.remove();
    addTiles(rest);
  } }, `Show ${count(rest.length, "more edit")}`);
  element.append(...[
    h("header", {},
      h("h3", {}, card.id),
      deck.videos.length > 0 && h("div.transport", {}, deck.transport.elements)),
    tiles, more,
    shown.length < card.edits.length &&
      h("p.quiet.small", {}, `${shown.length} of ${count(card.edits.length, "edit")} match.`),
  ].filter(Boolean));
  return element;
}

/** What a card's clips look like before they are loaded. */
function shapeOf(card) {
  const [width, height] = card.edits.find((edit) => edit.size[0])?.size ?? [1, 1];
  return { ratio: `${width} / ${height}`, wide: width / height > 1.25 };
}

function makeSource(card, deck) {
  return h("figure.tile.source", {},
    makeClip(card.source, `Source of ${card.id}`, shapeOf(card).ratio, deck, "Source"),
    card.prompt && h("figcaption", {}, h("p.prompt.quiet", {}, card.prompt)));
}

function makeTile(card, edit, deck, sortKey) {
  const { ratio } = shapeOf(card);
  const name = edit.id ?? "No edit";
  const keys = [...new Set([sortKey, ...ON_TILE])].filter(Boolean);
  const numbers = keys.map((key) => [metricOf(key), numberOf(edit, key)])
    .filter(([metric, value]) => metric && value != null);
  return h(`figure.tile.${edit.status}`, { "data-edit": edit.id },
    edit.clip
      ? makeClip(edit.clip, `Edit ${name} of ${card.id}`, ratio, deck)
      : h("div.clip.missing", { style: `aspect-ratio:${ratio}` },
          h("p", {}, h("b", {}, statusName(edit.status)), h("code", {}, edit.code ?? ""))),
    h("figcaption", {},
      edit.prompt && h("p.prompt", {}, markNew(edit.prompt, card.prompt)),
      edit.error && h("p.error.small", {}, edit.error),
      numbers.length > 0 && h("dl.numbers", {}, numbers.map(([metric, value]) =>
        h("div", { class: metric.key === sortKey ? "sorted" : null },
          h("dt", {}, metric.label), h("dd", {}, withUnit(value, metric.unit))))),
      h("p.foot", {}, h("code", { title: name }, name),
        h("button.link", { type: "button", "aria-label": `Certificate of ${name}`,
          onclick: () => openCertificate(card, edit) }, edit.clip ? "Certificate" : "Details"))));
}

const metricOf = (key) => METRICS.find((metric) => metric.key === key);
const numberOf = (edit, key) => edit.numbers[METRICS.findIndex((metric) => metric.key === key)];

function makeClip(link, name, ratio, deck, badge) {
  const video = h("video", { "data-src": link, "aria-label": name, loop: true, playsinline: true,
    preload: "auto", onclick: () => deck.toggle() });
  video.muted = true; // the attribute does nothing on an element made by a script
  const frame = h("div.clip", { style: `aspect-ratio:${ratio}` }, video,
    badge && h("span.badge", {}, badge));
  video.addEventListener("loadedmetadata", () => {
    if (video.videoWidth < SMALL_PX) video.classList.add("small-clip");
  });
  video.addEventListener("error", () => {
    if (!video.getAttribute("src")) return;
    frame.classList.add("missing");
    frame.replaceChildren(h("p", {}, h("b", {}, "Not there"), h("code", {}, link)));
  });
  deck.add(video);
  return frame;
}

/** The prompt with the words marked that the source's prompt does not have, where the two are alike. */
function markNew(prompt, before) {
  const pieces = prompt.split(/(\s+)/); // words, and the space after each
  const words = pieces.filter((_, i) => i % 2 === 0);
  const old = (before ?? "").split(/\s+/).filter(Boolean);
  if (!old.length || words.length > 80 || old.length > 80) return [prompt];
  const bare = (word) => word.toLowerCase().replace(/[.,;:!?]+$/, "");
  // longest[i][j]: words that words[i:] and old[j:] have in common, in order
  const longest = Array.from({ length: words.length + 1 }, () => new Array(old.length + 1).fill(0));
  for (let i = words.length - 1; i >= 0; i--) {
    for (let j = old.length - 1; j >= 0; j--) {
      longest[i][j] = bare(words[i]) === bare(old[j])
        ? longest[i + 1][j + 1] + 1
        : Math.max(longest[i + 1][j], longest[i][j + 1]);
    }
  }
  if (longest[0][0] < words.length / 3) return [prompt];
  const marked = [];
  let run = null; // the mark that neighbouring new words go into together
  for (let i = 0, j = 0; i < words.length; i++) {
    while (j < old.length && bare(words[i]) !== bare(old[j]) && longest[i][j + 1] === longest[i][j]) j++;
    const same = j < old.length && bare(words[i]) === bare(old[j]);
    if (same) j++;
    const space = pieces[2 * i - 1] ?? "";
    if (same) marked.push(space, words[i]);
    else if (run) run.append(space, words[i]);
    else marked.push(space, h("mark", {}, words[i]));
    run = same ? null : run ?? marked.at(-1);
  }
  return marked;
}

/** Everything that is known of one edit, over the page. */
function openCertificate(card, edit) {
  const dialog = byId("certificate");
  const stage = h("div.tiles.stage");
  const deck = new Deck(edit.id ?? card.id, dialog, edit.size[2], edit.size[3]);
  const { ratio } = shapeOf(card);
  if (card.source) stage.append(makeClip(card.source, "Source", ratio, deck, "Source"));
  if (edit.clip) stage.append(makeClip(edit.clip, "Edit", ratio, deck, "Edit"));
  const table = (pairs) => h("dl.facts", {}, pairs.filter(([, value]) => value != null && value !== "")
    .map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
  const [width, height, frames, fps] = edit.size;
  dialog.replaceChildren(
    h("header", {}, h("div", {}, h("p.quiet.small", {}, card.id),
      h("h2", { id: "certificate-title" }, edit.id ?? "No edit")),
      h("button", { type: "button", "aria-label": "Close", onclick: () => dialog.close() }, "✕")),
    h("div.sheet", {},
      h("div.side", {}, stage,
        deck.videos.length ? h("div.transport", {}, deck.transport.elements) : "",
        edit.error && h("p.error", {},
          h("b", {}, `${statusName(edit.status)}: ${edit.code}`), edit.error),
        table([["Prompt", edit.prompt], ["Source prompt", card.prompt], ["Source", card.video],
          ["Clip", width && `${frames} frames, ${width} × ${height}, ${three.format(fps)} a second`],
          ...Object.entries(edit.facts), ...card.columns])),
      h("div.metrics", {}, METRICS.map((metric, i) => metricRow(metric, edit.numbers[i])),
        table([
          ...Object.entries(edit.forwards ?? {}).map(([kind, n]) => [`Forwards, ${kind}`, n && plain(n)]),
          ...Object.entries(edit.timings).map(([part, s]) => [`Time, ${part}`, duration(s)]),
        ]))));
  dialog.onclick = (event) => event.target === dialog && dialog.close();
  dialog.onclose = () => deck.close();
  dialog.showModal();
}

function metricRow(metric, value) {
  if (value == null) return "";
  return h("section.metric", { "data-metric": metric.key },
    h("h3", {}, metric.label), h("p.value", {}, withUnit(value, metric.unit)),
    metric.bars?.length > 1 ? h("div.strip", { "aria-hidden": "true" }, histogram(metric, value)) : "",
    h("p.about.small.quiet", {}, metric.about));
}
