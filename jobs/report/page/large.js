"use strict";
// The large view: one edit over the page, its clips laid over each other or side by side, and
// everything that is known of it.

const MODES = { // name, key, what the slider does: label, bounds and where it stands at first
  side: { name: "Side by side", key: "s" },
  wipe: { name: "Wipe", key: "w", slider: ["Wipe", 0, 100, 50, "%"] },
  overlay: { name: "Overlay", key: "v", slider: ["Opacity", 0, 100, 50, "%"] },
  difference: { name: "Difference", key: "d", slider: ["Brightness", 1, 10, 2, "×"] },
};
const stage = { // stays as it was when the next edit is shown
  mode: "side",
  pair: null,
  values: Object.fromEntries(Object.entries(MODES).map(([mode, { slider }]) => [mode, slider?.[3]])),
};
const large = { tile: null, deck: null, setMode: null, move: null };

/** Show the edit of a tile over the page. */
function openLarge(tile) {
  const { card, edit } = tile;
  const dialog = byId("certificate");
  const clock = large.deck?.clock;
  const pressed = document.activeElement.closest(".turns button")?.getAttribute("aria-label");
  large.deck?.close();
  const deck = new Deck(edit.id ?? card.id, dialog, edit.size[2], edit.size[3]);
  if (clock) deck.clock = clock;
  Object.assign(large, { tile, deck });
  const turn = (by) => h("button", { type: "button", "aria-label": by > 0 ? "Next edit" : "Previous edit",
    onclick: () => stepLarge(by) }, by > 0 ? "→" : "←");
  dialog.replaceChildren(
    h("header", {}, h("div", {}, h("p.quiet.small", { dir: "auto" }, card.id),
      h("h2", { id: "certificate-title", dir: "auto" }, edit.id ?? "No edit")),
      h("div.turns", {}, turn(-1), turn(1),
        h("button", { type: "button", "aria-label": "Close", onclick: () => dialog.close() }, "✕"))),
    makeStage(card, edit, deck),
    makeSheet(card, edit));
  for (const marks of dialog.querySelectorAll(".marks")) marks.refresh();
  dialog.onclick = (event) => event.target === dialog && dialog.close();
  dialog.onclose = () => {
    large.deck?.close();
    const { tile: last } = large;
    Object.assign(large, { tile: null, deck: null });
    focusTile(last.isConnected ? last : currentTile());
  };
  if (!dialog.open) dialog.showModal();
  // by itself the first button has the focus, and Space would press it
  (dialog.querySelector(`.turns [aria-label="${pressed}"]`) ?? dialog).focus();
  dialog.scrollTop = 0;
  deck.settle();
}

async function stepLarge(by) {
  const tile = await stepTile(by);
  if (tile && byId("certificate").open) {
    openLarge(tile);
    announce(tile.getAttribute("aria-label"));
  }
}

function makeStage(card, edit, deck) {
  const { ratio } = shapeOf(card);
  const clips = [
    ["source", "Source", card.source],
    ["edit", summary.compare?.here ?? "Edit", edit.clip, edit.mask],
    ["there", summary.compare?.there, edit.there?.clip, edit.there?.mask],
  ].filter(([, , link]) => link).map(([kind, name, link, mask]) => {
    const clip = makeClip(link, name, ratio, deck, name, mask);
    clip.dataset.clip = kind;
    return { kind, name, clip };
  });
  const stack = h("div.stack", { style: `--ratio:${ratio}` }, clips.map(({ clip }) => clip));
  const modes = h("div.modes", { role: "group", "aria-label": "How the clips are compared" });
  const slider = h("input", { type: "range", oninput: () => move(Number(slider.value)) });
  const value = h("output");
  const label = h("span");
  const row = h("label.stage-slider", {}, label, slider, value);
  const pairs = clips.length < 3 ? [] : [[0, 1], [0, 2], [1, 2]];
  const pair = pairs.length > 0 && h("select", { "aria-label": "Which two clips", onchange: () => {
    stage.pair = pair.value;
    show();
  } }, pairs.map(([a, b]) => h("option", { value: `${clips[a].kind} ${clips[b].kind}` },
    `${clips[a].name} and ${clips[b].name}`)));
  function move(to) {
    const [, low, high, , unit] = MODES[stage.mode].slider;
    stage.values[stage.mode] = Math.min(high, Math.max(low, to));
    const now = stage.values[stage.mode];
    slider.value = now;
    value.textContent = unit === "%" ? `${now} %` : `${unit}${now}`;
    slider.setAttribute("aria-valuetext", value.textContent);
    slider.style.setProperty("--at", `${(100 * (now - low)) / (high - low)}%`);
    stack.style.setProperty(`--${stage.mode}`, unit === "%" ? now / 100 : now);
  }
  function show() {
    if (clips.length < 2) stage.mode = "side";
    const { slider: about } = MODES[stage.mode];
    const chosen = (pair && [...pair.options].some((o) => o.value === stage.pair) && stage.pair) ||
      (pair ? pair.options[pairs.length - 1].value : "source edit there");
    if (pair) pair.value = chosen;
    stack.dataset.mode = stage.mode;
    let top = null;
    for (const { kind, clip } of clips) {
      clip.hidden = stage.mode !== "side" && !chosen.split(" ").includes(kind);
      clip.classList.remove("top");
      if (!clip.hidden) top = clip;
    }
    top?.classList.add("top");
    for (const button of modes.children) {
      button.setAttribute("aria-pressed", String(button.dataset.mode === stage.mode));
    }
    row.hidden = !about;
    if (pair) pair.hidden = !about;
    if (!about) return;
    label.textContent = about[0];
    [slider.min, slider.max, slider.step] = [about[1], about[2], about[4] === "%" ? 1 : 0.1];
    move(stage.values[stage.mode]);
  }
  large.setMode = (mode) => {
    stage.mode = mode;
    show();
    announce(MODES[stage.mode].name);
  };
  large.move = (share) => {
    const about = MODES[stage.mode].slider;
    if (about) move(Math.round((stage.values[stage.mode] + share * (about[2] - about[1])) * 10) / 10);
  };
  modes.append(...Object.entries(MODES).map(([mode, { name, key }]) => h("button", {
    type: "button", "data-mode": mode, title: `${name} (${key})`, onclick: () => large.setMode(mode) }, name)));
  stack.addEventListener("pointermove", (event) => {
    if (stage.mode !== "wipe" || (event.pointerType !== "mouse" && !event.buttons)) return;
    const { left, width } = stack.getBoundingClientRect();
    move(Math.round((100 * (event.clientX - left)) / width));
  });
  show();
  return h("section.stage", { "aria-label": "Clips" }, stack,
    clips.length > 0 && h("div.transport", {}, deck.transport.elements),
    clips.length > 1 && h("div.stage-controls", {}, modes, pair, row),
    edit.id !== null && card.id !== null && markButtons(card, edit));
}

function makeSheet(card, edit) {
  const table = (pairs) => h("dl.facts", {}, pairs.filter(([, value]) => value != null && value !== "")
    .map(([name, value]) => [h("dt", {}, name), h("dd", { dir: "auto" }, value)]));
  const [width, height, frames, fps] = edit.size;
  const { there } = edit;
  return h("div.sheet", {},
    h("div.side", {},
      edit.error && h("p.error", {}, h("b", {}, `${statusName(edit.status)}: ${edit.code}`), edit.error),
      there?.error && h("p.error", {},
        h("b", {}, `${summary.compare.there}, ${statusName(there.status)}: ${there.code}`), there.error),
      makeVerdict(edit, edit.there && edit.status !== "absent" ? summary.compare.here : ""),
      there && makeVerdict(there, summary.compare.there),
      table([["Instruction", edit.instruction], ["Prompt", edit.prompt],
        ["Prompt there", there && there.prompt !== edit.prompt ? there.prompt : null],
        ["Source prompt", card.prompt], ["Source", card.video],
        ["Clip", width && `${frames} frames, ${width} × ${height}, ${three.format(fps)} a second`],
        ...Object.entries(edit.facts), ...card.columns])),
    h("div.metrics", {}, makeCandidates(edit), METRICS.map((metric, i) => metricRow(metric, edit, i)),
      table([
        ...Object.entries(edit.forwards ?? {}).map(([kind, n]) => [`Forwards, ${kind}`, n && plain(n)]),
        ...Object.entries(edit.timings).map(([part, s]) => [`Time, ${part}`, duration(s)]),
      ])));
}

function metricRow(metric, edit, i) {
  const [here, there] = [edit.status === "absent" ? null : edit.numbers[i], edit.there?.numbers[i]];
  if (here == null && there == null) return "";
  const fails = failsFor(edit, metric.key) ? ".fails" : "";
  return h(`section.metric${fails}`, { "data-metric": metric.key },
    h("h3", {}, metric.label),
    h("p.value", {}, withUnit(here, metric.unit),
      there != null && h("span.quiet", {}, ` · ${withUnit(there, metric.unit)}`)),
    metric.bars?.length > 1 ? h("div.strip", { "aria-hidden": "true" }, histogram(metric, here)) : "",
    h("p.about.small.quiet", {}, metric.about, " ", limitsOf(metric.key)));
}
