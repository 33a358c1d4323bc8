from __future__ import annotations

import random

import pytest


@pytest.fixture(scope="session")
def awkward() -> list[str]:
    """Text on which byte-pair implementations have been seen to differ."""
    noise = random.Random(0)
    return [
        "aaaa aaaaa aaaaaa baaaab aaaaaaaaaaaaaaaaa aa a",
        "abababab ababa bababa cabcabcab",
        "🙂🙂🙂 👩‍👩‍👧‍👦 🇩🇪🇫🇷 é é ß ſ",
        "line one\r\nline two\r\n\r\n  indented\r\n\tTabs\t\tand   spaces   \n\n\n",
        "你好，世界。你好你好！中文分词没有空格，标点也不同。",
        "don't WE'LL it'S they'ſ 1234567890 12,345.67 x=y+z; // --- ***!!!\n\n",
        "",
        "".join(chr(noise.choice([*range(0x20), *range(0x20, 0x2FF), 0x4E2D, 0x1F600])) for _ in range(3000)),
        bytes(noise.randrange(256) for _ in range(3000)).decode("latin-1"),
        bytes(noise.randrange(256) for _ in range(3000)).decode("utf-8", errors="replace"),
        "the cat sat on the mat and the other cat sat on the other mat. " * 20,
    ]
