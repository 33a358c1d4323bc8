"""Device, precision, memory, what is shown, and being told to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gptlab.errors import ConfigError, TrainingError
from gptlab.hardware import device as hardware
from gptlab.hardware import memory, precision
from gptlab.hardware.compile import try_compile
from gptlab.hardware.device import describe, memory_limit, peak_flops, pick_device
from gptlab.hardware.memory import largest_micro_batch
from gptlab.hardware.precision import autocast, pick_dtype
from gptlab.parallel.world import World, find_world
from gptlab.systems.display import TrainingDisplay
from gptlab.systems.signals import stop_signals

CPU = torch.device("cpu")


# ---------------------------------------------------------------- device and precision


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("tpu9", "'tpu9' is no device"),
        ("", "'' is no device"),
        ("cpu:x", "'cpu:x' is no device"),
        ("meta", "'meta' is not supported"),
        ("xpu", "'xpu' is not supported"),
    ],
)
def test_names_that_are_no_device(name: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        pick_device(name)
    assert f"system.device: {complaint}" in str(caught.value)


def test_devices_that_are_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == CPU
    with pytest.raises(ConfigError, match="torch sees no CUDA device here; use auto or cpu"):
        pick_device("cuda:0")
    with pytest.raises(ConfigError, match="not an Apple GPU"):
        pick_device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto", local_rank=1) == pick_device("cuda", local_rank=1) == torch.device("cuda:1")
    assert pick_device("cuda:0", local_rank=1) == torch.device("cuda:0")
    with pytest.raises(ConfigError, match="only 2 CUDA devices are here"):
        pick_device("cuda:2")


@pytest.mark.parametrize(
    ("device", "fast", "expected"),
    [
        ("cuda", True, torch.bfloat16),
        ("cuda", False, torch.float16),
        ("cpu", True, torch.bfloat16),
        ("cpu", False, torch.float32),
    ],
)
def test_auto_dtype(monkeypatch: pytest.MonkeyPatch, device: str, fast: bool, expected: torch.dtype) -> None:
    monkeypatch.setattr(precision, "has_fast_bfloat16", lambda _: fast)
    assert pick_dtype("auto", torch.device(device)) == expected


def test_dtypes_by_name() -> None:
    assert pick_dtype("float32", CPU) == torch.float32
    assert pick_dtype("bfloat16", CPU) == torch.bfloat16  # slow on some machines, but what was asked for
    assert pick_dtype("float16", torch.device("cuda")) == torch.float16
    with pytest.raises(ConfigError, match=r"train\.dtype: float16 needs a CUDA device, this is cpu; use auto"):
        pick_dtype("float16", CPU)


def test_autocast_is_for_low_precision_only() -> None:
    layer, x = nn.Linear(4, 4), torch.ones(1, 4)
    with autocast(CPU, torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    with autocast(CPU, torch.float32):
        assert layer(x).dtype == torch.float32
        assert not torch.is_autocast_enabled("cpu")


def test_what_is_written_of_the_hardware() -> None:
    described = describe(CPU)
    assert described["device"] == "cpu"
    assert described["torch"] == torch.__version__
    assert described["cores"] == os.cpu_count()
    assert described["cpu"]
    assert peak_flops(CPU) is None


@pytest.mark.parametrize(
    ("card", "tera"),
    [("NVIDIA H100 PCIe", 756), ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA L40S", 362), ("Abacus", None)],
)
def test_peak_flops_by_the_name_of_the_card(monkeypatch: pytest.MonkeyPatch, card: str, tera: int | None) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: card)
    peak = peak_flops(torch.device("cuda"))
    assert peak == (tera and tera * 1e12)


def test_world_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert find_world() == World()
    assert find_world().is_main
    for name, value in (("RANK", "3"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert find_world() == World(3, 8, 1)
    assert not find_world().is_main


# ---------------------------------------------------------------- memory


def passes(width: int, depth: int) -> Any:
    layers = nn.Sequential(*(nn.Sequential(nn.Linear(width, width), nn.GELU()) for _ in range(depth)))

    def run(rows: int) -> None:
        layers(torch.ones(rows, width)).sum().backward()

    return run


def test_a_larger_model_gets_fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "memory_limit", lambda _: 600_000)
    small, deep, wide = (largest_micro_batch(passes(*shape), 64, CPU) for shape in ((64, 2), (64, 8), (1024, 2)))
    assert 64 >= small > deep >= 1
    assert wide == 1  # its weights alone are beyond the limit; one row is tried all the same


def test_rows_are_never_more_than_asked_for_and_are_shares_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory_limit(CPU) > 2**20
    assert largest_micro_batch(passes(8, 1), 6, CPU) == 6
    seen = set()
    for limit in (10_000, 20_000, 40_000, 80_000, 160_000):
        monkeypatch.setattr(memory, "memory_limit", lambda _, limit=limit: limit)
        seen.add(largest_micro_batch(passes(32, 4), 24, CPU))
    assert seen <= {1, 2, 3, 6, 12, 24}
    assert len(seen) > 2


@pytest.mark.parametrize(
    ("controllers", "limit", "used", "cached"),
    [
        ("", "memory.max", "memory.current", "file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache"),
    ],
)
def test_a_container_or_a_job_has_what_its_control_groups_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, controllers: str, limit: str, used: str, cached: str
) -> None:
    def confine(group: str, **files: str) -> None:
        folder = tmp_path / "sys/fs/cgroup" / controllers / group
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / {"limit": limit, "used": used, "stat": "memory.stat"}[name]).write_text(text)

    assert hardware._confined_to(tmp_path) == []  # a system without them
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"3:cpuset:/\n1:{controllers}:/job/step\n")
    confine("job/step", limit="max", used="300", stat=f"anon 1\n{cached} 50\n")
    assert hardware._confined_to(tmp_path) == []
    confine("job", limit="1000", used="300", stat=f"anon 1\n{cached} 50\n")
    assert hardware._confined_to(tmp_path) == [750]
    confine("job/step", limit="200")
    assert hardware._confined_to(tmp_path) == [0, 750]  # what it has taken is beyond a limit lowered since
    for confined in ([], [2**50], [12345]):
        monkeypatch.setattr(hardware, "_confined_to", lambda confined=confined: confined)
        assert (hardware.available_memory(CPU) == 12345) == (confined == [12345])


def test_out_of_memory_on_a_gpu_halves_the_rows() -> None:
    tried: list[int] = []

    def run(rows: int) -> None:
        tried.append(rows)
        if rows > 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    assert largest_micro_batch(run, 16, torch.device("cuda")) == 2
    assert tried == [16, 8, 4, 2]

    def never(rows: int) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(TrainingError, match=r"lower train\.sequence_length or the size of the model"):
        largest_micro_batch(never, 4, torch.device("cuda"))


# ---------------------------------------------------------------- compile


def test_a_compiler_that_fails_is_said_and_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("gptlab.hardware.compile.say", said.append)

    class Loss:
        compiled = False

        def compile(self) -> None:
            self.compiled = True

        def uncompile(self) -> None:
            self.compiled = False

    model, loss = nn.Linear(2, 2), Loss()

    def warm_up() -> None:
        model.weight.grad = torch.ones(2, 2)
        assert model._compiled_call_impl is not None
        assert loss.compiled
        raise RuntimeError("no C++ compiler found\nand a long story about it")

    assert try_compile(model, loss, warm_up) is False
    assert model._compiled_call_impl is None
    assert not loss.compiled
    assert model.weight.grad is None  # half a warm-up must not count as a gradient
    assert model(torch.ones(1, 2)).shape == (1, 2)
    assert len(said) == 1
    assert "torch.compile failed (no C++ compiler found); going on without it" in said[0]
    assert "\n" not in said[0]


# ---------------------------------------------------------------- display


def test_speed_is_mfu_where_the_peak_is_known() -> None:
    assert TrainingDisplay(10, 0, 6e9, 1e15).speed(50_000) == "MFU 30.0%"
    assert TrainingDisplay(10, 0, 6e6, None).speed(50_000) == "300GFLOP/s"


def test_outside_a_terminal_there_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("gptlab.systems.display.say", said.append)
    with TrainingDisplay(100, 0, 1e6, None) as display:
        for step in range(1, 101):
            display.update(step, 1 / step, 1e6)
        display.message("hello")
    assert said == ["step 100/100  loss 0.0100  1M tok/s  1TFLOP/s", "hello"]


# ---------------------------------------------------------------- signals


def test_a_signal_is_a_request_and_a_second_ctrl_c_ends() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with stop_signals() as request:
        assert not request.requested
        signal.raise_signal(signal.SIGTERM)
        assert (request.requested, request.signal) == (True, "SIGTERM")
        signal.raise_signal(signal.SIGTERM)  # a scheduler may repeat itself; only a person is impatient
        assert request.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    with stop_signals() as request:
        signal.raise_signal(signal.SIGINT)
        assert request.signal == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGUSR2"])
def test_a_scheduler_s_warning_is_a_request_unless_it_is_ignored(name: str) -> None:
    number = signal.Signals[name]
    with stop_signals() as request:
        signal.raise_signal(number)
    assert request.signal == name
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with stop_signals() as request:
            signal.raise_signal(number)
        assert not request.requested
    finally:
        signal.signal(number, before)


def test_in_another_thread_signals_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[bool] = []

    def work() -> None:
        with stop_signals() as request:
            seen.append(request.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process's own peak")
def test_peak_memory_is_not_that_of_who_started_the_process() -> None:
    held = bytearray(os.urandom(1) * (900 * 2**20))
    code = "import torch; from gptlab.hardware.memory import peak_memory; print(peak_memory(torch.device('cpu')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 50 * 2**20 < int(done.stdout) < len(held)
