"""Steps before tokenizing: what leaves documents out, or changes them. Each is off where it is not named.

A step is a class here, and its fields are what YAML and `--step` may set: `{use: GopherQuality, min_doc_words: 20}`.
Those that look at one document at a time (`DocumentStep`) run first, in the order in which they are named, wherever
units are done; of what they leave, those that compare documents (`ComparingStep`) mark each there, and decide once all
are marked. The rules of filters are datatrove's (https://github.com/huggingface/datatrove), whose classes do the work.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import pydantic
from annotated_types import Ge, Le
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from gptlab.console import say
from gptlab.data.ngrams import ngrams
from gptlab.errors import DataError, option

Questions = Callable[[str], Iterable[tuple[str, str]]]
"""The questions of an evaluation task, by its name: what its data set calls each, and its text with the answer."""

Share = Annotated[float, Ge(0), Le(1)]
Count = Annotated[int, Ge(1)]

_SHINGLES = 1 << 14  # n-grams that are hashed at once: 15 MB

_DATATROVE = "pip install 'gptlab[cluster-data]'"


class Step(BaseModel):
    """A step: its fields are its arguments."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    needs: ClassVar[tuple[str, ...]] = ()  # modules that have to be installed
    compares: ClassVar[bool] = False

    @property
    def use(self) -> str:
        """Its name."""
        return type(self).__name__

    def plain(self) -> dict[str, Any]:
        """As YAML writes it, every default written out."""
        return {"use": self.use, **self.model_dump(mode="json")}

    def identity(self) -> dict[str, Any]:
        """What changes when what it does changes: its arguments, and the versions of what does the work."""
        from importlib.metadata import version

        return self.plain() | {"versions": {name: version(name) for name in self.needs}}

    def asked(self, questions: Questions | None) -> list[tuple[str, str, str]]:
        """The questions (task, name, text) that it asks for; none, but of `Decontaminate`."""
        return []

    def make_ready(self, asked: Sequence[tuple[str, str, str]], folder: Path) -> None:
        """Write to `folder` what workers need of the questions that it asked for."""

    def check(self) -> None:
        """Raise DataError where what it needs is not installed."""
        for module in self.needs:
            if importlib.util.find_spec(module) is None:
                raise DataError(f"{option('step', self.use)} needs {module}: {_DATATROVE}")


class DocumentStep(Step):
    """A step that looks at one document at a time."""

    @abstractmethod
    def apply(self, text: str, folder: Path) -> tuple[str | None, str]:
        """A document's text, as it is to be from here on, or None where it is left out; and the reason, or "".

        `folder`: of what `make_ready` has written.
        """


class ComparingStep(Step):
    """A step that compares documents with each other."""

    compares: ClassVar[bool] = True

    @abstractmethod
    def mark(self, text: str) -> NDArray[Any]:
        """(width,): what of a document is compared. All marks of a step have one width and one type."""

    @abstractmethod
    def repeated(self, marks: NDArray[Any]) -> NDArray[np.bool_]:
        """(documents, width) → (documents,): which repeat one before them."""


class ExactDuplicates(ComparingStep):
    """Leaves out documents whose text is, byte for byte, that of one before: inside and across inputs and splits."""

    def mark(self, text: str) -> NDArray[Any]:
        """16 bytes of BLAKE2b, as two numbers."""
        import hashlib

        return np.frombuffer(hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest(), dtype=np.uint64)

    def repeated(self, marks: NDArray[Any]) -> NDArray[np.bool_]:
        """As of `ComparingStep`."""
        _, first = np.unique(marks, axis=0, return_index=True)
        found = np.ones(len(marks), dtype=np.bool_)
        found[first] = False
        return found


class MinHash(ComparingStep):
    """Leaves out documents that are nearly one before (Broder 1997), inside and across inputs and splits.

    Of the n-grams of words, letters small and marks left out, `bands` × `rows` minima of hashes are taken.
    Documents that share all minima of one band are one group, and the first of a group stays. Where a share s of all
    n-grams is common to both, two documents meet with probability 1 − (1 − s^rows)^bands: 92% at 0.8, 5% at 0.5, by
    default, as in FineWeb's recipe. Documents of fewer words meet where they are equal.
    """

    needs: ClassVar[tuple[str, ...]] = ("datatrove", "spacy")  # whose words it does not use, but is built with

    n_grams: Count = 5
    bands: Count = 14
    rows: Count = 8
    seed: int = 1

    def mark(self, text: str) -> NDArray[Any]:
        """A number a band."""
        import hashlib

        shingles = ngrams(_words(text), self.n_grams).reshape(-1, 1)
        if len(shingles):
            chunks = np.split(shingles, range(_SHINGLES, len(shingles), _SHINGLES))
            minima = np.min([self._signature.get_signature(chunk) for chunk in chunks], axis=0)
            parts = [band.tobytes() for band in minima]
        else:
            parts = [f"{number} {text}".encode() for number in range(self.bands)]
        return np.frombuffer(b"".join(hashlib.blake2b(part, digest_size=8).digest() for part in parts), dtype=np.uint64)

    def repeated(self, marks: NDArray[Any]) -> NDArray[np.bool_]:
        """As of `ComparingStep`."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        n = len(marks)
        firsts = []
        for band in marks.T:
            _, first, group = np.unique(band, return_index=True, return_inverse=True)
            firsts.append(first[group])
        others, seconds = np.concatenate(firsts), np.tile(np.arange(n), marks.shape[1])
        apart = others != seconds
        edges = coo_array((np.ones(int(apart.sum()), dtype=np.int8), (others[apart], seconds[apart])), shape=(n, n))
        _, groups = connected_components(edges, directed=False)
        _, first = np.unique(groups, return_index=True)
        found = np.ones(n, dtype=np.bool_)
        found[first] = False
        return found

    @functools.cached_property
    def _signature(self) -> Any:
        from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
        from datatrove.utils.hashing import HashConfig

        # Words and their hashes are ours: cutting words with spaCy takes ten times as long as all the rest. Nothing
        # is hashed by this SHA-1, and datatrove's default, xxhash, would have to be installed.
        config = MinhashConfig(
            n_grams=self.n_grams,
            num_buckets=self.bands,
            hashes_per_bucket=self.rows,
            seed=self.seed,
            hash_config=HashConfig(hash_fc="sha1"),
        )
        return MinhashDedupSignature(output_folder=".", config=config)  # it writes only where it is run as a pipeline


class _Filter(DocumentStep):
    """A filter of datatrove's, its class called `rule` there."""

    needs: ClassVar[tuple[str, ...]] = ("datatrove", "spacy")
    rule: ClassVar[str]

    def apply(self, text: str, folder: Path) -> tuple[str | None, str]:
        """As of `DocumentStep`."""
        from datatrove.data import Document as Held

        held = Held(text=text, id="")
        answer = self._rule.filter(held)
        kept, reason = answer if isinstance(answer, tuple) else (answer, "")
        return (held.text, "") if kept else (None, reason)

    @functools.cached_property
    def _rule(self) -> Any:
        filters = importlib.import_module("datatrove.pipeline.filters")
        return getattr(filters, self.rule)(**self.model_dump())


class GopherQuality(_Filter):
    """Leaves out what does not look like English prose (Rae et al. 2021, Gopher, arXiv:2112.11446, appendix A.1.1)."""

    rule: ClassVar[str] = "GopherQualityFilter"

    min_doc_words: Count = 50
    max_doc_words: Count = 100_000
    min_avg_word_length: float = 3
    max_avg_word_length: float = 10
    max_symbol_word_ratio: float = 0.1
    max_bullet_lines_ratio: Share = 0.9
    max_ellipsis_lines_ratio: Share = 0.3
    max_non_alpha_words_ratio: Share = 0.8
    min_stop_words: Annotated[int, Ge(0)] = 2


class GopherRepetition(_Filter):
    """Leaves out what repeats itself (the same, table A1)."""

    rule: ClassVar[str] = "GopherRepetitionFilter"

    dup_line_frac: Share = 0.3
    dup_para_frac: Share = 0.3
    dup_line_char_frac: Share = 0.2
    dup_para_char_frac: Share = 0.2


class C4(_Filter):
    """C4's rules (Raffel et al. 2020, arXiv:1910.10683): lines without an end mark go, and then pages without prose."""

    rule: ClassVar[str] = "C4QualityFilter"

    filter_no_terminal_punct: bool = True
    min_num_sentences: int = 5
    min_words_per_line: int = 3
    max_word_length: int = 1000
    remove_citations: bool = True
    filter_lorem_ipsum: bool = True
    filter_javascript: bool = True
    filter_curly_bracket: bool = True
    filter_policy: bool = True


class FineWebQuality(_Filter):
    """FineWeb's own rules (Penedo et al. 2024, arXiv:2406.17557): lists, short lines, repeated characters."""

    rule: ClassVar[str] = "FineWebQualityFilter"

    line_punct_thr: Share = 0.12
    short_line_thr: Share = 0.67
    short_line_length: Count = 30
    char_duplicates_ratio: Share = 0.01
    new_line_ratio: float = 0.3


class Language(DocumentStep):
    """Keeps documents in `languages` (two letters each) of which py3langid is at least so sure; it brings its model."""

    needs: ClassVar[tuple[str, ...]] = ("py3langid",)

    languages: tuple[str, ...] = ("en",)
    threshold: Share = 0.65

    @pydantic.model_validator(mode="after")
    def _known(self) -> Language:
        if self.languages and all(len(one) == 2 and one.isalpha() and one.islower() for one in self.languages):
            return self
        raise ValueError("languages are two small letters each, such as [en, de]")

    def apply(self, text: str, folder: Path) -> tuple[str | None, str]:
        """As of `DocumentStep`."""
        found, sure = _identifier().classify(text)
        if found not in self.languages:
            return None, str(found)
        return (text, "") if sure >= self.threshold else (None, f"{found}, unsure")


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


class MaskPII(DocumentStep):
    """Puts `email` in the place of e-mail addresses and `ip` in that of public IP addresses; null leaves them."""

    needs: ClassVar[tuple[str, ...]] = ("datatrove",)

    email: str | None = "email@example.com"
    ip: str | None = "22.214.171.124"  # datatrove's, which answers to nobody

    def apply(self, text: str, folder: Path) -> tuple[str | None, str]:
        """As of `DocumentStep`."""
        return self._formatter.format(text), ""

    @functools.cached_property
    def _formatter(self) -> Any:
        from datatrove.pipeline.formatters import PIIFormatter

        return PIIFormatter(  # one replacement each: a list is gone through in turn, over documents
            remove_emails=self.email is not None,
            remove_ips=self.ip is not None,
            email_replacement=self.email or "",
            ip_replacement=self.ip or "",
        )


class Decontaminate(DocumentStep):
    """Leaves out documents in which `words` words in a row, letters small and marks left out, are those of a question
    of an evaluation task, its right answer among them (13 in Brown et al. 2020, arXiv:2005.14165, appendix C).

    The report names each question that was found. Questions of fewer words cannot be told from chance, and are counted.
    """

    tasks: tuple[str, ...] = ("hellaswag", "lambada_openai")
    words: Annotated[int, Ge(5)] = 13

    def asked(self, questions: Questions | None) -> list[tuple[str, str, str]]:
        """As of `Step`. Raises DataError where nobody gives questions."""
        if questions is None:
            raise DataError(
                f"{option('step', self.use)}: who has the questions? give `questions`, a function of a task"
            )
        return [(task, name, text) for task in self.tasks for name, text in questions(task)]

    def make_ready(self, asked: Sequence[tuple[str, str, str]], folder: Path) -> None:
        """As of `Step`: the n-grams of all questions, sorted, each with the first question that has it."""
        runs = [ngrams(_words(text), self.words) for _, _, text in asked]
        for task in self.tasks:
            of_task = [run for run, (name, _, _) in zip(runs, asked, strict=True) if name == task]
            short = sum(not len(run) for run in of_task)
            if short:
                say(f"{task}: {short:,} of {len(of_task):,} questions have fewer than {self.words} words: too short")
        owners = np.repeat(np.arange(len(runs)), [len(run) for run in runs])
        known, first = np.unique(np.concatenate([*runs, np.zeros(0, dtype=np.uint64)]), return_index=True)
        names = [f"{task} {name}" for task, name, _ in asked]
        with open(folder / self._file, "wb") as file:
            np.savez(file, known=known, owners=owners[first], names=np.array(names, dtype=np.str_))

    def apply(self, text: str, folder: Path) -> tuple[str | None, str]:
        """As of `DocumentStep`; the reason is the question."""
        known, owners, names = _questions(folder / self._file)
        found = ngrams(_words(text), self.words)
        places = np.searchsorted(known, found).clip(max=max(0, len(known) - 1))
        hits = places[known[places] == found] if len(known) else places[:0]
        if not len(hits):
            return text, ""
        return None, str(names[owners[hits].min()])

    @property
    def _file(self) -> str:
        return f"questions_{self.words}_{'_'.join(self.tasks)}.npz"


_WORD = re.compile(r"\w+")


def _words(text: str) -> NDArray[np.uint64]:
    """A number of each word."""
    return np.array([_number(word) for word in _WORD.findall(text.lower())], dtype=np.uint64)


@functools.lru_cache(maxsize=1 << 18)
def _number(word: str) -> int:
    import hashlib

    return int.from_bytes(hashlib.blake2b(word.encode("utf-8"), digest_size=8).digest(), "big")


@functools.lru_cache(maxsize=4)
def _questions(path: Path) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    with np.load(path, allow_pickle=False) as file:
        return file["known"], file["owners"], file["names"]
