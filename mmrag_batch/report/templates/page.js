"use strict";
// Filters, order and row links. Texts are compared and never become markup.
const form = document.getElementById("filters");
const cards = document.getElementById("cards");
const shown = document.getElementById("shown");
const absent = document.getElementById("absent");
const rows = Array.from(cards.children);
const texts = rows.map((row) => row.textContent.toLowerCase());
let order = "";
const numberOf = (row) => Number(row.id.slice("row-".length));
const confidenceOf = (row) => (row.dataset.confidence === "" ? NaN : Number(row.dataset.confidence));

function matches(row, at, wanted) {
  const { text, low, high, order: _, ...values } = wanted;
  if (text && !texts[at].includes(text.toLowerCase())) return false;
  const confidence = confidenceOf(row);
  if (low !== "" && !(confidence >= Number(low))) return false;
  if (high !== "" && !(confidence <= Number(high))) return false;
  return Object.entries(values).every(([name, value]) => {
    if (value === "") return true;
    const own = row.getAttribute(`data-${name}`);
    return name.startsWith("group-") ? `=${own}` === value : own === value;
  });
}

function filter() {
  const wanted = Object.fromEntries(new FormData(form));
  let count = 0;
  rows.forEach((row, at) => {
    row.hidden = !matches(row, at, wanted);
    count += row.hidden ? 0 : 1;
  });
  const key = {
    number: (row) => numberOf(row),
    high: (row) => -(confidenceOf(row) || 0),
    low: (row) => (Number.isNaN(confidenceOf(row)) ? 2 : confidenceOf(row)),
  }[wanted.order];
  if (wanted.order !== order) {
    // Only then: a row that is moved loses the focus.
    order = wanted.order;
    cards.append(...(key ? rows.slice().sort((a, b) => key(a) - key(b)) : rows));
  }
  shown.textContent = `${count} of ${rows.length} rows are shown.`;
}

// A link to a row shows it, whatever is filtered; one that is not here is told.
function follow() {
  const match = /^#row-(\d+)$/.exec(location.hash);
  absent.hidden = true;
  if (!match) return;
  const row = document.getElementById(location.hash.slice(1));
  if (!row) {
    absent.querySelector("code").textContent = `${absent.dataset.command} ${match[1]}`;
    absent.hidden = false;
    absent.scrollIntoView();
    return;
  }
  if (row.hidden) {
    form.reset();
    filter();
  }
  row.scrollIntoView();
  row.focus({ preventScroll: true });
}

form.hidden = false;
form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(filter));
addEventListener("hashchange", follow);
filter();
follow();
