"""Training in two processes, as `accelerate launch` starts it."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up import asleep, state
from safetensors.torch import load_file

_PROCESS = """
import json
import sys
from pathlib import Path

folder = Path(sys.argv[1])
sys.path[:0] = sys.argv[2:]

import torch
from made_up import asleep, lessons, settings, state, trainer_of, whimsical
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

from sleep_pipeline.seeding.batches import PASS_TOKENS

PASS_TOKENS["cpu"] = 8
torch.set_num_threads(1)
model = asleep(filled=False)
trainer = trainer_of(
    model,
    PreTrainedTokenizerFast.from_pretrained(folder),
    lessons(12),
    whimsical,
    settings=settings(rows=6, optimizer={"steps": 3}, replay={"stored_rows": 0}),
    output_dir=folder / "out",
)
drawn, passes = [], []
off_policy, compute_loss = trainer._off_policy, trainer._compute_loss


def watched_rows():
    chosen = off_policy()
    drawn.append([one.ids for one in chosen["tonight"]])
    return chosen


def watched_loss(*args):
    passes.append(0)
    watch = model.register_forward_pre_hook(lambda *_: passes.append(passes.pop() + torch.is_grad_enabled()))
    try:
        return compute_loss(*args)
    finally:
        watch.remove()


trainer._off_policy, trainer._compute_loss = watched_rows, watched_loss
trainer.train()
rank = trainer._rank
save_file(state(model), folder / f"{rank}.safetensors")
record = {"processes": trainer.args.world_size, "drawn": drawn, "passes": passes, "said": trainer.rollouts}
(folder / f"{rank}.json").write_text(json.dumps(record))
"""


@pytest.mark.slow
def test_two_processes_see_different_rows_and_end_with_the_same_weights(tiny_tokenizer: Any, tmp_path: Path) -> None:
    tiny_tokenizer.save_pretrained(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = Path(__file__).parent
    command = [sys.executable, "-c", _PROCESS, str(tmp_path), str(here), str(here.parent / "memory")]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environ = {**os.environ, **shared, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            command,
            env={**environ, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    begun = state(asleep(filled=False))
    assert any(not torch.equal(first[name], begun[name]) for name in begun)
    one, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert (one["processes"], other["processes"]) == (2, 2)
    rows = [tuple(ids) for record in (one, other) for step in record["drawn"] for ids in step]
    assert len(rows) == len(set(rows)) == 12, "every lesson once before one comes again"
    assert one["passes"] != other["passes"], "one process splits its rows where the other does not"
    assert [row["said"] for row in one["said"]] != [row["said"] for row in other["said"]]
    assert len(one["said"]) == len(other["said"]) == 3 * 4
