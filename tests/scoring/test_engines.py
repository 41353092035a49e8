"""What turns windows into scores: how an engine is opened, chosen, and kept from torch."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from copy import copy, deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import Capture, refused
from dcmpl.errors import RunError, UsageError
from dcmpl.files import sealed
from dcmpl.model.dcmpl import DCMPL
from dcmpl.model.folded import Folded
from dcmpl.model.tokenizer import Ids, Parts
from dcmpl.scoring import engines
from dcmpl.scoring.batching import lanes
from dcmpl.scoring.engines import (
    BATCH,
    Engine,
    Question,
    batch_of,
    open_export,
    read_export,
    score_images,
)
from dcmpl.scoring.scorer import Scorer, ScoringOptions
from dcmpl.scoring.torch_engine import TorchEngine
from exported import VARIANTS, Made

pytest_plugins = ("exported",)

Build = Callable[..., DCMPL]
TOLERANCE = 1e-5
"""What exports, batches and threads may change of a score."""


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


class Recorder:
    """An engine that notes the windows of every call; its score is their first byte."""

    precision, tasks, size, batch = "fp32", ("quality",), 32, 16
    reads: str | None = None

    def __init__(self, name: str = "recorder") -> None:
        self.name, self.calls = name, list[list[int]]()

    def parts(self, text: str, long: str) -> Parts:
        return Parts(((),))

    def __call__(self, windows: np.ndarray, texts: Sequence[Sequence[Ids]] = ()) -> np.ndarray:
        self.calls.append(windows[:, 0, 0, 0].tolist())
        return windows[:, 0, 0, :1] / 255.0

    def lanes(self, count: int) -> Any:
        return lanes(count)


def test_large_windows_are_scored_alone_to_the_last_digit() -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (512, 512, 3), np.uint8) for _ in range(3)]
    scorer = Scorer.from_pretrained(device="cpu")
    assert (batch_of(512), batch_of(224), scorer.batch_size) == (1, BATCH, 1)
    together = scorer.score(images, "a fox")
    alone = [scorer.score([image], "a fox")[0] for image in images]
    assert [(s.quality, s.alignment) for s in together] == [(s.quality, s.alignment) for s in alone]


def test_windows_of_several_images_share_a_call() -> None:
    images = [np.full((64, 40, 3), value, np.uint8) for value in range(4)]
    engine = Recorder()
    assert isinstance(engine, Engine)
    asked = ((str(i), Question(image)) for i, image in enumerate(images))
    found = dict(score_images(engine, asked, "grid-2", batch_size=3))
    assert {key: float(a.scores[0]) * 255 for key, a in found.items() if a is not None} == {
        str(value): value for value in range(4)
    }
    assert max(map(len, engine.calls)) == 3
    assert any(len(set(call)) > 1 for call in engine.calls)


def test_threads_of_torch_are_one_only_while_it_scores(build: Build) -> None:
    engine = TorchEngine(build("dcmpl"), ("quality",))
    torch.set_num_threads(2)
    try:
        with engine.lanes(2) as pool:
            assert {pool.submit(torch.get_num_threads).result() for _ in range(8)} == {1}
            assert torch.get_num_threads() == 2
        Scorer(engine, "center", ScoringOptions(workers=2)).score([np.zeros((40, 40, 3), np.uint8)])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


# Of exports


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
@pytest.mark.parametrize("views", [None, "windows", "grid-2", "resize"])
def test_export_scores_images_as_its_run(
    made: Made, trained_run: Path, image_data: Path, engine: str, views: str | None
) -> None:
    paths = sorted(image_data.parent.glob("*.png"))[:7]
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


COPIES: dict[str, Callable[[Scorer], Scorer]] = {
    "pickled": lambda scorer: pickle.loads(pickle.dumps(scorer)),
    "copied": copy,
    "copied deeply": deepcopy,
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("engine", ["torch", "onnx", "openvino"])
def test_copy_of_a_scorer_gives_the_same_rows(
    made: Made, trained_run: Path, image_data: Path, engine: str, how: str
) -> None:
    """Workers of data loaders, maps over data sets and metrics all send scorers around."""
    folder = trained_run if engine == "torch" else made.folder
    scorer = Scorer.from_pretrained(folder, engine=engine, workers=2, views="grid-2")
    paths = sorted(image_data.parent.glob("*.png"))[:5]
    copied = COPIES[how](scorer)
    assert (copied.views, copied.targets, copied.about) == (
        scorer.views,
        scorer.targets,
        scorer.about,
    )
    assert list(copied.score(paths, "a fox")) == list(scorer.score(paths, "a fox"))


def test_copy_of_an_export_that_was_changed_since_is_refused(made: Made, tmp_path: Path) -> None:
    folder = shutil.copytree(made.folder, tmp_path / "export")
    kept = pickle.dumps(Scorer.from_pretrained(folder, engine="onnx"))
    with (folder / "model.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(RunError, match="the file was changed, export again"):
        pickle.loads(kept)


ALONE = """
import json, sys
from dcmpl.cli.main import main
from dcmpl.scoring.scorer import Scorer
folder, image, out = sys.argv[1:]
found = [
    Scorer.from_pretrained(folder, engine=engine, precision=precision).score([image])[0].quality
    for engine, precision in (("onnx", "fp32"), ("openvino", "fp32"), ("auto", "int8"))
]
code = main(["score", image, "--model", folder, "-o", out])
print(json.dumps([code, "torch" in sys.modules, "pandas" in sys.modules, found]))
"""


def test_export_scores_without_torch(
    made: Made, trained_run: Path, image_data: Path, tmp_path: Path
) -> None:
    image, out = image_data.parent / "00.png", tmp_path / "scores.jsonl"
    words = [sys.executable, "-c", ALONE, str(made.folder), str(image), str(out)]
    told = subprocess.run(words, check=True, capture_output=True, text=True, env=os.environ)
    code, has_torch, has_pandas, found = json.loads(told.stdout.splitlines()[-1])
    assert (code, has_torch, has_pandas) == (0, False, False)
    expected = Scorer.from_pretrained(trained_run, device="cpu").score([image])[0].quality
    assert found[:2] == pytest.approx([expected] * 2, abs=TOLERANCE)
    assert found[2] == pytest.approx(expected, abs=5e-3)
    assert json.loads(out.read_text())["quality"] == pytest.approx(expected, abs=TOLERANCE)


def test_large_windows_are_taken_one_by_one_and_score_the_same(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = read_export(made.folder)
    size = exported.record["size"]
    noise = np.random.default_rng(0).integers(0, 256, (5, size, size, 3), dtype=np.uint8)
    wanted = open_export(exported, "openvino", "fp32", 2)(noise)
    monkeypatch.setattr(engines, "LARGE", size)
    found = open_export(exported, "openvino", "fp32", 2)(noise)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
    assert len(np.unique(found[:, 0])) == 5


def test_engine_is_the_first_at_hand_unless_one_is_named(made: Made) -> None:
    exported = read_export(made.folder)
    assert open_export(exported, "auto", "fp32", 1).name == "openvino"
    assert open_export(exported, "onnx", "fp32", 1).name == "onnx"
    assert open_export(exported, "auto", "bf16", 1).name == "openvino"


OPENED_AND_DROPPED = """
import gc, signal, subprocess, sys
from pathlib import Path
from dcmpl.scoring.engines import open_export, read_export

exported = read_export(Path(sys.argv[1]))
engines = [open_export(exported, "openvino", "fp32", 1) for _ in range(2)]
while engines:
    engines.pop(0)
    gc.collect()
signal.signal(signal.SIGCHLD, lambda *_: print("a child has ended"))
subprocess.run([sys.executable, "-c", ""])
"""


@pytest.mark.skipif(os.name == "nt", reason="there are no such signals")
def test_signals_reach_a_process_that_has_dropped_its_engines(made: Made) -> None:
    """OpenVINO's cores swap the stack that signals are handled on; one that is gone kills."""
    words = [sys.executable, "-c", OPENED_AND_DROPPED, str(made.folder)]
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "a child has ended\n")


FORKED = """
import os, signal, sys
import numpy as np
from dcmpl import Scorer

image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
for engine, folder in zip(("torch", "onnx", "openvino"), sys.argv[1:]):
    scorer = Scorer.from_pretrained(folder, engine=engine)
    wanted = scorer.score([image])[0].quality
    if not (child := os.fork()):
        signal.alarm(60)  # of a thread that is not there
        os._exit(scorer.score([image])[0].quality != wanted)
    print(engine, os.waitpid(child, 0)[1], scorer.score([image])[0].quality == wanted)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
def test_model_that_was_open_before_a_fork_scores_after_it(made: Made, trained_run: Path) -> None:
    words = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        FORKED,
        str(trained_run),
        *[str(made.folder)] * 2,
    ]
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    assert found.stdout.split("\n")[:3] == ["torch 0 True", "onnx 0 True", "openvino 0 True"]


# What cannot be opened


def test_onnx_of_a_run_folder_names_the_command_that_makes_it(
    capsys: Capture, trained_run: Path, image_data: Path, tmp_path: Path
) -> None:
    image, out = image_data.parent / "00.png", tmp_path / "x.csv"
    words = ["score", image, "--model", trained_run, "--engine", "onnx", "-o", out]
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
