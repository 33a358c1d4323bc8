"""The table of GPUs: the shipped one, a user's over it, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptlab.errors import ConfigError
from gptlab.hardware.gpus import find_gpu, gpu_of_driver, read_gpus


def test_the_shipped_table_is_sane_and_dated() -> None:
    cards = read_gpus()
    assert {"RTX 3070", "RTX 4060 Ti", "A40", "RTX 6000 Ada", "L4", "H200"} <= set(cards)  # of the five systems' tables
    assert {"RTX 3060", "RTX 4090", "A100 80GB", "H100 SXM", "T4", "MI300X"} <= set(cards)
    for card in cards.values():
        assert 1e13 < card.peak < 1e16, card
        assert 4 * 2**30 < card.memory < 300 * 2**30, card
        assert 1e11 < card.bandwidth < 2e13, card
        assert 0 < card.dollars_per_hour < 20, card
        assert card.priced >= "2025", card
        assert card.source, card


@pytest.mark.parametrize("name", ["RTX 4090", "rtx 4090", "4090", "NVIDIA GeForce RTX 4090", "rtx4090"])
def test_a_card_is_found_as_people_write_it(name: str) -> None:
    assert find_gpu(name, read_gpus()).name == "RTX 4090"


def test_an_unknown_card_names_near_ones() -> None:
    with pytest.raises(ConfigError, match="did you mean 'A100 40GB' or 'A100 80GB'"):
        find_gpu("A100", read_gpus())
    with pytest.raises(ConfigError, match="did you mean 'RTX 4090'"):
        find_gpu("RTX 4091", read_gpus())


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA A40", "A40"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("NVIDIA GeForce RTX 4060 Ti", "RTX 4060 Ti"),
        ("NVIDIA GeForce RTX 4060", "RTX 4060"),
        ("NVIDIA L40", "L40"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA RTX A6000", "RTX A6000"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("AMD EPYC", None),
    ],
)
def test_the_drivers_name_leads_to_the_card(driver: str, name: str | None) -> None:
    found = gpu_of_driver(driver, read_gpus())
    assert (found and found.name) == name


def test_a_users_table_lies_over_the_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("gpus.yaml").write_text(
        "priced: 2026-11\ngpus:\n"
        "  RTX 4090: {dollars_per_hour: 0.69}\n"
        "  Abacus: {peak_tflops: 1, memory_gib: 2, bandwidth_gb_s: 3, dollars_per_hour: 0}\n"
        "  A10: {memory_gib: 20}\n"
    )
    cards = read_gpus()
    assert (cards["RTX 4090"].dollars_per_hour, cards["RTX 4090"].priced) == (0.69, "2026-11")
    assert cards["RTX 4090"].peak == 165e12
    assert cards["Abacus"].memory == 2 * 2**30
    assert cards["A10"].memory == 20 * 2**30
    assert cards["A10"].priced == "2025-06"  # its price is still the shipped one


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpus:\n  T4: {peak_flops: 3}", r"gpus.yaml:2: unknown key 'peak_flops'; did you mean 'peak_tflops'"),
        ("cards: {}", r"gpus.yaml:1: unknown key 'cards'"),
        ("gpus:\n  T4:\n    memory_gib: -1", r"gpus.yaml:3: gpus.T4.memory_gib: expected a number above 0, found -1"),
        ("gpus:\n  T4: {dollars_per_hour: .nan}", r"gpus.yaml:2: .*expected a number 0 or more"),
        ("gpus:\n  T4: 3", r"gpus.yaml:2: gpus.T4 must be a mapping"),
        ("gpus: 3", r"gpus.yaml:1: gpus must be a mapping"),
        ("gpus:\n  Abacus: {peak_tflops: 1}", r"gpus.Abacus: memory_gib is missing"),
        ("priced: 2025", r"gpus.yaml:1: priced: expected text, found 2025; put it in quotes"),
    ],
)
def test_a_bad_table_is_refused_by_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "gpus.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_gpus(tmp_path / "gpus.yaml")
