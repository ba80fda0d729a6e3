"use strict";
// What the page does beyond being read: colours, folds, the judge, the subject compared with, sorting
// and saving tables, the case to watch, the browser of samples.
// Text from outside is only ever set as textContent. It stands behind player.js.

document.documentElement.classList.add("js");

const $ = (id) => document.getElementById(id);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

const isNarrow = matchMedia("(max-width: 600px)");

async function unpacked(id) {
  const bytes = Uint8Array.from(atob($(id).textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

// ------------------------------------------------------------------------------------- colours

for (const input of all("[name=theme]")) {
  input.addEventListener("change", () => {
    if (input.value === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = input.value;
  });
}

// ------------------------------------------------------------------------------------ contents

for (const link of all("#contents a")) link.addEventListener("click", () => ($("contents").open = false));
document.addEventListener("click", (event) => {
  if (!$("contents").contains(event.target)) $("contents").open = false;
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && $("contents").open) {
    $("contents").open = false;
    $("contents").querySelector("summary").focus();
  }
});

// ------------------------------------------------------------------------------------- folds

function unfold(element) {
  const inside = element.querySelector(":scope > details.chapter");
  if (inside) inside.open = true;
  for (let fold = element.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
}
function unfoldAddress() {
  const target = $(location.hash.slice(1));
  if (!target) return;
  unfold(target);
  target.scrollIntoView();
}
for (const link of all("nav a")) link.addEventListener("click", () => unfold($(link.hash.slice(1))));
addEventListener("hashchange", unfoldAddress);
addEventListener("DOMContentLoaded", unfoldAddress);
$("unfold").addEventListener("click", () => {
  const isOpen = $("unfold").getAttribute("aria-pressed") !== "true";
  $("unfold").setAttribute("aria-pressed", isOpen);
  $("unfold").textContent = isOpen ? "Fold all" : "Unfold all";
  for (const fold of all("details.fold")) fold.open = isOpen;
});

const sections = all("main > section");
function markPlace() {
  const above = sections.filter((section) => section.getBoundingClientRect().top < innerHeight / 3);
  const here = above.length ? above[above.length - 1].id : sections[0].id;
  for (const link of all("nav a")) {
    if (link.hash === `#${here}`) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}
let isMarking = false;
addEventListener("scroll", () => {
  if (isMarking) return;
  isMarking = true;
  requestAnimationFrame(() => {
    markPlace();
    isMarking = false;
  });
}, { passive: true });
markPlace();

// A box that scrolls sideways can be reached with the keyboard.
function markScrollers() {
  for (const box of all(".scroll")) {
    if (box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight) {
      box.tabIndex = 0;
      box.setAttribute("role", "region");
      box.setAttribute("aria-label", `${box.querySelector("caption").textContent}, scrolls`);
    } else {
      box.removeAttribute("tabindex");
      box.removeAttribute("role");
      box.removeAttribute("aria-label");
    }
  }
}
addEventListener("resize", markScrollers);
for (const details of all("main details")) details.addEventListener("toggle", markScrollers);

// On a phone a row is a card, whose entries say their column; a list of cards is still a table to
// those who hear it.
const ROLES = { table: "table", tr: "row", td: "cell", "tbody th": "rowheader", "thead th": "columnheader" };
for (const row of all("main tbody tr")) {
  const heads = row.closest("table").tHead.rows[0].cells;
  for (const cell of row.cells) cell.dataset.label = heads[cell.cellIndex].textContent.trim();
}
function markRoles() {
  for (const [selector, role] of Object.entries(ROLES)) {
    for (const element of all(`main ${selector}`)) {
      if (isNarrow.matches) element.setAttribute("role", role);
      else element.removeAttribute("role");
    }
  }
}
isNarrow.addEventListener("change", markRoles);
markRoles();

for (const button of all(".all-rows")) {
  const label = button.textContent;
  button.addEventListener("click", () => {
    const isOpen = button.parentElement.classList.toggle("open");
    button.setAttribute("aria-expanded", isOpen);
    button.textContent = isOpen ? "Fewer rows" : label;
  });
}

// -------------------------------------------------------------------------------------- sorting

// A click on a heading sorts (numbers from the largest), a second turns the order round, a third
// brings the first order back. What has no figure stays last.
const isGap = (text) => text === "" || text === "–";
const textOf = (row, column) => row.cells[column].textContent.trim();
function sortBy(table, column, direction) {
  table.rowsAsWritten ??= [...table.tBodies[0].rows];
  const rows = [...table.rowsAsWritten];
  if (direction) {
    const known = rows.map((row) => textOf(row, column)).filter((text) => !isGap(text));
    const isNumeric = known.every((text) => /^[-+<]?\s?\d/.test(text));
    const number = (text) => parseFloat(text.replace(/^<\s*0?/, "-0"));
    rows.sort((a, b) => {
      const [x, y] = [textOf(a, column), textOf(b, column)];
      if (isGap(x) || isGap(y)) return isGap(x) - isGap(y);
      const order = isNumeric ? number(x) - number(y) : x.localeCompare(y, "en", { numeric: true });
      return direction === "ascending" ? order : -order;
    });
  }
  table.tBodies[0].append(...rows);
}
function nextDirection(table, head) {
  const column = head.cellIndex;
  const isNumeric = [...table.tBodies[0].rows].some((row) => /^[-+<]?\s?\d/.test(textOf(row, column)));
  const order = isNumeric ? ["descending", "ascending"] : ["ascending", "descending"];
  const now = order.indexOf(head.getAttribute("aria-sort"));
  return now === 1 ? null : order[now + 1];
}
for (const head of all(".table-card thead th")) {
  const table = head.closest("table");
  if (table.tBodies[0].rows.length < 2) continue;
  const button = make("button", { type: "button", class: "sort" });
  button.append(...head.childNodes);
  head.append(button);
  button.addEventListener("click", () => {
    const direction = nextDirection(table, head);
    for (const other of all("thead th", table)) other.removeAttribute("aria-sort");
    if (direction) head.setAttribute("aria-sort", direction);
    sortBy(table, head.cellIndex, direction);
  });
}

// --------------------------------------------------------------------------------------- judge

let judge = document.querySelector(".judge-switch input:checked")?.value ?? "";
let base = document.querySelector("select.base")?.value ?? "";
const whenJudgeChanges = [];

function choose() {
  for (const input of all(".judge-switch input")) input.checked = input.value === judge;
  for (const select of all("select.base")) select.value = base;
  for (const element of all("[data-judge], [data-base]")) {
    const { judge: ofJudge, base: ofBase } = element.dataset;
    const isOfOther = Boolean(base && ofBase && ofBase !== base);
    element.hidden = Boolean(judge && ofJudge && ofJudge !== judge) || isOfOther;
    element.classList.toggle("of-other-base", isOfOther); // on paper, which has every judge
  }
  markScrollers();
}
choose();
for (const input of all(".judge-switch input")) {
  input.addEventListener("change", () => {
    judge = input.value;
    choose();
    for (const listener of whenJudgeChanges) listener();
  });
}
for (const select of all("select.base")) {
  select.addEventListener("change", () => {
    base = select.value;
    choose();
  });
}

// A cell of a map opens its samples.
for (const row of all(".heat tbody tr")) {
  const { attack, set } = row.cells[0].dataset;
  if (!attack || !$("browser")) continue;
  for (const cell of row.cells) {
    const { subject } = row.closest("table").tHead.rows[0].cells[cell.cellIndex].dataset;
    if (!subject || !cell.style.length) continue;
    const wanted = new URLSearchParams(set ? { subject, attack, case_set: set } : { subject, attack });
    const figure = cell.firstChild;
    const link = make("a", { class: "to-samples", href: `#samples=${wanted}`, title: "Its samples" }, figure.textContent);
    figure.replaceWith(link);
  }
}

// -------------------------------------------------------------------------------- saving tables

const TYPES = { csv: "text/csv", json: "application/json", tex: "application/x-tex" };
let exported = null;
for (const button of all("[data-save]")) {
  button.addEventListener("click", async () => {
    exported ??= unpacked("exports");
    const { save, format } = button.dataset;
    const text = (await exported)[save][format];
    const address = URL.createObjectURL(new Blob([text], { type: TYPES[format] }));
    make("a", { href: address, download: `${save}.${format}` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
  });
}

// ------------------------------------------------------------------------------------- samples

// A phone shows the chosen sample below the list, so the list is short there.
const isWide = matchMedia("(min-width: 62rem)");
const perPage = () => (isWide.matches ? 20 : 6);

class Samples {
  constructor(data) {
    this.words = data.words;
    this.titles = data.titles;
    this.judgeNames = data.judges;
    this.places = new Map(data.samples.map((_, place) => [this.address(place, data.samples), place]));
    this.records = data.samples;
    this.length = data.samples.length;
    this.texts = new Map(data.texts);
    const switched = all("#browser .judge-switch input").map((input) => input.value);
    this.judges = [...new Set([...switched, ...data.samples.flatMap((sample) => Object.keys(sample.outcomes))])];
    // Judges that the page does not switch between judge what the others do not: harmless requests.
    this.otherJudges = switched.length ? this.judges.filter((name) => !switched.includes(name)) : [];
  }

  value(name, place) {
    return this.records[place][name];
  }

  // What a sample is called in an address.
  address(place, records = this.records) {
    const { subject, attack, case_set: set, case: name, seed, number } = records[place];
    return [subject, attack, set, name, seed, number].map(encodeURIComponent).join("/");
  }

  title(attack) {
    return this.titles[attack] ?? attack;
  }

  // The tries of one attack on one case, by a subject: by default those beside a sample.
  tries(place, subject = this.records[place].subject) {
    const { attack, case_set: set, case: name, seed } = this.records[place];
    const found = [];
    this.records.forEach((other, i) => {
      if (other.subject === subject && other.attack === attack && other.case_set === set && other.case === name
        && other.seed === seed) found.push(i);
    });
    return found.sort((a, b) => this.records[a].number - this.records[b].number);
  }

  verdict(name, place) {
    return this.records[place].outcomes[name] ?? null;
  }

  score(name, place) {
    return this.records[place].scores[name] ?? null;
  }

  outcome(place) {
    const asked = judge ? [judge, ...this.otherJudges] : this.judges;
    for (const name of asked) {
      const found = this.verdict(name, place);
      if (found !== null) return found;
    }
    return "not judged";
  }

  responses(place) {
    return (this.texts.get(place) ?? []).map((response) => ({
      ...response,
      tokens: response.tokens && response.tokens.map((word) => this.words[word]),
    }));
  }
}

class Browser {
  constructor(samples) {
    this.samples = samples;
    this.found = [];
    this.chosen = 0; // place in `found`
    this.shownWords = new Set();
    this.players = [];
    this.searched = new Map();
    this.fillFilters();
    this.listen();
    this.filter();
  }

  fillFilters() {
    for (const select of all("[data-column]", $("filters"))) {
      const name = select.dataset.column;
      if (name === "outcome") continue;
      const values = [...new Set(this.samples.records.map((sample) => sample[name]))];
      const label = (value) => String(name === "attack" ? this.samples.title(value) : value) || "none";
      this.setOptions(select, values.map((value) => [JSON.stringify(value), label(value)]));
      select.parentElement.hidden = values.length < 2;
    }
    const hasAll = this.samples.texts.size === this.samples.length;
    $("with-text-label").hidden = hasAll || this.samples.texts.size === 0;
  }

  setOptions(select, options) {
    const before = select.value;
    select.replaceChildren(make("option", { value: "" }, "all"));
    for (const [value, label] of options) select.append(make("option", { value }, label));
    if (options.some(([value]) => value === before)) select.value = before;
  }

  listen() {
    const again = () => this.filter();
    for (const element of all("select:not(#beside), input", $("filters"))) element.addEventListener("input", again);
    $("beside")?.addEventListener("input", () => this.showDetail());
    $("filters").addEventListener("submit", (event) => event.preventDefault());
    $("clear").addEventListener("click", () => {
      $("filters").reset();
      this.filter();
    });
    $("show-all")?.addEventListener("change", () => this.showDetail());
    whenJudgeChanges.push(again);
    isWide.addEventListener("change", () => this.showList());
    $("previous").addEventListener("click", () => this.turnPage(-1));
    $("next").addEventListener("click", () => this.turnPage(1));
    $("list").addEventListener("click", (event) => {
      const row = event.target.closest("[role=option]");
      if (!row) return;
      this.choose(Number(row.dataset.place));
      this.tell();
      $("detail").scrollIntoView({ block: "nearest" });
    });
    $("list").addEventListener("keydown", (event) => {
      const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: perPage(), PageUp: -perPage(), Home: -Infinity, End: Infinity };
      if (event.key in moves && !event.altKey && !event.ctrlKey && !event.metaKey) {
        event.preventDefault();
        this.choose(this.chosen + moves[event.key]);
        this.tell();
      } else if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
        event.preventDefault();
        this.step(event.key === "ArrowLeft" ? -1 : 1);
      } else if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        this.detailButton?.click();
      }
    });
  }

  filter() {
    const { samples } = this;
    const outcomes = [];
    for (let i = 0; i < samples.length; i++) outcomes.push(samples.outcome(i));
    const select = document.querySelector("[data-column=outcome]");
    this.setOptions(select, [...new Set(outcomes)].sort().map((outcome) => [outcome, outcome]));
    const wanted = all("[data-column]", $("filters"))
      .filter((element) => element !== select && element.value !== "")
      .map((element) => [element.dataset.column, JSON.parse(element.value)]);
    const text = $("search").value.trim().toLowerCase();
    const needsText = $("with-text").checked;
    const before = this.found[this.chosen];
    this.found = [];
    for (let i = 0; i < samples.length; i++) {
      if (select.value && outcomes[i] !== select.value) continue;
      const sample = samples.records[i];
      if (wanted.some(([name, value]) => sample[name] !== value)) continue;
      if (text && !`${sample.request ?? ""}\n${sample.case}`.toLowerCase().includes(text)) continue;
      if (needsText && !samples.texts.has(i)) continue;
      this.found.push(i);
    }
    this.outcomes = outcomes;
    const stays = this.found.indexOf(before);
    this.chosen = Math.max(0, stays);
    const number = (value) => value.toLocaleString("en");
    $("count").textContent = `${number(this.found.length)} of ${number(samples.length)} samples`;
    this.showList();
    if (stays < 0 || before === undefined) this.showDetail();
    else this.showVerdicts();
  }

  // The address of the chosen sample, for the reader to send.
  tell() {
    const i = this.found[this.chosen];
    if (i !== undefined) history.replaceState(null, "", `#sample=${this.samples.address(i)}`);
  }

  // To another try of the same attack on the same case.
  step(by) {
    const i = this.found[this.chosen];
    if (i === undefined) return;
    const tries = this.samples.tries(i);
    const next = tries[tries.indexOf(i) + by];
    if (next !== undefined) this.open(next);
  }

  // Show one sample, whatever the filters.
  open(i) {
    if (!this.found.includes(i)) {
      $("filters").reset();
      this.filter();
    }
    this.choose(this.found.indexOf(i));
    this.tell();
  }

  // What an address asks for: one sample, or those that fit some filters.
  follow() {
    const [kind, ...rest] = location.hash.slice(1).split("=");
    const asked = rest.join("=");
    if (kind === "sample") {
      const i = this.samples.places.get(asked);
      if (i === undefined) return;
      this.open(i);
    } else if (kind === "samples") {
      $("filters").reset();
      for (const [column, value] of new URLSearchParams(asked)) {
        const select = document.querySelector(`#filters [data-column="${CSS.escape(column)}"]`);
        if (select) select.value = JSON.stringify(value);
      }
      this.filter();
      this.choose(0);
    } else return;
    $("samples").scrollIntoView();
    $("list").focus({ preventScroll: true });
  }

  turnPage(by) {
    const page = Math.floor(this.chosen / perPage()) + by;
    this.choose(page * perPage());
  }

  choose(place) {
    if (!this.found.length) return;
    this.chosen = Math.min(this.found.length - 1, Math.max(0, place));
    this.showList();
    this.showDetail();
  }

  showList() {
    const { samples, found } = this;
    const start = Math.floor(this.chosen / perPage()) * perPage();
    const rows = found.slice(start, start + perPage()).map((i, offset) => {
      const place = start + offset;
      const row = make("li", { role: "option", id: `sample-${i}`, "data-place": place, "aria-selected": place === this.chosen });
      row.append(
        make("div", { class: "first" }, make("span", {}, samples.value("subject", i)), outcomeMark(this.outcomes[i])),
        make("div", { class: "second" }, [
          samples.title(samples.value("attack", i)), samples.value("case", i),
          `seed\u00a0${samples.value("seed", i)}`, `try\u00a0${samples.value("number", i) + 1}`,
        ].join(" · ")),
      );
      return row;
    });
    if (rows.length) {
      $("list").replaceChildren(...rows);
      const chosen = rows[this.chosen - start];
      $("list").setAttribute("aria-activedescendant", chosen.id);
      $("list").scrollTop = Math.max(0, chosen.offsetTop + chosen.offsetHeight - $("list").clientHeight, Math.min($("list").scrollTop, chosen.offsetTop));
    } else {
      $("list").replaceChildren(make("li", { class: "empty" }, "No sample fits these filters."));
      $("list").removeAttribute("aria-activedescendant");
    }
    const end = Math.min(start + perPage(), found.length);
    $("page-number").textContent = found.length ? `${start + 1}–${end} of ${found.length}` : "";
    $("previous").disabled = start === 0;
    $("next").disabled = end >= found.length;
  }

  stopPlayers() {
    for (const player of this.players) player.stop();
    this.players = [];
  }

  showDetail() {
    this.stopPlayers();
    this.detailButton = null;
    const i = this.found[this.chosen];
    if (i === undefined) {
      $("detail").replaceChildren();
      $("detail").hidden = true;
      return;
    }
    $("detail").hidden = false;
    const sides = [i, ...this.beside(i)];
    const hasWords = sides.some((place) => this.samples.responses(place).some((response) => response.tokens));
    const isShown = hasWords && (this.shownWords.has(i) || $("show-all")?.checked === true);
    const parts = [];
    if (hasWords) {
      const label = isShown ? "Hide what the model wrote" : "Show what the model wrote";
      this.detailButton = make("button", { type: "button", class: "show", "aria-expanded": isShown }, label);
      this.detailButton.hidden = $("show-all").checked;
      this.detailButton.addEventListener("click", () => {
        const hadFocus = document.activeElement === this.detailButton;
        if (!this.shownWords.delete(i)) this.shownWords.add(i);
        this.showDetail();
        if (hadFocus) this.detailButton.focus();
      });
      parts.push(this.detailButton);
    }
    parts.push(make("div", { class: "sides" }, ...sides.map((place) => this.side(place, isShown))));
    if ($("beside")?.value && sides.length < 2 && $("beside").value !== this.samples.value("subject", i)) {
      parts.push(make("p", { class: "note" }, `${$("beside").value} has no sample of this attack on this case.`));
    }
    $("detail").replaceChildren(...parts);
    $("detail").scrollTop = 0;
    this.showVerdicts();
  }

  // The sample of another subject on the same case: its try of the same number, or its last.
  beside(i) {
    const subject = $("beside")?.value;
    if (!subject || subject === this.samples.value("subject", i)) return [];
    const tries = this.samples.tries(i, subject);
    const number = this.samples.value("number", i);
    return (tries.length ? [tries.find((place) => this.samples.value("number", place) === number) ?? tries.at(-1)] : []);
  }

  side(i, isShown) {
    const { samples } = this;
    const value = (name) => samples.value(name, i);
    const side = make("div", { class: "side-by", "data-place": i });
    side.append(make("h3", {}, `${value("subject")}: ${samples.title(value("attack"))}, ${value("case")}`));
    if (value("request") !== null) side.append(make("p", { class: "request" }, value("request")));
    const tries = samples.tries(i);
    if (tries.length > 1) {
      const place = tries.indexOf(i);
      const button = (label, by, name) => {
        const step = make("button", { type: "button", "aria-label": name }, label);
        step.disabled = tries[place + by] === undefined;
        step.addEventListener("click", () => this.open(tries[place + by]));
        return step;
      };
      side.append(make("p", { class: "tries" }, button("←", -1, "Try before"), `try ${place + 1} of ${tries.length}`, button("→", 1, "Next try")));
    }
    side.append(make("dl", { class: "facts verdicts" }));
    const facts = [
      ["attack", value("attack")], ["category", value("category")], ["set", value("case_set")], ["threat model", value("threat")],
      ["variant", value("variant")], ["seed", value("seed")], ["try", value("number") + 1], ["queries so far", value("queries")],
      ["text", value("is_garbled") ? "garbled" : ""],
    ];
    const about = make("dl", { class: "facts about-sample" }, ...facts.filter(([, fact]) => fact !== "" && fact !== null).map(
      ([name, fact]) => make("div", {}, make("dt", {}, name), make("dd", {}, String(fact)))));
    const responses = samples.responses(i);
    if (!responses.length) {
      side.append(make("p", { class: "note" }, "This page has the outcome of this sample, not its response."));
    }
    responses.forEach((response, number) => {
      const player = new Player(response, { isShown, number: responses.length > 1 ? number + 1 : 0 });
      this.players.push(player);
      side.append(player.element);
    });
    side.append(about);
    return side;
  }

  showVerdicts() {
    for (const side of all("#detail .side-by")) {
      side.querySelector(".verdicts").replaceChildren(...this.verdicts(Number(side.dataset.place)));
    }
  }

  verdicts(i) {
    const { samples } = this;
    return samples.judges.filter((name) => samples.verdict(name, i) !== null).map((name) => {
      const score = samples.score(name, i);
      const entry = make("dd", {}, outcomeMark(samples.verdict(name, i)));
      if (score !== null) entry.append(` (${score.toFixed(2)})`);
      return make("div", {}, make("dt", { title: name }, samples.judgeNames[name] ?? name), entry);
    });
  }
}

function outcomeMark(outcome) {
  const known = ["succeeded", "held", "unscored"].includes(outcome) ? ` ${outcome}` : "";
  return make("span", { class: `outcome${known}` }, outcome);
}

// The case of the first screen: all of its responses move together.
class Showcase extends Playing {
  constructor(samples) {
    super();
    this.samples = samples;
    this.slider = $("showcase-slider");
    this.button = $("showcase-play");
    this.timer = 0;
    this.fill($("show-all")?.checked === true);
    this.slider.addEventListener("input", () => { this.stop(); this.show(); });
    this.button.addEventListener("click", () => (this.timer ? this.stop() : this.play()));
    for (const link of all("[data-open]", $("showcase"))) {
      link.href = `#sample=${samples.address(Number(link.dataset.open))}`;
    }
    $("showcase-words")?.addEventListener("click", (event) => {
      const isShown = event.target.getAttribute("aria-expanded") !== "true";
      event.target.setAttribute("aria-expanded", isShown);
      event.target.textContent = isShown ? "Hide what the models wrote" : "Show what the models wrote";
      this.fill(isShown);
    });
    addEventListener("beforeprint", () => {
      this.stop();
      this.slider.value = this.numSteps;
      this.show();
    });
    if (!isCalm()) this.play();
  }

  fill(isShown) {
    this.players = all("[data-sample]", $("showcase")).flatMap((place) => {
      const [response] = this.samples.responses(Number(place.dataset.sample));
      if (!response) return [];
      const player = new Player(response, { isShown, isShort: true });
      place.replaceChildren(player.element);
      return [player];
    });
    this.numSteps = Math.max(1, ...this.players.map((player) => player.numSteps));
    this.slider.max = this.numSteps;
    this.slider.value = this.numSteps;
    $("showcase-player").hidden = this.numSteps < 2; // who is served elsewhere tells no steps
  }

  show() {
    for (const player of this.players) {
      player.slider.value = Math.min(player.numSteps, Number(this.slider.value));
      player.show();
    }
    this.slider.setAttribute("aria-valuetext", `step ${this.slider.value} of ${this.numSteps}`);
  }
}

async function browse() {
  let browser;
  try {
    const samples = new Samples(await unpacked("data"));
    browser = new Browser(samples);
    if ($("showcase")) new Showcase(samples);
  } catch (error) {
    $("browser-state").textContent = `This browser cannot unpack the samples (${error.message}).`;
    return;
  }
  $("browser-state").hidden = true;
  $("browser-body").hidden = false;
  browser.follow();
  addEventListener("hashchange", () => browser.follow());
}

// The data stands behind this script, so that the page need not wait for it.
if ($("browser")) addEventListener("DOMContentLoaded", browse);
