"""`gptlab paper`: a LaTeX preprint whose every number is read from a run, and says from which.

paper.tex         the skeleton, written once: it is the author's from then on
numbers.tex       a macro for every number
sources.json      every number with the runs, files and keys that it was read from, and the files' SHA-256
tables/, figures/ everything else that is generated, written anew each time
references.bib
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gptlab.config import format_count
from gptlab.config.jsonfile import read_json
from gptlab.errors import GptlabError
from gptlab.files import sha256_file, write_atomic
from gptlab.lab.experiment.evidence import ArmEvidence
from gptlab.lab.experiment.ledger import COMPARISON, RunRecord
from gptlab.lab.experiment.matching import QUANTITIES, mean_quantity
from gptlab.lab.experiment.spec import BASELINE, Experiment
from gptlab.lab.report.compare import format_ranges
from gptlab.lab.report.figures import save_figures
from gptlab.lab.report.findings import Findings, read_findings
from gptlab.lab.report.latex import Numbers, Source, code, escape, longtable, tabular
from gptlab.lab.runs.store import GRADE, Store
from gptlab.planning.formatting import format_bytes, format_seconds
from gptlab.seal import sealed_json

_TEMPLATES = Path(__file__).parent / "templates"

SCHEMA = 1
"""Of sources.json."""


def write_paper(experiment: Experiment, store: Store) -> list[Path]:
    """Write paper/ into an experiment's folder; a paper.tex that is there is kept. Returns what was written.

    Raises GptlabError where a number of the last paper has lost its source or the source has changed, where a finished
    run has no metrics, and where no arm has a pair of runs yet. Nothing is written then.
    """
    folder = experiment.folder / "paper"
    check_sources(folder / "sources.json", store)
    findings = read_findings(experiment, store)
    if not any(found.pairs for found in findings.evidence.arms):
        raise GptlabError(f"paper: no seed of {experiment.folder} is finished; `gptlab run {experiment.folder}` first")
    numbers = Numbers()
    contents = {f"tables/{name}.tex": text for name, text in _tables(findings, numbers).items()}
    contents["tables/sources.tex"] = _source_table(findings, numbers)
    contents["numbers.tex"] = numbers.definitions()
    contents["references.bib"] = (_TEMPLATES / "references.bib").read_text(encoding="utf-8")
    contents["sources.json"] = _sources(numbers, store)
    if not (folder / "paper.tex").exists():
        contents["paper.tex"] = _skeleton(experiment)
    figures = save_figures(findings, folder / "figures", kinds=("pdf",))
    for name, content in contents.items():
        write_atomic(folder / name, content)
    return [*(folder / name for name in contents), *figures]


# ---------------------------------------------------------------- sources


def check_sources(path: Path, store: Store) -> None:
    """Raise GptlabError, naming the number, where one of the last paper's has lost its source, or that has changed."""
    if not path.is_file():
        return
    try:
        content: dict[str, Any] = read_json(path, dict[str, Any], mend="restore it, or delete it")
        if content["schema"] != SCHEMA:
            raise GptlabError(f"{path}: of schema {content['schema']}, this gptlab reads {SCHEMA}; delete it")
        known: Mapping[str, str] = content["files"]
        states = {name: _state(store.root / name, digest) for name, digest in known.items()}
        for number in content["numbers"].values():
            for source in number["sources"]:
                name = f"{source['run']}/{source['file']}"
                if states[name]:
                    raise GptlabError(
                        f"paper: the number {number['says']!r} lost its source: {store.root / name} {states[name]}; "
                        f"restore it, or delete {path} to write the paper from what there is now"
                    )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise GptlabError(f"{path}: damaged; restore it, or delete it to write the paper from what there is") from None


def _state(path: Path, digest: str) -> str:
    """What is wrong with a source; empty where nothing is."""
    if not path.is_file():
        return "is gone"
    return "" if sha256_file(path) == digest else "has changed since"


def _sources(numbers: Numbers, store: Store) -> str:
    listed = {
        name: {"says": says, "value": value, "sources": [source._asdict() for source in sources]}
        for name, (says, value, sources) in numbers.values.items()
    }
    files = sorted({f"{source.run}/{source.file}" for _, _, sources in numbers.values.values() for source in sources})
    content = {
        "schema": SCHEMA,
        "numbers": listed,
        "files": {name: sha256_file(store.root / name) for name in files},
    }
    return sealed_json(content)


def _measured(findings: Findings, folders: Sequence[Path]) -> list[Source]:
    """Where the metric of runs is read."""
    metric = findings.experiment.statement.metric
    if metric.accuracy is not None:
        return [Source(folder.name, f"evals/{metric.accuracy}.json", "acc_norm") for folder in folders]
    if metric.grade is not None:
        return [Source(folder.name, f"evals/{GRADE}.json", "mean") for folder in folders]
    return [Source(folder.name, "metrics.jsonl", metric.key) for folder in folders]


def _source_table(findings: Findings, numbers: Numbers) -> str:
    """Appendix: every number and the runs that it comes from, by their places in the table of runs."""
    places = {run.folder.name: place for place, run in enumerate(_finished(findings), start=1)}
    rows = []
    for name, (says, _, sources) in numbers.values.items():
        read = ", ".join(dict.fromkeys(code(f"{source.file}:{source.key}") for source in sources))
        runs = sorted({places[source.run] for source in sources})
        rows.append([escape(says), rf"\result{{{name}}}", read, escape(format_ranges(runs))])
    return longtable(["number", "value", "read from", "runs"], rows, _SOURCE_COLUMNS)


def _finished(findings: Findings) -> list[RunRecord]:
    return [run for run in findings.runs if run.value is not None]


_RAGGED = r">{\raggedright\arraybackslash}"
_SOURCE_COLUMNS = rf"{_RAGGED}p{{0.3\textwidth}}l{_RAGGED}p{{0.28\textwidth}}{_RAGGED}p{{0.13\textwidth}}"


# ---------------------------------------------------------------- what is generated


def _tables(findings: Findings, numbers: Numbers) -> dict[str, str]:
    return {
        "verdicts": _verdicts(findings, numbers),
        "setup": _setup(findings, numbers),
        "results": _results(findings, numbers),
        "rule": _rule(findings),
        "limitations": _limitations(findings),
        "seeds": _seeds(findings, numbers),
        "architecture": _config(findings),
        "arms": _arms(findings),
        "reproducibility": _reproducibility(findings),
    }


def _verdicts(findings: Findings, numbers: Numbers) -> str:
    """A sentence an arm, for the abstract."""
    label = findings.experiment.statement.metric.label
    lines = []
    for found in findings.evidence.arms:
        name = escape(found.arm.name)
        if found.refusal is not None:
            lines.append(f"On {name} there is no verdict: {escape(found.refusal)}.")
        elif not found.pairs:
            lines.append(f"On {name} nothing is known yet.")
        else:
            put = _comparison_macros(findings, found, numbers)
            text = (
                f"Against the baseline, {name} comes out as {escape(found.verdict)} after {put['seeds']} pairs of runs"
            )
            text += f": a difference in {escape(label)} of {put['difference']}"
            text += f" (anytime-valid interval {put['interval']})" if "interval" in put else ""
            lines.append(text + (f", or {put['percent']}." if "percent" in put else "."))
    return "\n".join(lines) + "\n"


def _comparison_macros(findings: Findings, found: ArmEvidence, numbers: Numbers) -> dict[str, str]:
    """The macros of an arm's comparison."""
    name, effect = found.arm.name, found.effect
    assert effect is not None
    pairs = [run.folder for pair in found.pairs for run in pair]
    sources = _measured(findings, pairs)
    low, high = found.decision.interval
    said = {
        "seeds": ("number of pairs", str(len(found.pairs))),
        "difference": ("mean difference", f"{effect.raw:+.4g}"),
    }
    if math.isfinite(low) and math.isfinite(high):
        said["interval"] = ("interval of the difference", f"[{low:+.4g}, {high:+.4g}]")
    if effect.percent is not None:
        said["percent"] = ("difference in percent", f"{effect.percent:+.2f}%")
    if effect.noise_units is not None:
        said["noise"] = ("difference in units of seed noise", f"{effect.noise_units:+.1f}")
    if found.decision.sd is not None:
        said["sd"] = ("standard deviation of the differences", f"{found.decision.sd:.3g}")
    said["p"] = ("anytime p-value", f"{found.decision.p:.2g}")
    return {key: numbers.put(f"{name}.{key}", f"{name} {says}", value, sources) for key, (says, value) in said.items()}


def _setup(findings: Findings, numbers: Numbers) -> str:
    """What each arm is and takes, from the facts of its runs."""
    rows = []
    for arm in findings.experiment.all_arms:
        runs = [run for run in findings.finished_runs(arm.name) if run.facts is not None]
        if not runs:
            continue
        facts = [run.facts for run in runs if run.facts is not None]
        cells = [escape(arm.name)]
        for what in QUANTITIES:
            value = mean_quantity(what, facts)
            text = format_seconds(value) if what == "time" else format_count(round(value))
            keys = {"flops": ("flops_per_token", "tokens"), "time": ("seconds",)}.get(what, (what,))
            sources = [Source(run.folder.name, "facts.json", key) for run in runs for key in keys]
            cells.append(numbers.put(f"{arm.name}.{what}", f"{arm.name} mean {what}", text, sources))
        memory = format_bytes(float(np.mean([fact.peak_memory_bytes for fact in facts])))
        sources = [Source(run.folder.name, "facts.json", "peak_memory_bytes") for run in runs]
        cells.append(numbers.put(f"{arm.name}.memory", f"{arm.name} mean peak memory", memory, sources))
        cells.append(str(len(runs)))
        rows.append(cells)
    header = ["arm", "parameters", "FLOPs", "tokens", "time", "memory", "runs"]
    return tabular(header, rows, "lrrrrrr")


def _results(findings: Findings, numbers: Numbers) -> str:
    rows = []
    for arm in [BASELINE, *(found.arm.name for found in findings.evidence.arms)]:
        runs = findings.finished_runs(arm)
        if not runs:
            continue
        values = [run.value for run in runs if run.value is not None]
        sources = _measured(findings, [run.folder for run in runs])
        label = findings.experiment.statement.metric.label
        mean = numbers.put(f"{arm}.mean", f"{arm} mean {label}", f"{np.mean(values):.4f}", sources)
        found = next((found for found in findings.evidence.arms if found.arm.name == arm and found.pairs), None)
        if found is None:
            rows.append([escape(arm), mean, *["--"] * 5])
            continue
        put = _comparison_macros(findings, found, numbers)
        cells = [put.get(key, "--") for key in ("difference", "interval", "noise", "p")]
        rows.append([escape(arm), mean, *cells, escape(found.verdict)])
    return tabular(["arm", "mean", "difference", "interval", "seed noise", "p", "verdict"], rows, "lrrrrrl")


def _rule(findings: Findings) -> str:
    """How it was decided, as it was stated."""
    statement = findings.experiment.statement
    decision = statement.decision
    match = ", ".join(f"{what} within {100 * share:g}%" for what, share in statement.match.items()) or "nothing"
    text = (
        f"The metric is the {statement.metric.label}. A difference below {decision.smallest_effect:g} was declared too "
        f"small to matter, the error rate over all arms is {decision.alpha:g}, no verdict was to be given before "
        f"{decision.minimum_seeds} pairs, and at most {statement.max_seeds} pairs were to be trained. To be equal, or "
        f"no verdict is given: {match}."
    )
    if statement.tune:
        keys = ", ".join(statement.tune)
        text += (
            f" Every arm was tuned over the same grid of {len(findings.experiment.grid)} points of {keys}, on "
            f"seeds that the comparison does not use ({', '.join(map(str, statement.tune_seeds))})."
        )
    return escape(text) + "\n"


def _limitations(findings: Findings) -> str:
    """What anyone can see from the runs; the author knows more. Its numbers are those of setup and results."""
    items = [
        rf"The verdict on {escape(found.arm.name)} rests on \result{{{found.arm.name}.seeds}} seeds."
        for found in findings.evidence.arms
        if found.pairs
    ]
    items.append(
        rf"The baseline has \result{{{BASELINE}.parameters}} parameters and sees \result{{{BASELINE}.tokens}} tokens. "
        "Nothing here says that a verdict holds at another size or length."
    )
    data = findings.evidence.ledger.baseline.config.data
    where = ", ".join(Path(path).name for path in (data.sources or {"": str(data.path)}).values())
    items.append(escape(f"All runs use one corpus ({where}); another may decide otherwise."))
    if not findings.experiment.statement.tune:
        items.append("Hyperparameters are the baseline's; an arm may want others.")
    for arm, choice in findings.evidence.ledger.choices.items():
        if choice.on_grid_edge:
            items.append(escape(f"{arm} is best at the edge of its grid ({', '.join(choice.on_grid_edge)})."))
    if any(found.provenance_differences for found in findings.evidence.arms):
        items.append("Some paired runs differ in code, libraries or hardware; see the report.")
    items.append("The intervals assume that differences are independent draws of one normal distribution.")
    body = "\n".join(rf"\item {item}" for item in items)
    return f"\\begin{{itemize}}\n{body}\n\\end{{itemize}}\n"


def _seeds(findings: Findings, numbers: Numbers) -> str:
    """Every run of the comparison, its metric, its folder."""
    label = findings.experiment.statement.metric.label
    rows = []
    for place, run in enumerate(_finished(findings), start=1):
        source = _measured(findings, [run.folder])
        says = f"{run.arm} seed {run.seed} {label}" + ("" if run.use == COMPARISON else f" ({run.use})")
        value = numbers.put(f"run.{run.folder.name}", says, f"{run.value:.5f}", source)
        rows.append([str(place), escape(run.arm), str(run.seed), escape(run.use), value, code(run.folder.name)])
    header = ["", "arm", "seed", "for", "metric", "run"]
    return longtable(header, rows, rf"rlrlr{_RAGGED}p{{0.4\textwidth}}")


def _config(findings: Findings) -> str:
    """Architecture and every other hyperparameter of the baseline."""
    rows = [[code(key), code(value)] for key, value in _flat(findings.evidence.ledger.baseline.config.plain())]
    return longtable(["key", "value"], rows, rf"l{_RAGGED}p{{0.5\textwidth}}")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _plain(value)


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return Path(value).name if Path(value).is_absolute() else value
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)


def _arms(findings: Findings) -> str:
    """In what each arm differs from the baseline, tuned values included."""
    rows = []
    for found in findings.evidence.arms:
        if found.arm.repeats_baseline:
            rows.append([escape(found.arm.name), "other initial weights", "", ""])
        for key, there, here in found.arm.diff:
            rows.append([escape(found.arm.name), code(key), code(_short(there)), code(_short(here))])
    for name, choice in findings.evidence.ledger.choices.items():
        rows += [[escape(name), code(key), "tuned", code(str(value))] for key, value in choice.point.items()]
    columns = rf"l{_RAGGED}p{{0.25\textwidth}}{_RAGGED}p{{0.25\textwidth}}{_RAGGED}p{{0.25\textwidth}}"
    return longtable(["arm", "key", "baseline", "arm's"], rows, columns)


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = ", ".join(f"{key}: {_short(item)}" for key, item in value.items() if key != "use")
        return f"{value.get('use', '')}({inner})"
    return _plain(value)


def _reproducibility(findings: Findings) -> str:
    """Code, versions, hardware, and the commands that do it again."""
    facts = [run.facts for run in findings.runs if run.facts is not None]
    versions = sorted({", ".join(f"{key} {value}" for key, value in f.versions.items()) for f in facts})
    lines = [
        ("Code fingerprint", ", ".join(sorted({fact.code for fact in facts}))),
        ("Commit", ", ".join(sorted(_commits(findings.runs))) or "not recorded"),
        ("Versions", "; ".join(versions)),
        ("Hardware", ", ".join(sorted({f"{fact.hardware} x {fact.world_size}" for fact in facts}))),
        ("Precision", ", ".join(sorted({fact.dtype for fact in facts}))),
        ("Statement", f"experiment.yaml, SHA-256 {findings.statement_hash}"),
    ]
    items = "\n".join(rf"\item[{escape(name)}] {code(value)}" for name, value in lines)
    folder = code(f"experiments/{findings.experiment.name}")
    commands = "\n\n".join(rf"\noindent\texttt{{gptlab {command}}} {folder}" for command in ("run", "report", "paper"))
    return f"\\begin{{description}}\n{items}\n\\end{{description}}\nThese commands do it again:\n\n{commands}\n"


def _commits(runs: Sequence[RunRecord]) -> set[str]:
    return {run.commit[:12] for run in runs if run.commit}


# ---------------------------------------------------------------- what is written once


def _skeleton(experiment: Experiment) -> str:
    text = (_TEMPLATES / "paper.tex").read_text(encoding="utf-8")
    return text.replace("NAME", escape(experiment.name)).replace("HYPOTHESIS", escape(experiment.statement.hypothesis))
