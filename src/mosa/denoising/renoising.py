"""The loop for canvases of uniform noise, with the interface of batch.py's `Denoiser`.

A masked position is written once, and stays; here nothing is settled before a canvas is done. Each
step the network says what should stand at every position of the canvas, some positions take a token
drawn from that, all others a random one, and the likeliest tokens are the answer so far. So a row
has two canvases: *written*, which the trace, hooks and listeners see, and *noisy*, which the next
pass reads. A token of the first that another one replaces is an edit of the trace.

Pinned tokens count as prompt: they stand in the noisy canvas at every step, are never replaced by
noise, and are the answer at their positions, whatever the network would say there.

# B rows and L columns of what is asked for, n tokens of a row on it, m tokens of a row with those
# that fill its last canvas, C tokens of a canvas of the network, V vocabulary, D width
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.distributions import Categorical
from torch.profiler import record_function
from transformers import Cache

from mosa.denoising.batch import Denoiser, check_canvas, check_seeds
from mosa.denoising.canvas import Canvas
from mosa.denoising.config import OF_NOISE, DecoderConfig
from mosa.denoising.drawing import draw, likeliest
from mosa.denoising.proposals import MAX_LOGITS_AT_ONCE, banned_ids
from mosa.denoising.rows import Hook, OnStep, StepChanges, edited_places
from mosa.denoising.rules import Action, Renoise, RowView
from mosa.denoising.schedule import check_steps, spread_evenly
from mosa.denoising.trace import Filling, Note, Remasking
from mosa.draws import TOKEN_DRAW, counter_uniform, row_keys
from mosa.families import noise
from mosa.families.base import DiffusionLM, chooses_nothing
from mosa.types import UserError


@dataclass(eq=False)
class NoiseRow:
    """One row of a canvas, whose response consists of whole canvases of the network."""

    filling: Filling
    number: int
    """Which row of its canvas it is."""
    config: DecoderConfig
    rule: Renoise
    seed: int
    key: Int[Tensor, ""]
    """What its noise is drawn with, besides the seed."""
    columns: Int[Tensor, " n"]
    """The canvas column of each token; what fills the last canvas has none."""
    num_prompt: int
    tokens: Int[Tensor, " m"]
    """Prompt, then what is written or pinned; the mask id where nothing is."""
    is_free: Bool[Tensor, " m"]
    commit_step: Int[Tensor, " m"]
    confidence: Float[Tensor, " m"]
    slots: list[int]
    """The steps of each canvas at most."""
    hook: Hook | None
    on_step: OnStep | None
    step: int = 0
    """Steps so far."""
    canvas: int = 0
    """Which canvas is open."""
    slot: int = 0
    """Steps in it so far."""
    context: Cache | None = None
    """What the encoder has kept of all tokens before the open canvas."""
    num_encoded: int = 0
    noisy: Int[Tensor, " C"] | None = None
    """What the network reads in the open canvas; None before its first step."""
    expected: Float[Tensor, "C D"] | None = None
    """The embeddings that the step before expected, for the network to see."""
    states: Float[Tensor, "C D"] | None = None
    """What the logits of the latest step are made of."""
    num_stable: int = 0
    """In how many steps the written canvas stayed as it was."""
    is_stopped: bool = False
    unusable_step: int | None = None

    @property
    def begin(self) -> int:
        """The first token of the open canvas."""
        return self.num_prompt + self.canvas * self.length

    @property
    def length(self) -> int:
        """Tokens of a canvas."""
        return (len(self.tokens) - self.num_prompt) // len(self.slots)

    @property
    def is_done(self) -> bool:
        return self.canvas >= len(self.slots)

    @property
    def open(self) -> slice:
        return slice(self.begin, self.begin + self.length)

    def num_free(self, canvas: int) -> int:
        """How many positions of a canvas are written and shown."""
        begin = self.num_prompt + canvas * self.length
        return int(self.is_free[: len(self.columns)][begin : begin + self.length].sum())

    @property
    def positions(self) -> Int[Tensor, " C"]:
        """The response positions of the open canvas, from 0."""
        first = self.canvas * self.length
        return torch.arange(first, first + self.length, device=self.tokens.device)

    def noise(self, num_steps: int, vocab_size: int) -> Int[Tensor, " C"]:
        """Random tokens for the open canvas after so many steps of the row."""
        return noise.noise(self.seed, self.key, self.positions, num_steps, vocab_size)


def denoiser_of(model: DiffusionLM, num_slots: int) -> Denoiser | NoiseDenoiser:
    """The loop that fills a model's canvases."""
    return (NoiseDenoiser if model.is_noise else Denoiser)(model, num_slots)


class NoiseDenoiser:
    """Denoises canvases that are added at any time, at most `num_slots` rows of them at once.

    As `Denoiser`, for a model of uniform noise in evaluation mode.
    """

    def __init__(self, model: DiffusionLM, num_slots: int) -> None:
        if num_slots < 1:
            raise UserError(f"num_slots must be at least 1, not {num_slots}.")
        self.model = model
        self.num_slots = num_slots
        self._waiting: deque[NoiseRow] = deque()
        self._rows: list[NoiseRow] = []

    @property
    def has_work(self) -> bool:
        """Whether any row is still to be filled."""
        return bool(self._rows or self._waiting)

    def add(
        self,
        canvas: Canvas,
        config: DecoderConfig,
        *,
        seeds: Sequence[int] | None = None,
        hook: Hook | None = None,
        on_step: OnStep | None = None,
    ) -> Filling:
        """As `Denoiser.add`; what a hook masks is drawn anew, and what it writes stands in the next
        noisy canvas of its place, as accepted tokens do. With a hook every planned step is taken.
        UserError for masks in a prompt, too."""
        rule = check_settings_of_noise(config, self.model)
        check_canvas(config, canvas, self.model)
        seeds = check_seeds(seeds, config, len(canvas.tokens))
        prompt_BP = canvas.free[:, : canvas.response_start]
        if bool(prompt_BP.any()) or not bool(
            canvas.attention_mask[:, : prompt_BP.shape[1]].any(1).all()
        ):
            raise UserError(
                f"{self.model.source} reads its prompt and writes nothing there; give a prompt of "
                "at least one token, without masks."
            )
        positions_L = canvas.positions
        wanted = config.stop_after or canvas.response.shape[1]
        length = self.model.attention.block_length
        assert length is not None, "a canvas has a length"
        wanted = min(-(-wanted // length) * length, canvas.response.shape[1])
        is_wanted_L = (positions_L >= 0) & (positions_L < wanted)
        filling = Filling(canvas, canvas.free & is_wanted_L)
        keys_B = row_keys(
            canvas.tokens,
            canvas.attention_mask,
            canvas.response_start,
            torch.tensor(seeds, device=canvas.tokens.device),
        )
        num_canvases = -(-canvas.response.shape[1] // length)
        parts = f"canvases of {length} tokens that the response takes"
        check_steps(config.steps, num_canvases, parts, "canvas")
        slots = spread_evenly(config.steps, num_canvases)[: -(-wanted // length)]
        for number, real_L in enumerate(canvas.attention_mask):
            columns = (real_L & (positions_L < wanted)).nonzero()[:, 0]
            tokens = canvas.tokens[number, columns]
            num_prompt = int((positions_L[columns] < 0).sum())
            more = len(slots) * length - (len(columns) - num_prompt)
            tokens = torch.cat([tokens, tokens.new_full((more,), self.model.mask_token_id)])
            is_free = tokens == self.model.mask_token_id
            is_free[:num_prompt] = False
            self._waiting.append(
                NoiseRow(
                    filling=filling,
                    number=number,
                    config=config,
                    rule=rule,
                    seed=seeds[number],
                    key=keys_B[number],
                    columns=columns,
                    num_prompt=num_prompt,
                    tokens=tokens,
                    is_free=is_free,
                    commit_step=torch.full_like(tokens, -1),
                    confidence=torch.full_like(tokens, torch.nan, dtype=torch.float32),
                    slots=slots,
                    hook=hook,
                    on_step=on_step,
                )
            )
        return filling

    def remove(self, filling: Filling) -> None:
        """Drops a canvas that is no longer wanted; what was written so far is on it."""
        self._waiting = deque(row for row in self._waiting if row.filling is not filling)
        for row in self._rows:
            if row.filling is filling:
                _write_back(row)
        self._rows = [row for row in self._rows if row.filling is not filling]

    @torch.no_grad()
    def step(self) -> list[Filling]:
        """Takes the next step of every row in the batch; returns the canvases that are full now."""
        while self._waiting and len(self._rows) < self.num_slots:
            self._rows.append(self._waiting.popleft())
        for row in self._rows:  # canvases in which nothing is to be written are passed over
            while not row.is_done and row.noisy is None and not row.num_free(row.canvas):
                row.canvas += 1
        busy = [row for row in self._rows if not row.is_done]
        self._run_pass(busy)
        changes = []
        for row in busy:
            before = row.tokens.clone()
            self._settle(row)
            if row.on_step is not None and row.unusable_step is None:
                changes.append((row.on_step, _changes(row, before)))
            row.step += 1
        full = []
        for row in [row for row in self._rows if row.is_done or row.unusable_step is not None]:
            self._rows.remove(row)
            _write_back(row)
            if row.unusable_step is not None:
                row.filling.unusable_step = row.unusable_step
            row.filling.num_rows_left -= 1
            if row.filling.is_full:
                row.filling.num_masked = 0
                full.append(row.filling)
        for on_step, change in changes:
            if change.positions:
                on_step(change)
        return full

    # ------------------------------------------------------------------------- the parts of a step

    def _run_pass(self, rows: Sequence[NoiseRow]) -> None:
        """One pass of the decoder for all rows whose contexts are equally long."""
        network, alike = self.model.base_network, defaultdict(list)
        for row in rows:
            if row.noisy is None:
                if row.num_encoded < row.begin:
                    new = row.tokens[row.num_encoded : row.begin]
                    row.context = noise.encode_context(network, new[None], row.context)
                    row.num_encoded = row.begin
                # What is pinned, or was written by a hook, stands from the first step on.
                given = row.tokens[row.open]
                noise_C = row.noise(row.step, self.model.vocab_size)
                row.noisy = torch.where(given == self.model.mask_token_id, noise_C, given)
            alike[row.begin, row.expected is None].append(row)
        for filling in {row.filling for row in rows}:
            filling.trace.num_forward_passes += 1
        for (_, is_first), group in alike.items():
            noisy = torch.stack([row.noisy for row in group if row.noisy is not None])
            contexts = [row.context for row in group if row.context is not None]
            expected = [row.expected for row in group if row.expected is not None]
            with record_function("mosa.network"):
                states = noise.denoise(
                    network, noisy, contexts, None if is_first else torch.stack(expected)
                )
            for row, states_CD in zip(group, states, strict=True):
                row.states = states_CD
                row.filling.trace.row_forward_passes[row.number] += 1

    def _settle(self, row: NoiseRow) -> None:
        """What becomes of a row's two canvases after its pass, and whether the open one is done."""
        listened = self._listen(row)
        if listened is None:
            row.unusable_step = row.step
            return
        drawn_C, likeliest_C, confidence_C, entropy_C, row.expected = listened
        is_free_C = row.is_free[row.open]
        # 1. The answer so far: the likeliest tokens.
        written_C = row.tokens[row.open]
        is_changed_C = is_free_C & (likeliest_C != written_C)
        _write(row, row.open, is_changed_C, likeliest_C, confidence_C)
        row.num_stable = 0 if bool(is_changed_C.any()) else row.num_stable + 1

        # 2. What the network reads next: the surest of the drawn tokens, and noise elsewhere.
        is_accepted_C = _accepted(entropy_C, is_free_C, row.rule.entropy_bound)
        noise_C = row.noise(row.step + 1, self.model.vocab_size)
        noisy_C = torch.where(is_accepted_C, drawn_C, noise_C)
        row.noisy = torch.where(is_free_C, noisy_C, row.tokens[row.open])
        row.slot += 1

        # 3. A hook may look and write.
        if row.hook is not None:
            self._show(row, row.hook)

        # 4. Is the canvas done?
        mean = float(entropy_C[is_free_C].mean())
        is_sure = row.num_stable >= row.rule.stable_steps and mean < row.rule.sure_below
        is_sure &= row.hook is None  # which is shown every planned step
        is_full = not bool((row.tokens[row.open] == self.model.mask_token_id).any())
        if row.is_stopped or (is_full and (is_sure or row.slot >= row.slots[row.canvas])):
            self._close(row)
        if row.step > 10 * (sum(row.slots) + len(row.tokens)):
            raise UserError(
                f"After {row.step} steps the hook still masks positions again; let it stop after "
                "some step, so that the generation can end."
            )

    def _listen(self, row: NoiseRow) -> tuple[Tensor, ...] | None:
        """What the network says at each position, so many at a time that logits fit into memory: a
        drawn token, the likeliest, its probability, the entropy in nats (all at the step's
        temperature), and the expected embedding. None where logits choose nothing somewhere."""
        model, config, rule = self.model, row.config, row.rule
        assert row.states is not None, "the pass has been run"
        slot = min(row.slot, row.slots[row.canvas] - 1)  # steps that a hook has added
        temperature = rule.temperature(slot, row.slots[row.canvas])
        if config.temperature:
            temperature = torch.full_like(temperature, config.temperature)
        temperature = temperature.to(model.device)
        banned = torch.tensor(banned_ids(config, model), dtype=torch.long, device=model.device)
        uniform_C = counter_uniform(row.seed, row.key, row.positions, row.step, TOKEN_DRAW)
        parts: list[tuple[Tensor, ...]] = []
        num_rows = max(1, MAX_LOGITS_AT_ONCE // model.vocab_size)
        for begin in range(0, row.length, num_rows):
            states_nD = row.states[begin : begin + num_rows]
            logits_nV = model.head(states_nD)
            if bool(chooses_nothing(logits_nV).any()):
                return None
            logits_nV = logits_nV / temperature
            logits_nV[:, banned] = -torch.inf
            probs_nV = logits_nV.softmax(dim=-1)
            best_n = likeliest(logits_nV)
            parts.append(
                (
                    draw(probs_nV, uniform_C[begin : begin + num_rows]),
                    best_n,
                    probs_nV.gather(1, best_n[:, None])[:, 0],
                    Categorical(logits=logits_nV, validate_args=False).entropy(),
                    noise.expected_embedding(model.base_network, logits_nV),
                )
            )
        return tuple(map(torch.cat, zip(*parts, strict=True)))

    def _close(self, row: NoiseRow) -> None:
        """Goes on to the next canvas, or fills the rest of a row that has ended."""
        generated = row.tokens[row.open][row.is_free[row.open]]
        ends = torch.tensor(self.model.end_token_ids, device=generated.device)
        has_ended = row.config.stop_when_finished and bool(torch.isin(generated, ends).any())
        row.filling.num_masked -= row.num_free(row.canvas)
        rest = slice(row.begin, len(row.tokens))
        row.canvas, row.slot, row.num_stable = row.canvas + 1, 0, 0
        row.noisy = row.expected = row.states = None
        if has_ended or row.is_stopped:
            is_left = row.is_free[rest] & (row.tokens[rest] == self.model.mask_token_id)
            row.tokens[rest].masked_fill_(is_left, self.model.eos_token_id)
            row.commit_step[rest].masked_fill_(is_left, row.step)
            row.canvas = len(row.slots)

    def _show(self, row: NoiseRow, hook: Hook) -> None:
        """Shows a row to its hook, and does what that says."""
        shown = len(row.columns)
        begin, states = row.begin, row.states
        end = min(begin + row.length, shown)

        def logits(index: Tensor) -> Tensor:
            assert states is not None
            return self.model.head(states[index - begin])

        def hidden(layer: int) -> Tensor:
            raise UserError(
                f"Hidden states of layer {layer} cannot be read while canvases of uniform noise "
                "are denoised; read logits."
            )

        position = torch.arange(shown, device=row.tokens.device) - row.num_prompt
        view = RowView(
            number=row.number,
            step=row.step,
            tokens=row.tokens[:shown].clone(),
            positions=position,
            is_free=row.is_free[:shown],
            commit_step=row.commit_step[:shown].clone(),
            mask_token_id=self.model.mask_token_id,
            computed=torch.arange(begin, end, device=row.tokens.device),
            logits=logits,
            hidden=hidden,
        )
        action = hook(view)
        if action is not None:
            self._act(row, action, shown)

    def _act(self, row: NoiseRow, action: Action, shown: int) -> None:
        edited = row.tokens[:shown] if action.tokens is None else action.tokens
        is_edited = edited_places("The hook", edited, row.tokens[:shown], row.is_free[:shown])
        nan = torch.full_like(row.confidence[:shown], torch.nan)
        _write(row, slice(0, shown), is_edited, edited, nan)
        is_masked = is_edited & (edited == self.model.mask_token_id)
        row.commit_step[:shown].masked_fill_(is_masked, -1)
        row.is_stopped = action.stop
        if action.note or action.stop:
            note = Note("hook", row.number, row.step, action.note, action.value, action.stop)
            row.filling.trace.notes.append(note)
        if not bool(is_edited.any()):
            return
        first = (int(is_edited.nonzero()[0, 0]) - row.num_prompt) // row.length
        if first < row.canvas:  # the canvases that follow have read what is no longer there
            row.filling.num_masked += sum(map(row.num_free, range(first, row.canvas)))
            row.canvas, row.slot, row.num_stable = first, 0, 0
            row.noisy = row.expected = row.context = None
            row.num_encoded = 0
            return
        assert row.noisy is not None
        here = row.tokens[row.open]
        is_new = torch.zeros_like(row.is_free)
        is_new[:shown] = is_edited
        is_mask = here == self.model.mask_token_id
        noise_C = row.noise(row.step + 1, self.model.vocab_size)
        renewed = torch.where(is_mask, noise_C, here)
        row.noisy = torch.where(is_new[row.open], renewed, row.noisy)
        # Nor is the network shown what it had expected there.
        assert row.expected is not None
        row.expected = row.expected.masked_fill(is_new[row.open][:, None], 0.0)
        row.num_stable = 0


def check_decoder(config: DecoderConfig, model: DiffusionLM) -> None:
    """UserError where a decoder is not for the model, whatever it is to fill."""
    if model.is_noise:
        check_settings_of_noise(config, model)
    for rule in config.rules:
        rule.check_model(model)


def check_settings_of_noise(config: DecoderConfig, model: DiffusionLM) -> Renoise:
    """The rule by which a model of uniform noise denoises; UserError for settings about masks."""
    if config.renoise is None:
        raise UserError(
            f"{model.source} denoises canvases of uniform noise; start from its published decoder "
            f"({model.family.decoder}), or put {{name: renoise}} into rules."
        )
    default = DecoderConfig()
    names = [field.name for field in dataclasses.fields(config) if field.name not in OF_NOISE]
    if config.block_length == model.attention.block_length:
        names.remove("block_length")
    idle = [name for name in names if getattr(config, name) != getattr(default, name)]
    idle += [rule.name for rule in config.rules if rule is not config.renoise]
    idle += ["end_tokens=suppress"] if config.end_tokens == "suppress" else []
    if idle:
        raise UserError(
            f"{idle[0]} does nothing on canvases of uniform noise, which {model.source} denoises; "
            "leave it out."
        )
    return config.renoise


def _accepted(
    entropy: Float[Tensor, " C"], is_free: Bool[Tensor, " C"], bound: float
) -> Bool[Tensor, " C"]:
    """The surest free positions: the entropies of those before one add up to at most the bound."""
    index = is_free.nonzero()[:, 0]
    sorted_entropy, order = entropy[index].sort(stable=True)
    before = sorted_entropy.cumsum(0) - sorted_entropy
    found = torch.zeros_like(is_free)
    found[index[order]] = before <= bound
    return found


def _write(
    row: NoiseRow,
    where: slice,
    is_changed: Bool[Tensor, " k"],
    tokens: Int[Tensor, " k"],
    confidence: Float[Tensor, " k"],
) -> None:
    """Writes tokens of a row; what stood there before is kept in the trace."""
    shown = len(row.columns)
    is_undone = torch.zeros_like(row.is_free)
    is_undone[where] = is_changed & (row.commit_step[where] >= 0)
    undone = is_undone[:shown].nonzero()[:, 0]
    if len(undone):
        row.filling.trace.remasks.append(
            Remasking(
                step=row.step,
                row=row.number,
                columns=row.columns[undone],
                tokens=row.tokens[undone],
                commit_steps=row.commit_step[undone],
                confidences=row.confidence[undone],
            )
        )
    row.tokens[where] = torch.where(is_changed, tokens, row.tokens[where])
    row.commit_step[where] = torch.where(is_changed, row.step, row.commit_step[where])
    row.confidence[where] = torch.where(is_changed, confidence, row.confidence[where])


def _write_back(row: NoiseRow) -> None:
    """Copies the row to the trace of its canvas."""
    trace, shown = row.filling.trace, len(row.columns)
    trace.tokens[row.number, row.columns] = row.tokens[:shown]
    trace.commit_step[row.number, row.columns] = row.commit_step[:shown]
    trace.confidence[row.number, row.columns] = row.confidence[:shown]


def _changes(row: NoiseRow, before: Int[Tensor, " m"]) -> StepChanges:
    """What its step has changed in a row."""
    shown = len(row.columns)
    where = (row.tokens[:shown] != before[:shown]).nonzero()[:, 0]
    return StepChanges(
        row=row.number,
        step=row.step,
        positions=(where - row.num_prompt).tolist(),
        tokens=row.tokens[where].tolist(),
        confidences=row.confidence[where].tolist(),
    )
