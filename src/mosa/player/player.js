"use strict";
// A denoising that plays. Text from outside is only ever set as textContent.

const NUM_COLOURS = 8;
const PLAY_SECONDS = 4;
const MARK_EVERY = 20;

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// What a slider moves through: it has `slider`, `button`, `numSteps` and `show()`.
class Playing {
  play() {
    this.timer = playing(this.slider, this.numSteps, () => this.show(), () => this.stop());
    this.button.textContent = "❚❚ Pause";
  }

  stop() {
    clearInterval(this.timer);
    this.timer = 0;
    this.button.textContent = "▶ Play";
  }
}

// One response: its prompt, its tokens by commit step, and a slider through the denoising.
class Player extends Playing {
  // `isShort` leaves out the prompt, the controls, and what nobody reads: all behind the first end token.
  constructor({ prompt, commit_step, end_positions: ends, tokens, block_starts: starts = [], replaced = [] }, { isShown, number = 0, isShort = false }) {
    super();
    const steps = isShort && ends.length ? commit_step.slice(0, Math.min(...ends) + 1) : commit_step;
    this.steps = steps;
    this.numSteps = Math.max(-1, ...commit_step) + 1;
    this.spans = [];
    this.classes = [];
    this.timer = 0;
    this.element = make("div", { class: "response" });
    if (number) this.element.append(make("h4", {}, `Response ${number}`));
    if (prompt && !isShort) {
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
    if (!isShort && this.numSteps > 1) this.element.append(make("div", { class: "player" }, this.button, this.slider, this.output));
    this.element.append(this.tokenList(words, new Set(ends), new Set(starts)));
    this.texts = this.spans.map((span) => span.textContent);
    // What stood at a position for some steps, by position.
    this.before = new Map();
    for (const [i, from, until, word] of replaced) {
      if (i < this.spans.length) this.before.set(i, [...(this.before.get(i) ?? []), { from, until, word: isShown ? word : null }]);
    }
    this.show();
  }

  tokenList(words, ends, starts) {
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
      if (i && starts.has(i)) list.append(make("i", { class: "cut" }));
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
      const earlier = (this.before.get(i) ?? []).find(({ from, until }) => from < now && now <= until);
      const isWritten = step < now || earlier !== undefined;
      written += isWritten;
      let wanted = isWritten ? this.classes[i] : "t mask";
      let text = this.texts[i];
      if (earlier) {
        wanted = `t replaced step-${Math.floor((Math.max(0, earlier.from) * NUM_COLOURS) / this.numSteps)}`;
        text = earlier.word === null ? "" : shownWord(earlier.word);
      }
      if (this.spans[i].className !== wanted) this.spans[i].className = wanted;
      if (this.spans[i].textContent !== text) this.spans[i].textContent = text;
    });
    this.output.textContent = `step ${now} of ${this.numSteps}`;
    this.slider.setAttribute("aria-valuetext", `step ${now} of ${this.numSteps}, ${written} of ${this.steps.length} tokens written`);
  }
}

// Moves a slider from step to step, from the first where it stands at the last. Who wants less motion
// gets a few still pictures instead.
const isCalm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
function playing(slider, numSteps, show, stop) {
  const stride = isCalm() ? Math.ceil(numSteps / 6) : 1;
  const pause = isCalm() ? 900 : Math.min(250, Math.max(30, (1000 * PLAY_SECONDS) / numSteps));
  if (Number(slider.value) >= numSteps) slider.value = 0;
  show();
  return setInterval(() => {
    slider.value = Math.min(numSteps, Number(slider.value) + stride);
    show();
    if (Number(slider.value) >= numSteps) stop();
  }, pause);
}

function shownWord(word) {
  return word.trim() || (word.includes("\n") ? "↵" : "␣");
}
