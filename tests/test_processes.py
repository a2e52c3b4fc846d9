"""Two processes that train one model, as torchrun starts them; gloo, on the CPU.

Run as a program, this file is what each of them does.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import small_model
from test_training import CONFIG, data, run, weights
from torch import nn

from sance_audio import chunks, processes, train, training
from sance_audio.checkpoint import _read
from sance_audio.divergences import logistic
from sance_audio.files import read_jsonl
from sance_audio.noise import SelfNoise

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="this build of PyTorch has no gloo",
)

LONG = replace(CONFIG, rate=1e-2, per_component=2, pool=2, nu=2, checkpoint_every=4)


# What each process does


def record(seen: list[dict[str, Any]]) -> None:
    """Have the training of this process keep what its gradients come from, and the gradients."""
    log_ratio, clip = SelfNoise.log_ratio, nn.utils.clip_grad_norm_

    def watched(self: SelfNoise, network: Any, data: Any, drawn: Any, **settings: Any) -> Any:
        seen.append(
            {
                "network": network.module.state_dict(),
                "frozen": self.frozen.network.state_dict(),
                "data": data,
                "noise": drawn._asdict(),
                "pool": {"x": self.pool_x, "frozen": self.pool_frozen},
                "c": self.c,
            }
        )
        seen[-1] = torch.utils._pytree.tree_map(torch.clone, seen[-1])
        return log_ratio(self, network, data, drawn, **settings)

    def clipped(parameters: Any, most: float) -> torch.Tensor:
        kept = list(parameters)
        seen[-1]["gradient"] = torch.cat([p.grad.flatten() for p in kept])
        return clip(kept, most)

    SelfNoise.log_ratio, nn.utils.clip_grad_norm_ = watched, clipped


def watch_writing(said: list[str], folder: str) -> None:
    """Note every file that this process opens for writing, makes, renames or removes: in the
    folder and everywhere but among PyTorch's own temporary files.
    """
    elsewhere = (tempfile.gettempdir(), "/dev/")

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate"):
            return
        flags = os.O_WRONLY | os.O_RDWR | os.O_CREAT
        reading = event == "open" and not (set(args[1] or "") & set("wax+") or args[2] & flags)
        path = os.path.abspath(args[0]) if isinstance(args[0], (str, os.PathLike)) else ""
        ours = path.startswith(folder) or not path.startswith(elsewhere)
        if path and ours and not reading and "__pycache__" not in path:
            said.append(f"{event} {path}")

    sys.addaudithook(audit)


def poison(at: int) -> None:
    """NaN data in rank 1, once, at its draw number `at`."""
    original, count = training.rows_on, [0]

    def rows(*args: Any) -> torch.Tensor:
        count[0] += 1
        return original(*args) * (torch.nan if count[0] == at else 1.0)

    if not processes.is_main():
        training.rows_on = rows


def child(folder: str, settings: str) -> None:
    torch.set_num_threads(1)
    given: dict[str, Any] = json.loads(settings)
    processes.wait()
    here, number = Path(folder), processes.rank()
    model, (x, components) = small_model(trained=False), data()
    seen: list[dict[str, Any]] = []
    written: list[str] = []
    calls: list[int] = []
    if number:  # what was fitted apart, and differs in its last bits
        model.reference.mean.mul_(1 + 1e-6)
        model.features.mean.add_(1e-6)
    if given.get("record"):
        record(seen)
    if given.get("poison"):
        poison(given["poison"])

    def die(step: int, row: Any, averaged: Any) -> None:
        calls.append(step)
        if step == given.get("kill"):
            os.kill(os.getpid(), signal.SIGKILL)

    if number:
        watch_writing(written, folder)
    own_run = here / ("run" if number == 0 else "run of another rank")
    config = replace(LONG, interval=given["interval"])
    rows = train(model, x, components, config, own_run, callbacks=(die,), progress=False)
    told = {"rows": rows, "weights": weights(model), "seen": seen, "calls": calls}
    told |= {
        "reference": model.reference.mean,
        "written": list(written),
        "threads": chunks.cores(),
    }
    torch.save(told, here / f"{number}.pt")


def launch(folder: Path, count: int = 2, **settings: Any) -> list[dict[str, Any]]:
    """What each process told; nothing where one was killed."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(count), __file__, str(folder), json.dumps(settings)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    started = subprocess.Popen(command, start_new_session=True, **pipes)
    try:
        said = started.communicate(timeout=300)[0]
    finally:
        if started.poll() is None:  # processes that wait for each other for ever
            os.killpg(started.pid, signal.SIGTERM)
    if "kill" in settings:
        assert "SIGKILL" in said, said
        return []
    assert started.returncode == 0, said
    return [torch.load(folder / f"{i}.pt", weights_only=True) for i in range(count)]


# The gradient


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Path, list[dict[str, Any]]]]:
    """An interval's unbroken run in two processes, recorded."""
    folders = {k: tmp_path_factory.mktemp(f"two{k}") for k in (1, 3)}
    return {k: (folder, launch(folder, interval=k, record=1)) for k, folder in folders.items()}


def dlogz(network: nn.Module, of: list[dict[str, Any]], components: int = 3) -> torch.Tensor:
    """log mean exp(F_k - F) of each component over the pools of all records `of`."""
    with torch.no_grad():
        h = torch.cat(
            [
                r["pool"]["frozen"][i] - network(x, r["c"])
                for r in of
                for i, x in enumerate(r["pool"]["x"])
            ]
        )
    c = torch.cat([r["c"] for r in of for _ in r["pool"]["x"]])
    return torch.stack([h[c == k].exp().mean().log() for k in range(components)])


def gradient(of: list[dict[str, Any]], own_dlogz: bool = False) -> torch.Tensor:
    """The loss's gradient as one process has it, from the union of what the records hold."""
    network, frozen = (small_model().density.network for _ in range(2))
    network.load_state_dict(of[0]["network"])
    frozen.load_state_dict(of[0]["frozen"])
    network.requires_grad_(True)
    h_data, h_noise, energy, pair = [], [], [], logistic(LONG.nu)
    for r in of:
        offset = dlogz(network, [r] if own_dlogz else of)
        for x, c, h in ((r["data"], r["c"], h_data), (r["noise"]["x"], r["noise"]["c"], h_noise)):
            value = network(x, c)
            h.append(frozen(x, c).detach() - value - offset[c])
            energy.append(value)
    loss = pair.data(torch.cat(h_data)).mean() + pair.noise(torch.cat(h_noise)).mean()
    loss = loss + LONG.penalty * torch.cat(energy).square().mean()
    parts = torch.autograd.grad(loss, list(network.parameters()))
    return torch.cat([part.flatten() for part in parts])


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("interval", [1, 3])
def test_the_averaged_gradient_is_that_of_the_union(two, interval):
    told = two[interval][1]
    for records in zip(*(t["seen"] for t in told), strict=True):
        assert torch.equal(records[0]["gradient"], records[1]["gradient"])
        assert not torch.equal(records[0]["data"], records[1]["data"])
        assert not torch.equal(records[0]["pool"]["x"], records[1]["pool"]["x"])
        assert apart(records[0]["gradient"], gradient(records)) < 1e-6


def test_a_dlogz_of_each_process_s_own_pool_would_be_seen(two):
    """At the third step of an interval the network has left the snapshot."""
    records = [t["seen"][11] for t in two[3][1]]
    assert any(
        not torch.equal(records[0]["network"][k], records[0]["frozen"][k])
        for k in records[0]["network"]
    )
    assert apart(records[0]["gradient"], gradient(records, own_dlogz=True)) > 1e-4


# The run


@pytest.mark.parametrize("interval", [1, 3])
def test_every_process_ends_with_the_same_and_the_main_one_alone_writes(two, interval, tmp_path):
    folder, (main, other) = two[interval]
    assert torch.equal(main["weights"], other["weights"])
    assert torch.equal(main["reference"], other["reference"])
    assert torch.equal(main["reference"], small_model().reference.mean)
    assert main["rows"] == other["rows"] == read_jsonl(folder / "run" / "metrics.jsonl")
    assert [row["step"] for row in main["rows"]] == list(range(1, 13))
    assert main["calls"] == list(range(1, 13))
    assert other["calls"] == other["written"] == []
    assert not (folder / "run of another rank").exists()
    run(tmp_path, LONG, "alone")

    def files(run: Path) -> list[str]:
        return sorted(str(p.relative_to(run)) for p in run.rglob("*"))

    assert files(folder / "run") == files(tmp_path / "alone")
    assert main["threads"] == other["threads"] == max(1, chunks.cores() // 2)


def test_the_audit_would_see_a_write(tmp_path):
    code = (
        "import test_processes as t; seen = []; "
        f"t.watch_writing(seen, '{tmp_path}'); "
        "from sance_audio.files import append_jsonl, write_json; "
        f"append_jsonl('{tmp_path}/a', {{}}); write_json('{tmp_path}/b/c', 1); "
        "print(len([s for s in seen if 'open' in s]), len([s for s in seen if 'rename' in s]))"
    )
    here = {"cwd": Path(__file__).parent, "capture_output": True, "text": True, "check": True}
    opened, renamed = subprocess.run([sys.executable, "-c", code], **here).stdout.split()
    assert int(opened) >= 2
    assert int(renamed) == 1


def test_the_accuracy_is_taken_over_all_processes(two):
    told = two[3][1]
    row, records = told[0]["rows"][11], [t["seen"][11] for t in told]
    network, frozen = (small_model().density.network for _ in range(2))
    network.load_state_dict(records[0]["network"])
    frozen.load_state_dict(records[0]["frozen"])
    right = []
    with torch.no_grad():
        offset = dlogz(network, records)
        for r in records:
            h = [
                frozen(x, c) - network(x, c) - offset[c]
                for x, c in ((r["data"], r["c"]), (r["noise"]["x"], r["noise"]["c"]))
            ]
            right += [(h[0] > 0).float().mean(), (h[1] <= 0).float().mean()]
    assert row["accuracy"] == pytest.approx(float(torch.stack(right).mean()), abs=1e-6)


def test_a_killed_run_of_two_processes_resumes_to_the_same_weights(two, tmp_path):
    unbroken = two[3][1]
    assert launch(tmp_path, interval=3, kill=7) == []
    assert _read(tmp_path / "run" / "state" / "latest.pt")["now"]["progress"]["step"] == 4
    resumed = launch(tmp_path, interval=3)
    for a, b in zip(resumed, unbroken, strict=True):
        assert torch.equal(a["weights"], b["weights"])
        assert a["rows"] == b["rows"]
    assert resumed[1]["written"] == []
    with pytest.raises(ValueError, match="processes: 2 -> 1"):
        run(tmp_path, replace(LONG, interval=3))


def test_trouble_in_one_process_takes_all_back(tmp_path):
    main, other = launch(tmp_path, interval=1, poison=6)
    assert "step 6: " in main["rows"][0]["rollback"]
    assert main["rows"] == other["rows"]
    assert torch.equal(main["weights"], other["weights"])
    assert torch.isfinite(main["weights"]).all()
    assert len(main["rows"]) == 12


# A single process


def test_a_single_process_imports_nothing_and_does_nothing():
    code = (
        "import sys; from sance_audio import processes as p; p.join(); p.wait(); "
        "print(p.count(), p.rank(), p.is_main(), p.share(1), p.gather(2), p.mean([.5]), "
        "p.on_main(lambda: 3), p.own_seed(4), 'torch' in sys.modules)"
    )
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    env = {k: v for k, v in os.environ.items() if k not in names}
    said = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
    assert said.stdout.decode().split() == [
        "1",
        "0",
        "True",
        "1",
        "[2]",
        "[0.5]",
        "3",
        "4",
        "False",
    ]


def test_each_process_takes_its_share_of_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for local, share in {"": 8, "1": 8, "2": 4, "3": 2, "16": 1}.items():
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
        assert chunks.cores() == share


@pytest.mark.parametrize(
    ("connected", "kind", "message"),
    [(1, "cpu", "speaks of 2 processes"), (2, "cpu", r"join\('cuda'\) first"), (2, "cuda", None)],
)
def test_processes_on_another_device_or_unconnected_are_told(
    monkeypatch, connected, kind, message
):
    found = SimpleNamespace(num_processes=connected, device=torch.device(kind))
    monkeypatch.setattr("accelerate.PartialState", lambda cpu: found)
    monkeypatch.setenv("WORLD_SIZE", "2")
    if message is None:
        processes.join("cuda")
        return processes.join()
    with pytest.raises(ValueError, match=message):
        processes.join("cuda")


def test_seeds_of_processes_differ(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    seeds = set()
    for rank in range(4):
        monkeypatch.setenv("RANK", str(rank))
        seeds |= {processes.own_seed(0), processes.own_seed(1)}
        assert processes.is_main() == (rank == 0)
    assert len(seeds) == 8
    assert {0, 1} < seeds


if __name__ == "__main__":
    child(*sys.argv[1:])
