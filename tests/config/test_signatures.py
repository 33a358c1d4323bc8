"""Components: found and checked from their source text, without running anybody's code until they are built."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gptlab.config import SLOTS, component_names, config_from, load_config
from gptlab.config.signatures import locate, signature
from gptlab.errors import ConfigError

GOOD = """
from __future__ import annotations

from typing import Annotated, Literal

import torch_that_nobody_has

raise RuntimeError("a config must never run me")


class Mine:
    def __init__(self, dim, layer_index: int, *, width: int = 8, rate: float | None = None, on: bool = False,
                 mode: Literal["a", "b"] = "a", sizes: tuple[int, ...] = (1, 2), names: dict[str, float] | None = None,
                 norm: Annotated[Slot | None, "norm"] = None, inner: Annotated[Slot, "mlp"] = "GELU", needed: str):
        ...
"""


def use(tmp_path: Path, source: str, name: str = "Mine", kind: str = "mlp", **arguments: object) -> object:
    (tmp_path / "idea.py").write_text(source)
    from gptlab.config.load import _validate

    values: dict[str, object] = {"use": f"{tmp_path / 'idea.py'}:{name}", **arguments}
    section = {"model": {"block": {"mlp": values}}} if kind == "mlp" else {kind: values}
    return _validate(section, {})


def refused(tmp_path: Path, source: str, name: str = "Mine", kind: str = "mlp", **arguments: object) -> str:
    with pytest.raises(ConfigError) as caught:
        use(tmp_path, source, name, kind, **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- nothing is run


LOOK = """
import sys
from gptlab.config import load_config
config = load_config(sys.argv[1])
print(config.model.block.mlp.plain())
print(config.model.block.attention.use)
loaded = [m for m in sys.modules if m.split(".")[0] in {"torch", "mypackage", "numpy"} or m.startswith("gptlab_idea")]
loaded += [m for m in sys.modules if m.startswith("gptlab.model")]
print(loaded)
"""


def test_loading_a_config_runs_neither_torch_nor_a_user_s_code(tmp_path: Path) -> None:
    (tmp_path / "idea.py").write_text(GOOD)
    package = tmp_path / "path" / "mypackage"
    package.mkdir(parents=True)
    for file in ("__init__.py", "attentions.py"):
        (package / file).write_text("raise RuntimeError('imported')\n\n\nclass Theirs:\n    pass\n")
    (tmp_path / "c.yaml").write_text(
        "model: {block: {mlp: {use: './idea.py:Mine', needed: x}, attention: 'mypackage.attentions:Theirs'}}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", LOOK, str(tmp_path / "c.yaml")],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(tmp_path / "path"), "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    values, attention, loaded = done.stdout.splitlines()
    assert "'width': 8" in values
    assert attention == "mypackage.attentions:Theirs"
    assert loaded == "[]"


def test_a_file_is_relative_to_the_yaml_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ideas").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "ideas/idea.py").write_text("class Mine:\n    def __init__(self, dim, *, width: int = 3): ...\n")
    (tmp_path / "ideas/base.yaml").write_text("model: {block: {mlp: './idea.py:Mine'}}\n")
    (tmp_path / "elsewhere/top.yaml").write_text("base: ../ideas/base.yaml\nmodel: {block: {mlp: {width: 4}}}\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    expected = {"use": f"{(tmp_path / 'ideas/idea.py').resolve()}:Mine", "width": 4}
    assert load_config("top.yaml").model.block.mlp.plain() == expected
    # --set is relative to where the person stands
    config = load_config("top.yaml", ["model.block.mlp=../ideas/idea.py:Mine", "model.block.mlp.width=4"])
    assert config.model.block.mlp.plain() == expected
    with pytest.raises(ConfigError, match=r"no file .*elsewhere/idea\.py .*relative to the YAML"):
        load_config("top.yaml", ["model.block.mlp=./idea.py:Mine"])


# ---------------------------------------------------------------- signatures


def test_arguments_are_checked_by_their_annotations(tmp_path: Path) -> None:
    config = use(tmp_path, GOOD, needed="x", width="2K", rate=1, on="yes", mode="b", sizes=[3, 4, 5], norm="RMSNorm")
    mlp = config.model.block.mlp  # type: ignore[attr-defined]
    assert (mlp.width, mlp.rate, mlp.on, mlp.mode, list(mlp.sizes)) == (2000, 1.0, True, "b", [3, 4, 5])
    assert mlp.norm.eps == 1e-6
    assert mlp.inner.use == "GELU"
    assert signature("mlp", mlp.use).requires == ("dim", "layer_index")
    for wrong, complaint in (
        ({}, "'needed' is required"),
        ({"needed": 3}, "expected text (put it in quotes)"),
        ({"needed": "x", "width": 1.5}, "width: 1.5 does not fit: expected a whole number"),
        ({"needed": "x", "mode": "c"}, "expected 'a' or 'b'"),
        ({"needed": "x", "names": {"a": "b"}}, "names.a"),
        ({"needed": "x", "norm": "RMSNrm"}, "did you mean 'RMSNorm'?"),
        ({"needed": "x", "inner": {"use": "GELU", "hiden": 3}}, "inner.hiden: GELU has no argument 'hiden'; did you"),
        ({"needed": "x", "dim": 3}, "Mine has no argument 'dim'"),
    ):
        error = refused(tmp_path, GOOD, **wrong)  # type: ignore[arg-type]
        assert complaint in error, wrong
        assert "model.block.mlp" in error


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("class Mine:\n    def __init__(self, dim, *, f: Callable = None): ...\n", ":2: Mine: annotation `Callable`"),
        ("class Mine:\n    def __init__(self, *, f: np.ndarray | None = None): ...\n", "annotation `np.ndarray`"),
        (
            "class Mine:\n\n    def __init__(self, dim, *, n: int = 2 * K): ...\n",
            ":3: Mine: the default `2 * K` is not",
        ),
        ("class Mine:\n    def __init__(self, dim, width): ...\n", "asks for 'width', which slot mlp is not given"),
        ("class Mine:\n    def __init__(self, dim, *sizes): ...\n", "*sizes cannot be given by name"),
        ("class Mine:\n    def __init__(self, dim, *, n: int = 'x'): ...\n", None),
        ("class Other: ...\n", "nothing called 'Mine' in"),
        ("class Mien: ...\n", "did you mean 'Mien'?"),
        ("class Mine(:\n", ":1: not valid Python"),
        ("x = 1\nclass Mine:\n  def\n", ":3: not valid Python"),
    ],
)
def test_components_that_cannot_be_read(tmp_path: Path, source: str, complaint: str | None) -> None:
    if complaint is None:  # a default is the author's business; only what YAML gives is checked
        use(tmp_path, source)
        return
    assert complaint in refused(tmp_path, source)


def test_an_inherited_constructor_is_found_across_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "library.py").write_text(
        "from grandparent import Root\n\n\nclass Parent(Root):\n    pass\n",
    )
    (tmp_path / "grandparent.py").write_text(
        "class Root:\n    def __init__(self, dim, *, width: int = 5): ...\n",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    source = "from library import Parent\n\n\nclass Local(Parent):\n    x = 1\n\n\nclass Mine(Local):\n    y = 2\n"
    config = use(tmp_path, source, width=6)
    assert config.model.block.mlp.width == 6  # type: ignore[attr-defined]
    assert "did you mean 'width'?" in refused(tmp_path, source, widht=6)
    # Of gptlab's own, by import
    source = "from gptlab.model.mlp import SwiGLU\n\n\nclass Mine(SwiGLU):\n    pass\n"
    assert use(tmp_path, source, ratio=2).model.block.mlp.multiple_of == 64  # type: ignore[attr-defined]


def test_a_constructor_imported_under_another_name(tmp_path: Path) -> None:
    source = "from gptlab.model.mlp import SwiGLU as Gated\n\n\nclass Mine(Gated):\n    pass\n"
    assert use(tmp_path, source, ratio=2).model.block.mlp.multiple_of == 64  # type: ignore[attr-defined]


def test_a_constructor_inherited_from_a_module_s_attribute(tmp_path: Path) -> None:
    source = (
        "import gptlab.model.mlp as mlps\nfrom gptlab.model import mlp\n\n\nclass Mine(mlp.SwiGLU):\n    pass\n\n\n"
    )
    source += "class Also(mlps.SwiGLU):\n    pass\n"
    for name in ("Mine", "Also"):
        config = use(tmp_path, source, name, ratio=2)
        assert config.model.block.mlp.multiple_of == 64  # type: ignore[attr-defined]


def test_an_edited_file_is_read_again(tmp_path: Path) -> None:
    import os

    source = "class Mine:\n    def __init__(self, dim, *, width: int = 1): ...\n"
    assert use(tmp_path, source).model.block.mlp.width == 1  # type: ignore[attr-defined]
    use(tmp_path, source.replace("1", "2"))
    os.utime(tmp_path / "idea.py", ns=(10**18, 10**18))
    assert config_from({"model": {"block": {"mlp": f"{tmp_path}/idea.py:Mine"}}}).model.block.mlp.width == 2


def test_torch_s_own_optimizers_are_components(tmp_path: Path) -> None:
    config = config_from({"optimizer": {"use": "torch.optim.sgd:SGD", "lr": 0.1, "momentum": 0.9}})
    assert (config.optimizer.lr, config.optimizer.momentum, config.optimizer.nesterov) == (0.1, 0.9, False)


@pytest.mark.parametrize("name", ["nope.mod:Y", "os.path:Y", "Y:", "..:Y", "gptlab..model:Y", "torch.:X"])
def test_import_paths_that_lead_nowhere(name: str) -> None:
    with pytest.raises(ConfigError, match="no module"):
        locate("mlp", name)


# ---------------------------------------------------------------- the components of a slot


def test_every_slot_has_a_menu_and_every_name_on_it_can_be_read() -> None:
    for kind in SLOTS:
        assert component_names(kind), kind
        for name in component_names(kind):
            assert set(signature(kind, name).requires) <= set(SLOTS[kind].provides)
    assert component_names("model") == ["GPT"]
    assert component_names("block") == ["Block", "ParallelBlock", "LatentAttentionBlock"]
    assert "Context" not in component_names("attention")  # a class of the home module that is no component
    with pytest.raises(ConfigError, match="did you mean 'mlp'"):
        component_names("mpl")
