"""The beginnings that runs continue: two lists that ship, or a file of one's own."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from gptlab.config.jsonfile import parse_json
from gptlab.errors import DataError, did_you_mean, option
from gptlab.files import what_is_there

_SHIPPED = Path(__file__).parent / "lists"


@dataclass(frozen=True)
class Prompts:
    """Beginnings, in their order. `name`: of the list, or the file."""

    name: str
    texts: tuple[str, ...]

    @property
    def digest(self) -> str:
        """16 digits of SHA-256 of the texts."""
        return hashlib.sha256("\0".join(self.texts).encode()).hexdigest()[:16]


def prompt_lists() -> tuple[str, ...]:
    """The names of the lists that ship."""
    return tuple(sorted(path.stem for path in _SHIPPED.glob("*.txt")))


def read_prompts(source: str, limit: int | None = None) -> Prompts:
    """The prompts of a list that ships, of a .txt (a prompt a line) or a .jsonl (objects with `prompt`).

    `limit`: the first so many; all for None. Raises DataError for a source that is neither, cannot be read, holds none,
    or holds one twice: each prompt counts as one that was drawn for itself.
    """
    given = option("prompts", source)
    if source in prompt_lists():
        path, name = _SHIPPED / f"{source}.txt", source
    else:
        path, name = Path(source), Path(source).name
        if path.suffix not in (".txt", ".jsonl"):
            raise DataError(f"{given}: neither a list nor a .txt or .jsonl; {did_you_mean(source, prompt_lists())}")
        if not path.is_file():
            raise DataError(f"{given}: no such file ({what_is_there(path)}); lists are {', '.join(prompt_lists())}")
    seen: dict[str, int] = {}
    for number, line in enumerate(_lines(path, given), start=1):
        if line.strip():
            text = _prompt(line, given, number) if path.suffix == ".jsonl" else line.strip()
            if text in seen:
                raise DataError(f"{given}:{number}: the same prompt as in line {seen[text]}; remove one of them")
            seen[text] = number
    if not seen:
        raise DataError(f"{given}: no prompts; write one on each line")
    return Prompts(name, tuple(seen)[:limit])


def _lines(path: Path, given: str) -> list[str]:
    try:
        return path.read_bytes().decode("utf-8-sig").splitlines() if path.suffix == ".txt" else _split(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{given}: not UTF-8 (byte {error.start:,}); convert it first") from None
    except OSError as error:
        raise DataError(f"{given}: cannot be read ({error.strerror or error}); check the path") from None


def _split(path: Path) -> list[str]:
    """At line feeds alone: other line ends may stand in JSON's texts."""
    return path.read_bytes().decode("utf-8-sig").split("\n")


def _prompt(line: str, given: str, number: int) -> str:
    try:
        prompt = parse_json(line, dict[str, object]).get("prompt")
    except ValueError as problem:
        raise DataError(f"{given}:{number}: not an object of JSON ({problem}); mend the line") from None
    if not isinstance(prompt, str) or not prompt.strip():
        raise DataError(f"{given}:{number}: no text under `prompt`; give it one, or remove the line")
    return prompt
