"use strict";
// What the viewer thinks of edits: pick or reject, a rating, a note. Kept in the browser, not in the
// job's output; exported as a file that `retake run --only` takes.

const PICK_COLUMNS = ["video_id", "edit_id", "pick", "rating", "note"];
const PICK_STORE = `retake picks ${summary.key}`;
const NO_MARK = { pick: "", rating: null, note: "" };

const picks = {
  marks: new Map(), // "video\0edit" -> {pick, rating, note}
  get: (video, edit) => picks.marks.get(`${video}\0${edit}`) ?? NO_MARK,
  /** Change the marks of an edit, and keep them. */
  set(video, edit, change) {
    const mark = { ...picks.get(video, edit), ...change };
    if (mark.pick || mark.rating || mark.note) picks.marks.set(`${video}\0${edit}`, mark);
    else picks.marks.delete(`${video}\0${edit}`);
    picks.keep();
  },
  keep() {
    try {
      localStorage.setItem(PICK_STORE, JSON.stringify([...picks.marks]));
      warn("");
    } catch (error) {
      warn(`The browser does not keep your marks (${error.name}): export them before you leave.`);
    }
    document.dispatchEvent(new Event("marked"));
  },
  read() {
    try {
      picks.marks = new Map(JSON.parse(localStorage.getItem(PICK_STORE) ?? "[]"));
    } catch {
      picks.marks = new Map(); // a browser that keeps nothing says so when there is something to keep
    }
  },
  /** All marks as rows of `PICK_COLUMNS`, in the order of the ids. */
  rows: () => [...picks.marks]
    .sort(([a], [b]) => (a > b) - (a < b))
    .map(([key, { pick, rating, note }]) => [...key.split("\0"), pick || null, rating, note || null]),
  counts() {
    const all = [...picks.marks.values()];
    return {
      picked: all.filter(({ pick }) => pick === "pick").length,
      rejected: all.filter(({ pick }) => pick === "reject").length,
      rated: all.filter(({ rating }) => rating).length,
      noted: all.filter(({ note }) => note).length,
    };
  },
};

/** Rows as CSV by RFC 4180. Ids stay as they are, whatever a spreadsheet makes of `=` or `+`. */
function toCsv(rows) {
  const field = (value) => {
    const text = value == null ? "" : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [PICK_COLUMNS, ...rows].map((row) => `${row.map(field).join(",")}\r\n`).join("");
}

/** The rows of a CSV file: arrays of texts. */
function readCsv(text) {
  const rows = [];
  let row = [];
  const fields = /(?:"((?:[^"]|"")*)"|([^",\r\n]*))(,|\r\n|\n|\r|$)/y;
  text = text.replace(/^\ufeff/, "");
  while (fields.lastIndex < text.length) {
    const found = fields.exec(text);
    if (!found) throw new Error(`line ${rows.length + 1}: a quote that does not stand around a field`);
    row.push(found[1]?.replaceAll('""', '"') ?? found[2]);
    if (found[3] === "," && fields.lastIndex < text.length) continue;
    if (found[3] === ",") row.push("");
    rows.push(row);
    row = [];
  }
  return rows.filter((fields) => fields.length > 1 || fields[0] !== "");
}

/** The marks of a CSV file, by key. Throws what is wrong with it; then nothing is taken. */
function marksOf(text) {
  const [head = [], ...rows] = readCsv(text);
  const at = Object.fromEntries(PICK_COLUMNS.map((name) => [name, head.indexOf(name)]));
  for (const name of ["video_id", "edit_id"]) {
    if (at[name] < 0) throw new Error(`no column ${name}; expected the columns ${PICK_COLUMNS.join(", ")}`);
  }
  return rows.map((row, i) => {
    const value = (name) => (at[name] < 0 ? "" : row[at[name]] ?? "");
    const [pick, rating] = [value("pick"), value("rating")];
    if (!["", "pick", "reject"].includes(pick)) {
      throw new Error(`row ${i + 1}: pick is "${pick}"; expected pick, reject or nothing`);
    }
    if (!/^([1-5](\.0)?)?$/.test(rating)) {
      throw new Error(`row ${i + 1}: rating is "${rating}"; expected 1 to 5 or nothing`);
    }
    const mark = { pick, rating: rating ? parseInt(rating, 10) : null, note: value("note") };
    return [`${value("video_id")}\0${value("edit_id")}`, mark];
  });
}

function exportPicks(kind) {
  const rows = picks.rows();
  const data = kind === "csv" ? toCsv(rows) : toParquet(rows);
  const type = kind === "csv" ? "text/csv;charset=utf-8" : "application/vnd.apache.parquet";
  const address = URL.createObjectURL(new Blob([data], { type }));
  h("a", { href: address, download: `picks.${kind}` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
  announce(`${count(rows.length, "mark")} exported as picks.${kind}`);
}

async function importPicks(file) {
  try {
    const marks = marksOf(await file.text());
    for (const [key, mark] of marks) {
      if (mark.pick || mark.rating || mark.note) picks.marks.set(key, mark);
    }
    picks.keep();
    announce(`${count(marks.length, "mark")} imported from ${file.name}`);
  } catch (error) {
    warn(`${file.name}: ${error.message}. Nothing was imported.`);
  }
}

/** Say something to who does not see the page. */
const announce = (text) => (byId("announce").textContent = text);

function warn(text) {
  byId("warning").hidden = !text;
  byId("warning").textContent = text;
}

/** Buttons for the marks of an edit; they follow whatever changes the marks. */
function markButtons(card, edit) {
  const mark = () => picks.get(card.id, edit.id);
  const button = (kind, sign, name) => h(`button.mark.${kind}`, {
    type: "button", "aria-label": `${name} ${edit.id}`, title: `${name} (${kind === "pick" ? "p" : "x"})`,
    onclick: () => judge(card, edit, kind),
  }, sign);
  const buttons = { pick: button("pick", "✓", "Pick"), reject: button("reject", "✕", "Reject") };
  const rating = h("select.rating", { "aria-label": `Rating of ${edit.id}`, title: "Rating (1 to 5)",
    onchange: () => rate(card, edit, Number(rating.value) || null) },
    h("option", { value: "" }, "☆"), [1, 2, 3, 4, 5].map((n) => h("option", { value: n }, `★ ${n}`)));
  const noteButton = h("button.mark.note", { type: "button", title: "Note (n)",
    "aria-label": `Note on ${edit.id}`, onclick: () => openNote(element) }, "✎");
  const field = h("textarea", { rows: 2, dir: "auto", "aria-label": `Note on ${edit.id}`, placeholder: "Note",
    oninput: () => picks.set(card.id, edit.id, { note: field.value.trim() }) });
  const element = h("div.marks", {},
    h("div.mark-row", {}, buttons.pick, buttons.reject, rating, noteButton), field);
  element.refresh = () => {
    const { pick, rating: stars, note } = mark();
    for (const [kind, button] of Object.entries(buttons)) {
      button.setAttribute("aria-pressed", String(pick === kind));
    }
    rating.value = stars ?? "";
    rating.classList.toggle("set", stars !== null);
    noteButton.setAttribute("aria-pressed", String(note !== ""));
    if (document.activeElement !== field) {
      field.value = note;
      field.hidden = !note && !element.closest("dialog");
    }
    element.closest(".tile")?.setAttribute("data-pick", pick);
  };
  field.addEventListener("blur", element.refresh);
  return element;
}

function openNote(element) {
  const field = element.querySelector("textarea");
  field.hidden = false;
  field.focus();
}

/** Pick or reject an edit; a second time takes it back. */
function judge(card, edit, kind) {
  const pick = picks.get(card.id, edit.id).pick === kind ? "" : kind;
  picks.set(card.id, edit.id, { pick });
  const name = { pick: "Picked", reject: "Rejected", "": "No longer marked:" }[pick];
  announce(`${name} ${edit.id} of ${card.id}`);
}

function rate(card, edit, rating) {
  picks.set(card.id, edit.id, { rating });
  announce(rating ? `Rated ${edit.id} of ${card.id} ${rating} of 5` : `No rating: ${edit.id} of ${card.id}`);
}

function showMarks() {
  const { picked, rejected, rated, noted } = picks.counts();
  const parts = [[picked, "picked"], [rejected, "rejected"], [rated, "rated"], [noted, "with a note"]]
    .filter(([n]) => n).map(([n, name]) => `${whole.format(n)} ${name}`);
  byId("marked").textContent = parts.join(" · ") || "No marks yet.";
  for (const button of document.querySelectorAll(".export")) button.disabled = !parts.length;
  for (const element of document.querySelectorAll(".marks")) element.refresh();
}

function makeMarks() {
  picks.read();
  byId("export-csv").addEventListener("click", () => exportPicks("csv"));
  byId("export-parquet").addEventListener("click", () => exportPicks("parquet"));
  byId("import").addEventListener("click", () => byId("import-file").click());
  byId("import-file").addEventListener("change", async (event) => {
    const [file] = event.target.files;
    if (file) await importPicks(file);
    event.target.value = ""; // the same file may be chosen again
  });
  document.addEventListener("marked", showMarks);
  addEventListener("storage", (event) => { // the same report in another tab
    if (event.key !== PICK_STORE) return;
    picks.read();
    showMarks();
  });
  showMarks();
}
