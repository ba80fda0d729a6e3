"""What all alignment trainers share: a model, data, means over examples, and the two passes."""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
import transformers
from accelerate.utils import broadcast_object_list
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers.trainer import TRAINER_STATE_NAME

from mosa.alignment.checkpoints import NAME, keep_newest, saving
from mosa.alignment.config import AlignConfig, settings_tried
from mosa.alignment.head_loss import Asked, HeadTerms, frozen_head, head_terms
from mosa.alignment.states import EncodedExample, ResponseState, build_canvas
from mosa.data import TrainingExample
from mosa.denoising.sampler import evaluation_mode
from mosa.families import DiffusionLM
from mosa.files import OwnFolder, user_errors, write_json
from mosa.hub.bounded import faults_of
from mosa.hub.weights import is_finite
from mosa.inputs import read_json
from mosa.judges.base import Judge
from mosa.types import UserError

# B rows, R response positions.


@dataclass(frozen=True)
class TrainingData:
    """What a training learns from."""

    harmful: Sequence[TrainingExample]
    """Harmful requests, with answers or pairs where the settings need them."""
    benign: Sequence[TrainingExample] | None = None
    """Requests that must stay answered, with their answers if there are any."""
    judge: Judge | None = None
    """Scores the policy's own answers, for settings that need it."""

    def check(self, config: AlignConfig) -> None:
        """Raise UserError for the first part that the settings need and the data lacks."""
        needs = config.needs
        for number, example in enumerate(self.harmful, start=1):
            if "answers" in needs and example.answer is None:
                raise UserError(
                    f"The settings need harmful answers, but harmful prompt {number} has none; "
                    "give data with an `answer`, or a preset that needs prompts alone."
                )
            if "pairs" in needs and (example.answer is None or example.rejected is None):
                raise UserError(
                    f"The settings need pairs of answers, but prompt {number} has none; give data "
                    "with `chosen` and `rejected`."
                )
        if "benign" in needs and not self.benign:
            raise UserError(
                "The settings have a term on benign prompts, but none are given; give some, or set "
                "benign_beta=0."
            )
        if "judge" in needs and self.judge is None:
            raise UserError("The settings need a judge, but none is given; name one.")


def collate_prompts(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Indices of the examples; and their prompts, padded, for the trainer's token counts."""
    prompts = [torch.tensor(row["input_ids"], dtype=torch.long) for row in rows]
    return {
        "index": torch.tensor([row["index"] for row in rows]),
        "input_ids": nn.utils.rnn.pad_sequence(prompts, batch_first=True),
    }


class DiffusionTrainer(transformers.Trainer, ABC):
    """What our trainers share: a `DiffusionLM`, means over examples, metrics of single rows.

    The loss of an update is the sum of its examples' losses over their number, so that eight
    micro-batches of one equal one batch of eight.
    """

    config_class: ClassVar[type[AlignConfig]]
    """The settings that it takes."""
    own_folder: OwnFolder | None = None
    """The folder that this process holds for the result; old checkpoints in it are removed."""
    _saves_to: str | None = None
    # Newer transformers ask; older ones look at model_accepts_loss_kwargs, set in __init__.
    loss_is_scaled_for_ga = True

    @classmethod
    @abstractmethod
    def from_data(cls, model: DiffusionLM, config: Any, data: TrainingData) -> DiffusionTrainer:
        """The trainer of a method, for the data that `align` was given."""

    @abstractmethod
    def example_losses(self, model: nn.Module, indices: list[int]) -> Float[Tensor, " B"]:
        """The loss of each of these examples; `model` is the network, or a wrapped form of it."""

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of one micro-batch, as the trainer asks for it."""
        losses = self.example_losses(model, inputs["index"].tolist())
        if num_items_in_batch is None:  # outside of training, for example in evaluate()
            loss = losses.mean()
        else:
            # This micro-batch's part of the mean over all examples of the update. Data-parallel
            # training averages the gradients of its processes; we want their sum.
            loss = losses.sum() * self.accelerator.num_processes / num_items_in_batch
            # In place of transformers' own mean, which forgets what was before a checkpoint.
            self.track("loss", losses)
        return (loss, {"losses": losses}) if return_outputs else loss

    def __init__(
        self,
        model: DiffusionLM,
        args: AlignConfig,
        examples: Sequence[EncodedExample],
        *,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        if args.n_gpu > 1:
            raise UserError(
                "Several GPUs are visible to one process; start with `torchrun --nproc_per_node`, "
                "or show one with CUDA_VISIBLE_DEVICES."
            )
        self.diffusion_model = model
        self.examples = examples
        self._tracked: dict[str, Tensor] = {}
        # All else about an example is drawn when its loss is taken.
        rows = [{"index": i, "input_ids": e.prompt_ids} for i, e in enumerate(examples)]
        super().__init__(
            model=model.network,
            args=args,
            train_dataset=cast(torch.utils.data.Dataset, rows),
            data_collator=collate_prompts,
            optimizers=(optimizer, None),
        )
        self.model_accepts_loss_kwargs = True

    def create_optimizer(self, *args: Any, **settings: Any) -> torch.optim.Optimizer:
        """As the trainer's own; UserError for settings that it cannot have."""
        with settings_tried(TypeError):
            return super().create_optimizer(*args, **settings)

    def create_scheduler(self, *args: Any, **settings: Any) -> Any:
        """As the trainer's own; UserError for settings that it cannot have."""
        with settings_tried(TypeError):
            return super().create_scheduler(*args, **settings)

    @property
    def epoch_index(self) -> int:
        """Number of complete passes over the data so far."""
        return int(self.state.epoch or 0)

    @property
    def noise_seed(self) -> int:
        """What the noise of a model without masks is drawn with: other noise in each pass over the
        data."""
        return (self.args.seed * 1_000_003 + self.epoch_index) % (1 << 31)

    def compute_loss_context_manager(self) -> contextlib.ExitStack:
        """As the trainer's own, with its mixed precision: the head is taken outside the network."""
        contexts = super().compute_loss_context_manager()
        contexts.enter_context(self.accelerator.autocast())
        return contexts

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """The micro-batches of one update, and the number of examples in them on all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        count = torch.tensor(sum(len(batch["index"]) for batch in batches), device=device)
        return batches, self._over_processes(count)

    def _over_processes(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes of the training."""
        total = self.accelerator.reduce(values, reduction="sum")
        assert isinstance(total, Tensor)
        return total

    def track(self, name: str, values: Tensor, counted: Bool[Tensor, " B"] | None = None) -> None:
        """Add rows to the mean that is logged as `name`; rows not `counted` are left out.

        Every process must track the same names in the same order.
        """
        weights = torch.ones_like(values) if counted is None else counted
        row = torch.stack([(values * weights).sum(), weights.sum()]).detach().float()
        self._tracked[name] = self._tracked.get(name, torch.zeros_like(row)) + row

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the trainer's own figures with the means of all rows since the last log."""
        if self._tracked:
            rows = self._over_processes(torch.stack(list(self._tracked.values())))
            for name, (total, count) in zip(self._tracked, rows.tolist(), strict=True):
                if count:
                    logs[name] = total / count
                if not math.isfinite(total):
                    raise UserError(
                        f"Training diverged: {name} is {total} at step {self.state.global_step}; "
                        "lower learning_rate, or load the model in float32."
                    )
            self._tracked = {}
        # It is a mean over the steps of this session, and no figure of a training that resumed.
        logs.pop("train_loss", None)
        super().log(logs, start_time)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save into a folder beside, whose files take their place when all processes are done."""
        out, step = Path(str(self.args.output_dir)), self.state.global_step
        is_main = self.is_world_process_zero()
        with saving(out, step) if is_main else contextlib.nullcontext() as part:
            (self._saves_to,) = broadcast_object_list([str(part)])
            try:
                with user_errors(out):
                    super()._save_checkpoint(model, trial)
                sums = {name: row.tolist() for name, row in self._tracked.items()}
                write_json(self._sums_file(Path(self._saves_to) / NAME.format(step)), sums)
            finally:
                self._saves_to = None
            self.accelerator.wait_for_everyone()
        if self.own_folder is not None:
            keep_newest(self.own_folder, step, self.args.save_total_limit)
        self.accelerator.wait_for_everyone()

    # A checkpoint whose hashes fit may still be another one's: it is read by the library, which
    # runs nothing that stands in it, and what the library cannot read is a fault of the file.

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        with _faults_of(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            state = transformers.TrainerState.load_from_json(
                str(Path(resume_from_checkpoint) / TRAINER_STATE_NAME)
            )
            if NAME.format(state.global_step) != Path(resume_from_checkpoint).name:
                raise ValueError(f"its state is of step {state.global_step}")

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _faults_of(checkpoint):
            super()._load_rng_state(checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """With the sums of what was tracked since the last log."""
        with _faults_of(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            sums = read_json(self._sums_file(Path(checkpoint)), dict[str, list[float]])
            device = self.args.device
            self._tracked = {name: torch.tensor(row, device=device) for name, row in sums.items()}

    def _sums_file(self, checkpoint: Path) -> Path:
        return checkpoint / f"tracked-{self.args.process_index}.json"

    def _get_output_dir(self, trial: Any) -> str:
        return self._saves_to or super()._get_output_dir(trial)

    def check_result(self, tensors: Mapping[str, Tensor] | None = None) -> None:
        """UserError where the trained weights, or the logits that they give, are no numbers.

        What is logged are means before the last update. `tensors` are the weights where this
        process holds only parts of them, and cannot run the model.
        """
        model = self.diffusion_model
        named = dict(model.network.named_parameters()) if tensors is None else tensors
        not_finite = [name for name, tensor in named.items() if not is_finite(tensor.detach())]
        what = f"the weight {not_finite[0]} holds numbers that are not finite" if not_finite else ""
        if tensors is None and not not_finite:
            ids = torch.tensor([[*self.examples[0].prompt_ids, model.mask_token_id]])
            try:
                with torch.no_grad(), evaluation_mode(model):
                    last_1 = torch.tensor([ids.shape[1] - 1], device=model.device)
                    model.logits(ids.to(model.device), None, last_1, response_start=int(last_1))
            except UserError:
                what = "the model's logits are NaN, infinite or all equal"
        if what:
            raise UserError(
                f"Training diverged: after step {self.state.global_step} {what}, so nothing is "
                "saved; lower learning_rate, or load the model in float32."
            )

    def terms(
        self,
        model: nn.Module,
        prompts: Sequence[Sequence[int]],
        states: Sequence[ResponseState],
        asked: Asked,
        *,
        with_reference: bool,
    ) -> HeadTerms:
        """One pass of the policy, one of the reference if asked, and the head's terms.

        Both passes run on the same canvases and weights, the reference's (the adapter off) first
        and with nothing kept of it but the hidden states of the response.
        """
        diffusion, length = self.diffusion_model, asked.kl.shape[1]
        canvas = build_canvas(diffusion, prompts, states, noise_seed=self.noise_seed)
        reference_BRD = None
        if with_reference:
            with torch.no_grad(), diffusion.adapter_disabled():
                reference_BRD = canvas.hidden_states(diffusion, length, model)
        policy_BRD = canvas.hidden_states(diffusion, length, model)
        head, cap = frozen_head(diffusion), diffusion.logit_cap
        return head_terms(head, policy_BRD, reference_BRD, asked, cap=cap)


def _faults_of(checkpoint: str | None) -> contextlib.AbstractContextManager[None]:
    return faults_of(str(checkpoint), "remove that folder, and --resume takes the one before it")
