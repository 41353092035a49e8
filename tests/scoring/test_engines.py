"""What turns windows into scores: how an engine is opened, chosen, and kept from torch."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import Capture, refused
from dcmpl.config import MpaConfig
from dcmpl.errors import RunError, UsageError
from dcmpl.files import sealed
from dcmpl.images.windows import windows
from dcmpl.model.dcmpl import DCMPL
from dcmpl.model.folded import Folded
from dcmpl.model.tokenizer import Ids, Parts
from dcmpl.scoring.batching import lanes
from dcmpl.scoring.engines import Engine, Exported, Question, open_export, read_export, scores_of
from dcmpl.scoring.job import engines
from dcmpl.scoring.scorer import Scorer
from dcmpl.scoring.torch_engine import TorchEngine
from exported import VARIANTS, Made

pytest_plugins = ("exported",)

Build = Callable[..., DCMPL]
TOLERANCE = 1e-5
"""What exports, batches and threads may change of a score."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the choice of the engine is remembered, for every test anew."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dcmpl" / "engines.json"


# By torch


@pytest.mark.parametrize("preset", ["dcmpl", "vpt-shallow", "clip-iqa"])
def test_bfloat16_is_near_and_leaves_the_other_as_it_was(
    build: Build, many_windows: np.ndarray, preset: str
) -> None:
    model, shown = build(preset), torch.from_numpy(many_windows[:5])
    folded = Folded(model, model.config.tasks)
    before, scores = deepcopy(folded.state_dict()), folded(shown)
    lower = folded.in_bfloat16()
    found = lower(shown)
    assert found.dtype == torch.float32
    assert not torch.equal(found, scores)
    torch.testing.assert_close(found, scores, rtol=0, atol=0.02)
    after = folded.state_dict()
    assert {name: t.dtype for name, t in after.items()} == {n: t.dtype for n, t in before.items()}
    assert all(torch.equal(before[name], after[name]) for name in after)
    assert torch.equal(folded(shown), scores)
    lowered = {name for name, t in lower.state_dict().items() if t.dtype == torch.bfloat16}
    matrices = {name for name in after if name.startswith("blocks.") and "ln_" not in name}
    joining = {name for name in matrices if "prompt" in name}  # those that are tokens stay
    assert matrices - joining <= lowered <= matrices


def test_torch_has_no_int8(build: Build) -> None:
    with pytest.raises(UsageError, match="expected --precision fp32 or bf16 with the engine torch"):
        TorchEngine(build("dcmpl"), ("quality",), "int8")


@pytest.fixture(scope="module")
def of_outputs(build: Build) -> DCMPL:
    return build("dcmpl", mpa=MpaConfig(source="encoder_outputs"))


def test_prompts_that_depend_on_pictures_cannot_be_folded(of_outputs: DCMPL) -> None:
    with pytest.raises(UsageError) as caught:
        Folded(of_outputs, ("quality",))
    assert str(caught.value) == (
        "expected prompts that no picture changes, got a model with "
        "mpa.source=encoder_outputs: it can only be run as it is"
    )


def test_prompts_that_depend_on_pictures_are_not_run_in_bfloat16(of_outputs: DCMPL) -> None:
    with pytest.raises(UsageError, match="expected --precision fp32 for prompts that depend on"):
        TorchEngine(of_outputs, ("quality",), "bf16")


@pytest.mark.parametrize("workers", [1, 3])
def test_prompts_that_depend_on_pictures_see_no_neighbour(
    of_outputs: DCMPL, many_windows: np.ndarray, workers: int
) -> None:
    engine = TorchEngine(of_outputs, ("alignment", "quality"))
    pictures = [np.concatenate(many_windows[i : i + 2]) for i in range(6)]
    scorer = Scorer(engine, "windows", workers=workers)
    together = [(row.quality, row.alignment) for row in scorer.score(pictures)]
    with torch.no_grad():
        for picture, found in zip(pictures, together, strict=True):
            cut = np.stack(list(windows(picture, 32, "windows")))
            pixels = torch.from_numpy(cut).permute(0, 3, 1, 2) / 255
            scores = of_outputs(pixels)
            expected = scores["quality"].mean().item(), scores["alignment"].mean().item()
            assert found == pytest.approx(expected, abs=TOLERANCE)
    mixed = engine(np.concatenate([pictures[0][:32][None], pictures[5][:32][None]]))
    assert abs(mixed[0] - engine(pictures[0][:32][None])[0]).max() > TOLERANCE  # they would show


class Recorder:
    """An engine that notes the windows of every call; its score is their first byte."""

    precision, tasks, size = "fp32", ("quality",), 32
    reads: str | None = None

    def __init__(self, apart: bool = False, name: str = "recorder") -> None:
        self.name, self.apart, self.calls = name, apart, list[list[int]]()

    def parts(self, text: str, long: str) -> Parts:
        return Parts(((),))

    def __call__(self, windows: np.ndarray, texts: Sequence[Sequence[Ids]] = ()) -> np.ndarray:
        self.calls.append(windows[:, 0, 0, 0].tolist())
        return windows[:, 0, 0, :1] / 255.0

    def lanes(self, count: int) -> Any:
        return lanes(count)


def test_windows_share_a_call_unless_the_engine_wants_pictures_apart() -> None:
    pictures = [np.full((64, 40, 3), value, np.uint8) for value in range(4)]
    shared, apart = Recorder(False), Recorder(True)
    for engine in (shared, apart):
        assert isinstance(engine, Engine)
        found = list(scores_of(engine, map(Question, pictures), "grid-2", batch_size=3))
        assert [float(answer.scores[0]) * 255 for answer in found if answer is not None] == [
            0,
            1,
            2,
            3,
        ]
    assert max(map(len, shared.calls)) == 3
    assert any(len(set(call)) > 1 for call in shared.calls)
    assert all(len(set(call)) == 1 for call in apart.calls)


def test_threads_of_torch_are_one_only_while_it_scores(build: Build) -> None:
    engine = TorchEngine(build("dcmpl"), ("quality",))
    torch.set_num_threads(2)
    try:
        with engine.lanes(2) as pool:
            assert {pool.submit(torch.get_num_threads).result() for _ in range(8)} == {1}
            assert torch.get_num_threads() == 2
        Scorer(engine, "center", workers=2).score([np.zeros((40, 40, 3), np.uint8)])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


# Of exports


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
@pytest.mark.parametrize("views", [None, "windows", "grid-2", "resize"])
def test_export_scores_pictures_as_its_run(
    made: Made, trained_run: Path, picture_data: Path, engine: str, views: str | None
) -> None:
    paths = sorted(picture_data.parent.glob("*.png"))[:7]
    run = Scorer.from_pretrained(trained_run, device="cpu", views=views)
    export = Scorer.from_pretrained(made.folder, engine=engine, views=views, workers=2)
    assert (export.views, export.targets) == (run.views, run.targets)
    expected, found = run.score(paths, "a fox"), export.score(paths, "a fox")
    for target in run.targets:
        wanted = [row[target] for row in expected]
        assert np.ptp(wanted) > 1e-3
        assert [row[target] for row in found] == pytest.approx(wanted, abs=TOLERANCE)
    assert [(r.image, r.prompt, r.index) for r in found] == [
        (r.image, r.prompt, r.index) for r in expected
    ]


ALONE = """
import json, sys
from dcmpl.cli import main
from dcmpl.scoring.scorer import Scorer
from dcmpl.scoring.results import Ids, Parts
folder, picture, out = sys.argv[1:]
found = [
    Scorer.from_pretrained(folder, engine=engine, precision=precision).score([picture])[0].quality
    for engine, precision in (("onnx", "fp32"), ("openvino", "fp32"), ("auto", "int8"))
]
code = main(["score", picture, "--model", folder, "-o", out])
print(json.dumps([code, "torch" in sys.modules, "pandas" in sys.modules, found]))
"""


def test_export_scores_without_torch(
    made: Made, trained_run: Path, picture_data: Path, tmp_path: Path
) -> None:
    picture, out = picture_data.parent / "00.png", tmp_path / "scores.jsonl"
    words = [sys.executable, "-c", ALONE, str(made.folder), str(picture), str(out)]
    told = subprocess.run(words, check=True, capture_output=True, text=True, env=os.environ)
    code, has_torch, has_pandas, found = json.loads(told.stdout.splitlines()[-1])
    assert (code, has_torch, has_pandas) == (0, False, False)
    expected = Scorer.from_pretrained(trained_run, device="cpu").score([picture])[0].quality
    assert found[:2] == pytest.approx([expected] * 2, abs=TOLERANCE)
    assert found[2] == pytest.approx(expected, abs=5e-3)
    assert json.loads(out.read_text())["quality"] == pytest.approx(expected, abs=TOLERANCE)


@pytest.fixture
def openvino_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opens nothing and measures nothing."""

    def open_variant(exported: Exported, variant: dict[str, Any], lanes: int) -> Engine:
        return Recorder(name=variant["engine"])

    monkeypatch.setattr(engines, "open_variant", open_variant)
    monkeypatch.setattr(engines, "_seconds", lambda engine: float(engine.name == "onnx"))


def test_fastest_engine_is_measured_once_and_remembered(made: Made, cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text('{"another model": "onnx"}')
    chosen = open_export(read_export(made.folder), "auto", "fp32", 1).name
    known = json.loads(cache.read_text())
    assert known.pop("another model") == "onnx"
    ((key, name),) = known.items()
    assert name == chosen in ("onnx", "openvino")
    other = {"onnx": "openvino", "openvino": "onnx"}[chosen]
    cache.write_text(json.dumps({key: other}))  # whatever stands there was measured
    assert open_export(read_export(made.folder), "auto", "fp32", 1).name == other
    assert json.loads(cache.read_text()) == {key: other}


@pytest.mark.usefixtures("openvino_is_faster")
@pytest.mark.parametrize(
    "damage", [b"", b"{", b"\xff\xfe", b"[1]", b"null", b"[" * 100_000, b'{"KEY": "tensorrt"}']
)
def test_damaged_memory_of_the_fastest_engine_is_no_error(
    made: Made, cache: Path, damage: bytes
) -> None:
    exported = read_export(made.folder)
    open_export(exported, "auto", "fp32", 1)
    (key,) = json.loads(cache.read_text())
    cache.write_bytes(damage.replace(b"KEY", json.dumps(key)[1:-1].encode()))
    assert open_export(exported, "auto", "fp32", 1).name == "openvino"
    assert json.loads(cache.read_text()) == {key: "openvino"}


@pytest.mark.usefixtures("openvino_is_faster")
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_memory_that_cannot_be_written_is_no_error(made: Made, cache: Path, kind: str) -> None:
    if kind == "folder":
        cache.mkdir(parents=True)
    else:
        cache.parent.parent.write_text("a file where the folder would be")
    assert open_export(read_export(made.folder), "auto", "fp32", 1).name == "openvino"


def test_engine_that_is_named_is_not_measured(made: Made, cache: Path) -> None:
    assert open_export(read_export(made.folder), "onnx", "fp32", 1).name == "onnx"
    assert open_export(read_export(made.folder), "auto", "bf16", 1).name == "openvino"
    assert not cache.exists()


# What cannot be opened


def test_onnx_of_a_run_folder_names_the_command_that_makes_it(
    capsys: Capture, trained_run: Path, picture_data: Path, tmp_path: Path
) -> None:
    picture, out = picture_data.parent / "00.png", tmp_path / "x.csv"
    words = ["score", picture, "--model", trained_run, "--engine", "onnx", "-o", out]
    assert refused(capsys, 2, *words) == (
        f"expected an exported model for the engine onnx, got the run {trained_run}: "
        f"dcmpl export {trained_run} -o DIR, then --model DIR"
    )


@pytest.mark.parametrize(
    ("engine", "precision"), [("torch", "fp32"), ("onnx", "bf16"), ("torch", "int8")]
)
def test_engine_the_export_has_not_is_told_beside_those_it_has(
    made: Made, engine: str, precision: str
) -> None:
    with pytest.raises(UsageError) as caught:
        Scorer.from_pretrained(made.folder, engine=engine, precision=precision)
    known = ", ".join(f"{engine} {precision}" for engine, precision, _ in VARIANTS)
    told = f"expected one of {known} from {made.folder}, got {engine} {precision}"
    assert str(caught.value) == told


def test_package_that_is_not_installed_is_told(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = {"onnxruntime"}
    found = engines.find_spec
    monkeypatch.setattr(engines, "find_spec", lambda n: None if n in missing else found(n))
    with pytest.raises(UsageError, match=r"not installed: pip install 'dcmpl-agiqa\[onnx\]'"):
        Scorer.from_pretrained(made.folder, engine="onnx")
    assert Scorer.from_pretrained(made.folder).engine.name == "openvino"
    missing.add("openvino")
    with pytest.raises(
        UsageError, match=r"not installed: pip install 'dcmpl-agiqa\[onnx,openvino\]'"
    ):
        Scorer.from_pretrained(made.folder)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"3", b"null", b"\xff", b"[" * 100_000, b"{}", sealed({})]
)
def test_record_that_is_none_is_a_run_error(made: Made, tmp_path: Path, content: bytes) -> None:
    folder = made.copied(tmp_path / "copy")
    (folder / "export.json").write_bytes(content)
    with pytest.raises(RunError, match=r"^expected .*export\.json"):
        read_export(folder)


@pytest.mark.parametrize("field", ["tasks", "size", "views", "variants", "files", "about"])
def test_record_without_a_field_or_with_another_kind_of_it_is_a_run_error(
    made: Made, tmp_path: Path, field: str
) -> None:
    folder = made.copied(tmp_path / "copy")
    record = json.loads((folder / "export.json").read_text())
    del record["digest"]
    for changed in ({k: v for k, v in record.items() if k != field}, {**record, field: None}):
        (folder / "export.json").write_bytes(sealed(changed))
        with pytest.raises(RunError, match="expected what dcmpl export wrote at "):
            read_export(folder)
