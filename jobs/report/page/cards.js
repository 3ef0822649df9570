"use strict";
// One card for each video: its source and its edits; or for each edit, with its source.

const EDITS_AT_FIRST = 7;
const SMALL_PX = 200; // clips narrower than this are enlarged with their pixels kept sharp
const ON_TILE = ["motion_agreement", "flicker"];

/** A card with the edits at the given places in the video; all of them if none are given. */
function makeCard(card, places, sortKey, alone = false) {
  const shown = places ?? card.edits.map((_, i) => i);
  const element = h("article.card", { "aria-label": `Video ${card.id}` });
  const made = card.edits.find((edit) => edit.clip) ?? card.edits[0];
  const deck = new Deck(card.id, element, made.size[2], made.size[3]);
  const { wide } = shapeOf(card);
  const most = summary.compare ? 3 : wide ? 5 : 6;
  const columns = alone ? 2 : Math.min(most, Math.max(summary.compare ? 2 : 3, card.edits.length + 1));
  const least = (wide ? 210 : 150) * (summary.compare ? 1.6 : 1);
  const tiles = h(`div.tiles${summary.compare ? ".compared" : ""}`,
    { style: `--columns:${columns};--least:${alone ? 0 : least}px` });
  if (card.source) tiles.append(makeSource(card, deck));
  const addTiles = (some) => tiles.append(
    ...some.map((i) => makeTile(card, i, deck, sortKey)));
  addTiles(shown.slice(0, EDITS_AT_FIRST));
  const rest = shown.slice(EDITS_AT_FIRST);
  const more = rest.length > 0 && h("button.more", { type: "button", onclick: () => {
    more.remove();
    addTiles(rest);
  } }, `Show ${count(rest.length, "more edit")}`);
  const onlyThis = card.id !== null && summary.videos > 1 && readView().video !== card.id;
  element.append(...[
    h("header", {},
      h("h3", { dir: "auto" }, onlyThis
        ? h("button.title", { type: "button", title: "Show only this video",
            onclick: () => go({ video: card.id }) }, card.id)
        : card.id ?? "No id"),
      deck.videos.length > 0 && h("div.transport", {}, deck.transport.elements)),
    tiles, more,
    !alone && shown.length < card.edits.length &&
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
    card.prompt && h("figcaption", {}, h("p.prompt.quiet", { dir: "auto" }, card.prompt)));
}

function makeTile(card, place, deck, sortKey) {
  const edit = card.edits[place];
  const { there } = edit;
  const { ratio } = shapeOf(card);
  const name = edit.id ?? "No edit";
  const clip = (outcome, badge) => (outcome.clip
    ? makeClip(outcome.clip, `${badge ? `${badge}: ` : ""}Edit ${name} of ${card.id}`, ratio, deck, badge,
        outcome.mask)
    : h(`div.clip.missing.${outcome.status}`, { style: `aspect-ratio:${ratio}` },
        h("p", {}, h("b", {}, statusName(outcome.status)), h("code", {}, outcome.code ?? ""))));
  const names = summary.compare;
  const tile = h(`figure.tile.${edit.status}`, {
    "data-edit": edit.id, "data-place": place, tabindex: -1,
    "aria-label": `Edit ${name} of ${card.id}, ${statusName(edit.status)}`,
  },
    names ? h("div.pair", {}, clip(edit, names.here),
        there ? clip(there, names.there) : h("div.clip.missing", { style: `aspect-ratio:${ratio}` },
          h("p", {}, h("b", {}, `Only in ${names.here}`))))
      : clip(edit),
    h("figcaption", {},
      edit.prompt && h("p.prompt", { dir: "auto" }, markNew(edit.prompt, card.prompt)),
      edit.instruction && h("p.instruction.quiet.small", { dir: "auto" }, `“${edit.instruction}”`),
      there && there.prompt !== edit.prompt &&
        h("p.prompt.quiet.small", { dir: "auto" }, `${names.there}: ${there.prompt}`),
      edit.error && h("p.error.small", {}, edit.error),
      there?.error && h("p.error.small", {}, `${names.there}: ${there.error}`),
      makeVerdict(edit, names && edit.status !== "absent" ? names.here : ""),
      there && makeVerdict(there, names.there),
      numbersOf(edit, sortKey),
      edit.id !== null && card.id !== null && markButtons(card, edit),
      h("p.foot", {}, h("code", { title: name, dir: "auto" }, name),
        h("button.link", { type: "button", "aria-label": `Large view of ${name}`,
          onclick: () => openLarge(tile) }, "Large view"))));
  Object.assign(tile, { card, edit });
  tile.querySelector(".marks")?.refresh();
  return tile;
}

/** The numbers on a tile: of this run, and where two are compared of the other and the difference. */
function numbersOf(edit, sortKey) {
  const sorted = sortKey.replace(/^difference:/, "");
  const rows = [...new Set([sorted, ...ruleKeysBeside(edit), ...ON_TILE])].map((key) => {
    const [metric, here] = [metricOf(key), edit.status === "absent" ? null : numberOf(edit, key)];
    const there = metric && edit.there ? numberOf(edit.there, key) : null;
    if (!metric || (here == null && there == null)) return null;
    const difference = metricOf(`difference:${key}`) && numberOf(edit, `difference:${key}`);
    const text = !summary.compare ? withUnit(here, metric.unit)
      : [`${plain(here, metric.unit)} · ${plain(there, metric.unit)}`,
        difference != null && h("b", {}, ` ${difference > 0 ? "+" : ""}${plain(difference, metric.unit)}`)];
    const kinds = [key === sorted && "sorted", failsFor(edit, key) && "fails"].filter(Boolean).join(" ");
    return h("div", { class: kinds || null }, h("dt", {}, metric.label), h("dd", {}, text));
  }).filter(Boolean);
  return rows.length > 0 && h("dl.numbers", {}, rows);
}

const metricOf = (key) => METRICS.find((metric) => metric.key === key);
const numberOf = (edit, key) => edit.numbers[METRICS.findIndex((metric) => metric.key === key)];

function makeClip(link, name, ratio, deck, badge, mask = null) {
  const video = h("video", { "data-src": link, "aria-label": name, loop: true, playsinline: true,
    preload: "auto", onclick: () => deck.toggle() });
  video.muted = true; // the attribute does nothing on an element made by a script
  const frame = h("div.clip", { style: `aspect-ratio:${ratio}` }, video,
    mask && makeMask(mask, name, deck),
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
