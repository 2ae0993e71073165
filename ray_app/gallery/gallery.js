"use strict";
// The page works without this: it adds the filter, the switch, jumping, keys and the image in full.
// Texts are only ever set as text, never as HTML.
const root = document.documentElement;
const byId = (id) => document.getElementById(id);
const queries = [...document.querySelectorAll(".query")];
const all = window.QUERIES || [];
const here = [...document.querySelectorAll("a.page")].findIndex((link) => link.ariaCurrent === "page") + 1 || 1;
const settings = new URLSearchParams(location.search);

const pageOf = (number) => (number === 1 ? "index.html" : `page${number}.html`);

function address(number, fragment = "") {
  const text = settings.toString();
  return pageOf(number) + (text ? `?${text}` : "") + fragment;
}

function keep(name, value) {
  if (value) settings.set(name, value);
  else settings.delete(name);
  document.querySelectorAll("a.page").forEach((link, place) => link.setAttribute("href", address(place + 1)));
}

function showSnapshot(value) {
  const button = document.querySelector(`input[name=snapshot][value="${CSS.escape(value)}"]`);
  if (!button) return;
  button.checked = true;
  root.dataset.snapshot = value;
  keep("snapshot", value);
}

function switchSnapshot() {
  const values = [...document.querySelectorAll("input[name=snapshot]")].map((button) => button.value);
  if (values.length) showSnapshot(values[(values.indexOf(root.dataset.snapshot) + 1) % values.length]);
}

function filter() {
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const query of queries) {
    const about = query.dataset.text.toLowerCase();
    let any = false;
    for (const slot of query.querySelectorAll(".slot")) {
      const text = `${about} ${slot.dataset.text.toLowerCase()}`;
      slot.hidden = !words.every((word) => text.includes(word));
      any ||= !slot.hidden;
    }
    query.hidden = !any;
    shown += any;
  }
  keep("filter", byId("filter").value.trim());
  tellFound(words, shown);
}

function tellFound(words, shown) {
  const found = byId("found");
  found.replaceChildren();
  if (!words.length) return;
  found.append(`${shown} of ${queries.length} queries on this page`);
  const others = new Map();
  for (const [, page, text] of all) {
    if (page !== here && words.every((word) => text.includes(word))) others.set(page, (others.get(page) || 0) + 1);
  }
  for (const [page, count] of [...others].slice(0, 20)) {
    const link = document.createElement("a");
    link.href = address(page);
    link.textContent = `page ${page} (${count})`;
    found.append(", ", link);
  }
  if (others.size > 20) found.append(`, and ${others.size - 20} more pages`);
}

function jump(event) {
  event.preventDefault();
  const id = byId("query").value.trim();
  const known = all.find(([query]) => String(query) === id);
  if (!known) {
    byId("found").textContent = `no query ${id} here`;
    return;
  }
  byId("filter").value = "";
  filter();
  if (known[1] !== here) location.href = address(known[1], `#query-${id}`);
  else goTo(byId(`query-${id}`));
}

function goTo(query) {
  query.scrollIntoView({ block: "start" });
  query.focus({ preventScroll: true });
}

function nextQuery(by) {
  const shown = queries.filter((query) => !query.hidden);
  const now = shown.indexOf(document.activeElement.closest(".query"));
  const next = shown[now < 0 ? 0 : now + by];
  if (next) goTo(next);
}

function nextPage(by) {
  const links = document.querySelectorAll("a.page");
  if (links[here - 1 + by]) location.href = links[here - 1 + by].href;
}

const full = byId("full");
let open = null;

const isShown = (shot) => shot.offsetParent !== null;

function showFull(shot) {
  const small = shot.querySelector("img");
  const image = full.querySelector("img");
  open = shot;
  image.onerror = () => {
    image.onerror = null; // sent without the images themselves: the copy is all there is
    image.src = small.src;
  };
  image.src = shot.href;
  image.alt = small.alt;
  full.querySelector("p").textContent = small.alt;
  if (!full.open) full.showModal();
}

function nextFull(by) {
  const shots = [...document.querySelectorAll("a.shot")].filter(isShown);
  const next = shots[shots.indexOf(open) + by];
  if (next) showFull(next);
}

document.addEventListener("click", (event) => {
  const shot = event.target.closest("a.shot");
  if (!shot || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  showFull(shot);
});
byId("close").addEventListener("click", () => full.close());
full.addEventListener("click", (event) => event.target === full && full.close());
full.addEventListener("close", () => open && open.focus());
byId("filter").addEventListener("input", filter);
byId("jump").addEventListener("submit", jump);
document.querySelectorAll("input[name=snapshot]").forEach((button) => {
  button.addEventListener("change", () => showSnapshot(button.value));
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (full.open) {
    if (event.key === "ArrowRight") nextFull(1);
    if (event.key === "ArrowLeft") nextFull(-1);
    return;
  }
  if (event.target.matches("input:not([type=radio])")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const actions = {
    "/": () => byId("filter").focus(), g: () => byId("query").focus(), x: switchSnapshot,
    j: () => nextQuery(1), k: () => nextQuery(-1), n: () => nextPage(1), p: () => nextPage(-1),
  };
  if (!actions[event.key]) return;
  event.preventDefault();
  actions[event.key]();
});

showSnapshot(settings.get("snapshot") || root.dataset.snapshot);
byId("filter").value = settings.get("filter") || "";
filter();
if (location.hash) {
  const query = byId(decodeURIComponent(location.hash.slice(1)));
  if (query) goTo(query);
}
