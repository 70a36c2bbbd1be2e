"use strict";
const $ = id => document.getElementById(id);
const PERIOD = 2000;
const NAMES = {exact: "same request", semantic: "similar request", shared: "shared", miss: "generated", bypass: "not cached", error: "error"};
const HITS = ["exact", "semantic", "shared"];
let key = new URLSearchParams(location.hash.slice(1)).get("key") || sessionStorage.getItem("recollect.key") || "";
let paused = false, timer = 0;

const sum = list => list.reduce((a, b) => a + b, 0);
const whole = new Intl.NumberFormat("en", {maximumFractionDigits: 0});
const few = new Intl.NumberFormat("en", {maximumSignificantDigits: 3});
const percent = share => Number.isFinite(share) ? `${few.format(100 * share)} %` : "–";
const money = amount => amount && Math.abs(amount) < 0.01 ? few.format(amount) : amount.toFixed(2);
const clock = at => new Date(1000 * at).toLocaleTimeString("en-GB");
function duration(seconds) {
  if (seconds < 1) return `${few.format(1000 * seconds)} ms`;
  if (seconds < 120) return `${few.format(seconds)} s`;
  if (seconds < 7200) return `${few.format(seconds / 60)} min`;
  return seconds < 172800 ? `${few.format(seconds / 3600)} h` : `${few.format(seconds / 86400)} d`;
}

// Text only ever enters the page as text: categories, models and reasons come from requests.
function element(name, text = "", kind = "") {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = kind;
  return made;
}
function fill(body, rows, columns, empty) {
  const made = rows.map(cells => {
    const row = document.createElement("tr");
    row.append(...cells);
    return row;
  });
  if (!made.length) {
    const cell = element("td", empty, "empty");
    cell.colSpan = columns;
    made.push(element("tr"));
    made[0].append(cell);
  }
  body.replaceChildren(...made);
}
const number = text => element("td", text, "n");
function named(text) {
  const cell = element("th", text);
  cell.scope = "row";
  return cell;
}

function kinds(counts, total) {
  const bar = element("div", "", "kinds");
  bar.setAttribute("role", "img");
  const told = HITS.filter(kind => counts[kind]).map(kind => `${percent(counts[kind] / total)} ${NAMES[kind]}`);
  bar.setAttribute("aria-label", told.join(", ") || "no hits");
  for (const kind of HITS) {
    if (!counts[kind]) continue;
    const part = element("i", "", kind);
    part.style.width = `${100 * counts[kind] / total}%`;
    bar.append(part);
  }
  const cell = element("td");
  cell.append(bar);
  return cell;
}

function draw(f) {
  const of = kind => sum(f.categories.map(c => c.counts[kind]));
  const total = sum(f.categories.map(c => sum(Object.values(c.counts))));
  const hits = sum(HITS.map(of));
  const tokens = sum(f.categories.map(c => c.tokens));
  $("about").textContent = `${f.upstream} · recipe ${f.recipe} · shared per ${f.scope} · counting since ${new Date(1000 * f.since).toLocaleString("en-GB")}`;
  $("state").textContent = `As of ${clock(f.now)} · ${f.flights} under way · load ${percent(f.load)} · ${f.answers.entries === null ? "store unavailable" : whole.format(f.answers.entries) + " answers stored"}`;
  const tiles = [
    ["Requests", whole.format(total), `${whole.format(of("miss"))} generated, ${whole.format(of("bypass"))} not cached, ${whole.format(of("error"))} errors`],
    ["Answered without generating", percent(hits / total), `${whole.format(of("exact"))} same, ${whole.format(of("semantic"))} similar, ${whole.format(of("shared"))} shared`],
    ["Tokens saved", whole.format(tokens), `${whole.format(f.spent.tokens)} paid for`],
    ["Time saved", duration(sum(f.categories.map(c => c.seconds))), "of waiting, over all clients"],
    ["Money saved", money(sum(f.categories.map(c => c.money))), `${money(f.spent.money)} paid, by the prices given`],
    ["In the provider's cache", whole.format(f.spent.provider_cached_tokens), "prompt tokens, counted apart"],
  ];
  $("tiles").replaceChildren(...tiles.map(([title, figure, words]) => {
    const tile = element("div", "", "tile");
    tile.append(element("span", title, "small soft"), element("b", figure), element("span", words, "small"));
    return tile;
  }));
  fill($("categories").tBodies[0], f.categories.map(c => {
    const n = sum(Object.values(c.counts));
    return [
      named(c.category || "(none)"), number(whole.format(n)),
      number(percent(sum(HITS.map(kind => c.counts[kind])) / n)), kinds(c.counts, n),
      number(whole.format(c.tokens)), number(few.format(c.seconds)), number(money(c.money)),
    ];
  }), 7, "No request yet.");
  const routed = sum(f.routed.map(r => r.requests));
  $("split").hidden = !f.examples;
  if (f.examples) $("examples").textContent = `Requests for “${f.examples.model}”, by the model that answered. ${whole.format(f.examples.examples)} past answers are kept as examples (${whole.format(f.examples.bytes / 1000)} kB).`;
  fill($("routed").tBodies[0], f.routed.map(r => [
    named(r.model), number(whole.format(r.requests)), number(percent(r.requests / routed)),
    number(percent(r.helped / r.requests)), number(r.helped ? few.format(r.examples / r.helped) : "–"),
    number(whole.format(r.tokens)), number(whole.format(r.rated)),
    number(r.rated ? (r.quality / r.rated).toFixed(2) : "–"),
  ]), 8, "No request yet.");
  fill($("latest").tBodies[0], f.latest.map(o => {
    const tag = element("td");
    tag.append(element("span", NAMES[o.kind], `tag ${o.kind}`));
    return [
      element("td", clock(o.at), "t"), tag, element("td", o.reason || "–", "wide"),
      element("td", o.category || "–"), element("td", o.model), element("td", o.tenant),
      number(o.similarity === null ? "–" : o.similarity.toFixed(3)),
      number(o.age === null ? "–" : duration(o.age)), number(duration(o.seconds)),
    ];
  }), 9, "No request yet.");
  const accounts = Object.entries(f.accounts);
  $("budgets").hidden = !accounts.length;
  fill($("accounts").tBodies[0], accounts.map(([name, a]) => [
    named(name), element("td", new Date(1000 * a.since).toLocaleString("en-GB"), "t"),
    number(whole.format(a.requests)), number(whole.format(a.tokens)), number(money(a.money)),
  ]), 5, "");
}

function lock(why) {
  clearTimeout(timer);
  key = "";
  sessionStorage.removeItem("recollect.key");
  $("figures").hidden = true;
  $("door").hidden = false;
  $("refused").hidden = !why;
  $("refused").textContent = why;
}

async function refresh() {
  clearTimeout(timer);
  try {
    const answer = await fetch("recollect/figures", {headers: {authorization: `Bearer ${key}`}});
    if (answer.status === 401) return lock("This is not the admin key of this gateway.");
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    draw(await answer.json());
    sessionStorage.setItem("recollect.key", key);
    $("door").hidden = true;
    $("figures").hidden = false;
    $("state").classList.remove("bad");
  } catch (error) {
    $("state").textContent = `No figures: ${error.message}. Trying again.`;
    $("state").classList.add("bad");
  }
  if (!paused) timer = setTimeout(refresh, PERIOD);
}

$("door").addEventListener("submit", event => {
  event.preventDefault();
  key = $("key").value;
  $("key").value = "";
  refresh();
});
$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", String(paused));
  paused ? clearTimeout(timer) : refresh();
});
if (location.hash) history.replaceState(null, "", location.pathname);
if (key) refresh();
