"""Two updates of a tiny model's adapter, with its weights sharded over the processes of a launch.

accelerate launch --config_file fsdp2_llada.yaml fsdp_process.py FOLDER OUT
"""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed
import transformers
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch.distributed.fsdp import FSDPModule

from mosa.alignment import MosaConfig, MosaTrainer
from mosa.alignment.run import add_adapter, whole_adapter
from mosa.data import load_prompts
from mosa.families import load_model


def main(folder: Path, out: Path) -> None:
    torch.distributed.init_process_group("gloo")
    rank, count = torch.distributed.get_rank(), torch.distributed.get_world_size()
    plugin = FullyShardedDataParallelPlugin()  # as the launcher's environment says
    del os.environ["ACCELERATE_USE_FSDP"]  # which the trainer could not follow on the CPU
    settings = MosaConfig(
        output_dir=str(out),
        response_length=24,
        window_start=5,
        window_end=20,
        lora_r=4,
        lora_alpha=8,
        safe_phrases=str(folder / "safe.txt"),
        harmful_phrases=str(folder / "harmful.txt"),
        use_cpu=True,
    )
    model = load_model(folder / "base")
    transformers.set_seed(settings.seed)
    add_adapter(model, settings)
    trainer = MosaTrainer(model, settings, load_prompts(folder / "prompts.txt"))
    accelerator: Any = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        mixed_precision="no",
        is_main_process=rank == 0,
        device=torch.device("cpu"),
    )
    network = fsdp2_prepare_model(accelerator, model.network)
    sharded = {type(m).__name__ for m in network.modules() if isinstance(m, FSDPModule)}
    assert "FSDPLlamaDecoderLayer" in sharded, sharded
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    for step in range(2):
        indices = torch.arange(4 * step + rank, 4 * step + 4, count)
        loss = trainer.compute_loss(network, {"index": indices}, num_items_in_batch=4)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    tensors = whole_adapter(model)
    if rank == 0:
        model.save_adapter(out, tensors=tensors)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
