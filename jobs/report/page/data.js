"use strict";
// The page's data and the few tools that all of it uses.

const summary = JSON.parse(document.getElementById("summary").textContent);
const METRICS = summary.metrics;
const waiting = new Map(); // name of a file -> what to do with its values
const loaded = new Map(); // name of a file -> promise of its values

/** Every file in data/ calls this with its name and its values. */
function retake(name, values) {
  waiting.get(name)?.(values);
}

/** The values of a file in data/. A script, as a page opened from a disk may not fetch. */
function load(name) {
  if (!loaded.has(name)) {
    loaded.set(name, new Promise((resolve, reject) => {
      waiting.set(name, resolve);
      const script = h("script", { src: `data/${name}.js`, charset: "utf-8" });
      script.onerror = () => {
        loaded.delete(name);
        reject(new Error(`data/${name}.js could not be read. If the report was written again ` +
          "after you opened it, reload the page."));
      };
      document.head.append(script);
    }));
  }
  return loaded.get(name);
}

/** The values of one column for all edits: `layout`, `state`, `text` or `number:<metric>`. */
const column = (name) => load(summary.columns[name]);

/** An element: h("p.quiet.small", {id: "x", onclick: f}, "text or elements", ...). Text stays text. */
function h(kind, attributes = {}, ...children) {
  const [tag, ...classes] = kind.split(".");
  const svg = ["svg", "rect", "line"].includes(tag);
  const element = svg
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  element.classList.add(...classes);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value != null && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return element;
}

const byId = (id) => document.getElementById(id);
const whole = new Intl.NumberFormat("en");
const three = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const count = (n, one, many = `${one}s`) => `${whole.format(n)} ${n === 1 ? one : many}`;

/** A value of a metric to three digits. Shares are stored as such, and shown in percent. */
function plain(value, unit) {
  if (value == null) return "–";
  if (unit === "%") return three.format(value * 100);
  return Number.isInteger(value) ? whole.format(value) : three.format(value);
}

const withUnit = (value, unit) => [plain(value, unit), value != null && unit].filter(Boolean).join(" ");

function duration(seconds) {
  if (seconds < 60) return `${three.format(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  return `${whole.format(Math.floor(minutes / 60))} h ${minutes % 60} min`;
}
