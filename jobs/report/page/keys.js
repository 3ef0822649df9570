"use strict";
// The keyboard: a current edit, moved over the page and from page to page, and what is done with it.

const KEYS = [
  ["Space", "Play or pause all clips"],
  ["j, ↓ and k, ↑", "Next and previous row"],
  ["→ and ←", "Next and previous edit, over the pages"],
  ["Enter, o", "Large view of the edit; Esc closes it"],
  ["p", "Pick, or take it back"],
  ["x", "Reject, or take it back"],
  ["1 to 5", "Rate; 0 takes the rating away"],
  ["n", "Write a note; Esc ends it"],
  ["m", "Masks: show or hide them"],
  ["/", "Search"],
  ["s, w, v, d", "Large view: side by side, wipe, overlay, difference"],
  ["[ and ]", "Large view: move the slider"],
  ["?", "This list"],
];
let current = null; // the tile that the keys act on

const tilesOf = (element) => [...element.querySelectorAll(".tile[data-place]")];
const cardOf = (tile) => tile.closest(".card");

/** The tile that the keys act on; the first one before any was chosen. */
const currentTile = () => (current?.isConnected ? current : tilesOf(byId("cards"))[0] ?? null);

function setCurrent(tile) {
  if (current !== tile) current?.setAttribute("tabindex", "-1");
  current = tile;
  tile?.setAttribute("tabindex", "0");
}

function focusTile(tile) {
  if (!tile) return;
  setCurrent(tile);
  tile.focus({ preventScroll: true });
  const smooth = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  tile.scrollIntoView({ block: "nearest", behavior: smooth ? "smooth" : "auto" });
}

/** Make the next (1) or previous (-1) edit current; turns the page at its end. */
async function stepTile(by) {
  const tile = currentTile();
  if (!tile) return null;
  if (by > 0 && tile === tilesOf(cardOf(tile)).at(-1)) cardOf(tile).querySelector(".more")?.click();
  const tiles = tilesOf(byId("cards"));
  const next = tiles[tiles.indexOf(tile) + by] ?? (await turnPage(by));
  if (next) setCurrent(next);
  return next;
}

/** The first edit of the next page or the last of the previous one; null where there is none. */
async function turnPage(by) {
  if (byId(by > 0 ? "next" : "previous").disabled || byId("pager").hidden) return null;
  const drawn = nextShow();
  go({ page: String(Number(byId("page").value) + by) });
  await drawn;
  return tilesOf(byId("cards")).at(by > 0 ? 0 : -1) ?? null;
}

async function stepCard(by) {
  const tile = currentTile();
  if (!tile) return;
  const column = tilesOf(cardOf(tile)).indexOf(tile);
  const cards = [...byId("cards").children].filter((card) => tilesOf(card).length);
  const card = cards[cards.indexOf(cardOf(tile)) + by];
  const tiles = card ? tilesOf(card) : [];
  focusTile(tiles[Math.min(column, tiles.length - 1)] ?? (await turnPage(by)));
}

const onEdit = (act) => () => {
  const tile = large.tile ?? currentTile();
  if (tile?.edit.id == null || tile.card.id == null) return; // nothing that a mark could name
  if (!large.tile) focusTile(tile);
  act(tile);
};

const noteOf = (tile) => (large.tile ? byId("certificate") : tile).querySelector(".marks");

const actions = {
  " ": () => (large.deck ? large.deck.toggle() : together.transport.button.click()),
  p: onEdit(({ card, edit }) => judge(card, edit, "pick")),
  x: onEdit(({ card, edit }) => judge(card, edit, "reject")),
  n: onEdit((tile) => openNote(noteOf(tile))),
  ...Object.fromEntries([0, 1, 2, 3, 4, 5].map((n) => [String(n),
    onEdit(({ card, edit }) => rate(card, edit, n || null))])),
  ArrowRight: async () => (large.tile ? stepLarge(1) : focusTile(await stepTile(1))),
  ArrowLeft: async () => (large.tile ? stepLarge(-1) : focusTile(await stepTile(-1))),
  m: () => toggleMasks(),
  "?": () => byId("keys").showModal(),
};
const onPage = {
  j: () => stepCard(1),
  k: () => stepCard(-1),
  ArrowDown: () => stepCard(1),
  ArrowUp: () => stepCard(-1),
  "/": () => byId("search").select(),
  o: () => currentTile() && openLarge(currentTile()),
  Enter: () => currentTile() && openLarge(currentTile()),
};
const inLarge = {
  j: () => stepLarge(1),
  k: () => stepLarge(-1),
  "[": () => large.move(-0.05),
  "]": () => large.move(0.05),
  ...Object.fromEntries(Object.entries(MODES).map(([mode, { key }]) => [key, () => large.setMode(mode)])),
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || event.isComposing) return;
  const { target, key } = event;
  const moved = target.closest("input[type=range], input[type=radio]"); // has keys, but no text
  if (moved && (key.startsWith("Arrow") || (key === " " && moved.type === "radio"))) return;
  const typing = !moved && target.closest("input, select, textarea, [role=listbox]");
  if (typing) {
    if (key === "Escape" && typing.matches("textarea, #search")) {
      event.preventDefault(); // the dialog around a note stays
      typing.blur();
      if (large.tile) byId("certificate").focus();
      else focusTile(currentTile());
    }
    return;
  }
  if ([" ", "Enter"].includes(key) && target.closest("button, summary, a, video")) return;
  if (byId("keys").open) return;
  const act = actions[key] ?? (large.tile ? inLarge : onPage)[key];
  if (!act) return;
  event.preventDefault();
  act();
}

function makeKeys() {
  byId("keys").append(h("header", {}, h("h2", { id: "keys-title" }, "Keys"),
    h("button", { type: "button", "aria-label": "Close", onclick: () => byId("keys").close() }, "✕")),
    h("dl.facts.keys", {}, KEYS.map(([key, what]) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, what)])));
  byId("keys").addEventListener("click", (event) => event.target === byId("keys") && byId("keys").close());
  byId("show-keys").addEventListener("click", () => byId("keys").showModal());
  document.addEventListener("keydown", onKey);
  byId("cards").addEventListener("focusin", (event) => {
    const tile = event.target.closest(".tile[data-place]");
    if (tile) setCurrent(tile);
  });
}
