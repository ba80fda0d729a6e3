"use strict";
// What the page does beyond being read: colours, the judge, saving tables, the browser of samples.
// Text from outside is only ever set as textContent.

document.documentElement.classList.add("js");

const $ = (id) => document.getElementById(id);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

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
for (const details of all(".numbers")) details.addEventListener("toggle", markScrollers);

for (const button of all(".all-rows")) {
  const label = button.textContent;
  button.addEventListener("click", () => {
    const isOpen = button.parentElement.classList.toggle("open");
    button.setAttribute("aria-expanded", isOpen);
    button.textContent = isOpen ? "Fewer rows" : label;
  });
}

// --------------------------------------------------------------------------------------- judge

let judge = document.querySelector(".judge-switch input:checked")?.value ?? "";
const whenJudgeChanges = [];

function chooseJudge(chosen) {
  judge = chosen;
  for (const input of all(".judge-switch input")) input.checked = input.value === judge;
  for (const element of all("[data-judge]")) element.hidden = element.dataset.judge !== judge;
  markScrollers();
  for (const listener of whenJudgeChanges) listener();
}
if (judge) chooseJudge(judge);
else markScrollers();
for (const input of all(".judge-switch input")) {
  input.addEventListener("change", () => chooseJudge(input.value));
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
const NUM_COLOURS = 8;
const PLAY_SECONDS = 4;
const MARK_EVERY = 20;

class Samples {
  constructor(data) {
    this.words = data.words;
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
      this.setOptions(select, values.map((value) => [JSON.stringify(value), String(value) || "none"]));
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
    for (const element of all("select, input", $("filters"))) element.addEventListener("input", again);
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
      $("detail").scrollIntoView({ block: "nearest" });
    });
    $("list").addEventListener("keydown", (event) => {
      const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: perPage(), PageUp: -perPage(), Home: -Infinity, End: Infinity };
      if (event.key in moves && !event.altKey && !event.ctrlKey && !event.metaKey) {
        event.preventDefault();
        this.choose(this.chosen + moves[event.key]);
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
          samples.value("attack", i), samples.value("case", i),
          `seed\u00a0${samples.value("seed", i)}`, `try\u00a0${samples.value("number", i) + 1}`,
        ].join(" · ")),
      );
      return row;
    });
    if (rows.length) {
      $("list").replaceChildren(...rows);
      $("list").setAttribute("aria-activedescendant", `sample-${found[this.chosen]}`);
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
    const { samples } = this;
    const i = this.found[this.chosen];
    if (i === undefined) {
      $("detail").replaceChildren();
      $("detail").hidden = true;
      return;
    }
    $("detail").hidden = false;
    const value = (name) => samples.value(name, i);
    const parts = [
      make("h3", {}, `${value("subject")}: ${value("attack")}, ${value("case")}`),
    ];
    if (value("request") !== null) parts.push(make("p", { class: "request" }, value("request")));
    const facts = [
      ["category", value("category")], ["set", value("case_set")], ["threat model", value("threat")], ["variant", value("variant")],
      ["seed", value("seed")], ["try", value("number") + 1], ["queries so far", value("queries")],
      ["text", value("is_garbled") ? "garbled" : ""],
    ];
    parts.push(make("dl", { class: "facts" }, ...facts.filter(([, fact]) => fact !== "" && fact !== null).map(
      ([name, fact]) => make("div", {}, make("dt", {}, name), make("dd", {}, String(fact))))));
    parts.push(make("dl", { class: "facts verdicts" }));
    const responses = samples.responses(i);
    if (!responses.length) {
      parts.push(make("p", { class: "note" }, "This page has the outcome of this sample, not its response."));
    }
    const hasWords = responses.some((response) => response.tokens);
    const isShown = hasWords && (this.shownWords.has(i) || $("show-all")?.checked === true);
    if (hasWords) {
      const label = isShown ? "Hide what the model wrote" : "Show what the model wrote";
      this.detailButton = make("button", { type: "button", class: "show", "aria-expanded": isShown }, label);
      this.detailButton.disabled = $("show-all").checked;
      this.detailButton.addEventListener("click", () => {
        const hadFocus = document.activeElement === this.detailButton;
        if (!this.shownWords.delete(i)) this.shownWords.add(i);
        this.showDetail();
        if (hadFocus) this.detailButton.focus();
      });
      parts.push(this.detailButton);
    }
    responses.forEach((response, number) => {
      const player = new Player(response, isShown, responses.length > 1 ? number + 1 : 0);
      this.players.push(player);
      parts.push(player.element);
    });
    $("detail").replaceChildren(...parts);
    $("detail").scrollTop = 0;
    this.showVerdicts();
  }

  showVerdicts() {
    const i = this.found[this.chosen];
    const list = document.querySelector("#detail .verdicts");
    if (i === undefined || !list) return;
    const { samples } = this;
    const told = samples.judges.filter((name) => samples.verdict(name, i) !== null).map((name) => {
      const score = samples.score(name, i);
      const entry = make("dd", {}, outcomeMark(samples.verdict(name, i)));
      if (score !== null) entry.append(` (${score.toFixed(2)})`);
      return make("div", {}, make("dt", {}, name), entry);
    });
    list.replaceChildren(...told);
  }
}

function outcomeMark(outcome) {
  const known = ["succeeded", "held", "unscored"].includes(outcome) ? ` ${outcome}` : "";
  return make("span", { class: `outcome${known}` }, outcome);
}

// One response: its prompt, its tokens by commit step, and a slider through the denoising.
class Player {
  constructor({ prompt, commit_step: steps, end_positions: ends, tokens }, isShown, number) {
    this.steps = steps;
    this.numSteps = Math.max(-1, ...steps) + 1;
    this.spans = [];
    this.classes = [];
    this.timer = 0;
    this.element = make("div", { class: "response" });
    if (number) this.element.append(make("h4", {}, `Response ${number}`));
    if (prompt) {
      // An earlier answer in a conversation is the model's output too.
      const said = ([role, text]) => (role === "assistant" && !isShown ? "…" : text);
      this.element.append(make("ul", { class: "turns" }, ...prompt.map((turn) =>
        make("li", {}, make("span", { class: "role" }, turn[0]), make("span", { class: "said" }, said(turn))))));
    }
    const words = isShown ? tokens : null;
    this.slider = make("input", { type: "range", min: 0, max: this.numSteps, value: this.numSteps, step: 1, "aria-label": "Denoising step" });
    this.output = make("output", {});
    this.button = make("button", { type: "button" }, "▶ Play");
    this.slider.addEventListener("input", () => { this.stop(); this.show(); });
    this.button.addEventListener("click", () => (this.timer ? this.stop() : this.play()));
    // Of what was written at once, as a server's answer, there is nothing to play.
    if (this.numSteps > 1) this.element.append(make("div", { class: "player" }, this.button, this.slider, this.output));
    this.element.append(this.tokenList(words, new Set(ends)));
    this.show();
  }

  tokenList(words, ends) {
    const list = make("p", { class: words ? "tokens" : "tokens blocks" });
    const firstEnd = ends.size ? Math.min(...ends) : Infinity;
    this.steps.forEach((step, i) => {
      const isEnd = ends.has(i);
      const classes = [step < 0 ? "pinned" : `step-${Math.floor((step * NUM_COLOURS) / this.numSteps)}`];
      if (isEnd) classes.push("end");
      else if (i > firstEnd) classes.push("unread");
      // A run of end tokens is one word and then dots: it says nothing and fills the screen.
      let text = isEnd ? (words && !ends.has(i - 1) ? "end" : "·") : "";
      if (words && !isEnd) text = shownWord(words[i]);
      const when = step < 0 ? ", set by the attacker" : this.numSteps > 1 ? `, step ${step + 1} of ${this.numSteps}` : "";
      const span = make("span", { class: `t ${classes.join(" ")}`, title: `token ${i + 1}${when}` }, text);
      this.spans.push(span);
      this.classes.push(span.className);
      if (i && (i + 1) % MARK_EVERY === 0) list.append(make("span", { class: "at", "aria-hidden": "true" }, String(i + 1)));
      list.append(span, " ");
    });
    return list;
  }

  // Tokens written after the slider's step are masks.
  show() {
    const now = Number(this.slider.value);
    let written = 0;
    this.steps.forEach((step, i) => {
      const isWritten = step < now;
      written += isWritten;
      const wanted = isWritten ? this.classes[i] : "t mask";
      if (this.spans[i].className !== wanted) this.spans[i].className = wanted;
    });
    this.output.textContent = `step ${now} of ${this.numSteps}`;
    this.slider.setAttribute("aria-valuetext", `step ${now} of ${this.numSteps}, ${written} of ${this.steps.length} tokens written`);
  }

  play() {
    // Who wants less motion gets a few still pictures instead.
    const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const stride = isCalm ? Math.ceil(this.numSteps / 6) : 1;
    const pause = isCalm ? 900 : Math.min(250, Math.max(30, (1000 * PLAY_SECONDS) / this.numSteps));
    if (Number(this.slider.value) >= this.numSteps) this.slider.value = 0;
    this.button.textContent = "❚❚ Pause";
    this.show();
    this.timer = setInterval(() => {
      this.slider.value = Math.min(this.numSteps, Number(this.slider.value) + stride);
      this.show();
      if (Number(this.slider.value) >= this.numSteps) this.stop();
    }, pause);
  }

  stop() {
    clearInterval(this.timer);
    this.timer = 0;
    this.button.textContent = "▶ Play";
  }
}

function shownWord(word) {
  return word.trim() || (word.includes("\n") ? "↵" : "␣");
}

async function browse() {
  try {
    new Browser(new Samples(await unpacked("data")));
  } catch (error) {
    $("browser-state").textContent = `This browser cannot unpack the samples (${error.message}).`;
    return;
  }
  $("browser-state").hidden = true;
  $("browser-body").hidden = false;
}

// The data stands behind this script, so that the page need not wait for it.
if ($("browser")) addEventListener("DOMContentLoaded", browse);
