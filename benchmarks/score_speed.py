"""What scoring costs, beside what it could cost: ratios, all measured in one run.

    python benchmarks/score_speed.py [--rounds 5] [--run RUN --images PATH] [--out FILE]

ViT-B/32 with random weights, ``dcmpl`` with 8 prompts in every block, quality alone, 512 x 512
JPEG, all cores; and the model of the package as a user has it, from the same files with a prompt,
run and exported (quality alone: an export reads no prompt). Every variant takes its turn in each
round; medians of images a second are compared. ``transformers`` runs its image tower eagerly in
float32 on ready tensors, with as many threads as there are cores. The reference's test loop is
transcribed plainly: 25 windows of an image are a batch, for which both image passes and both
texts of 77 tokens are computed anew.
With ``--run`` and ``--images`` a trained run is exported too, and int8 and bf16 are held to
fp32 on these images. Results are appended to a file of JSON lines with machine and versions.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from train_step import PlainBlock
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from dcmpl.config import TrainConfig
from dcmpl.data.sources import find_sources
from dcmpl.images.decode import read_image
from dcmpl.images.windows import windows
from dcmpl.metrics import srcc
from dcmpl.model.clip import VIT_B_32, Clip, ClipConfig, TowerConfig
from dcmpl.model.dcmpl import DCMPL
from dcmpl.presets import PRESETS
from dcmpl.runs import MODEL, Run, save_learned
from dcmpl.scoring.engines import Engine, all_scores, open_variant, read_export
from dcmpl.scoring.export import write_export
from dcmpl.scoring.scorer import Scorer, ScoringOptions
from dcmpl.scoring.torch_engine import TorchEngine, has_bfloat16, load_model
from dcmpl.weights import EMBEDDED, model_folder
from dcmpl.weights.backbones import load_backbone

CORES = len(os.sched_getaffinity(0))
BATCH, IMAGES, SIDE = 16, 64, 512
PACKAGE = "package's model, files"
SMALL = ClipConfig(
    vision=TowerConfig(64, 2, 1, 128, "quick_gelu"),
    text=TowerConfig(64, 2, 1, 128, "quick_gelu"),
    embed_dim=32,
    image_size=64,
    patch_size=16,
    vocab_size=VIT_B_32.vocab_size,  # that of the tokenizer that is written beside it, or more
    context_length=40,
)
"""For what has nothing to do with the size of the model: memory over many images."""


def draw(folder: Path, count: int, side: int = SIDE) -> list[Path]:
    """JPEG images of noise with the spectrum of natural ones."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows, columns = np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None]
    fall = 1 / np.maximum(1 / side, np.hypot(rows, columns))
    paths = []
    for index in range(count):
        planes = [np.fft.ifft2(np.fft.fft2(rng.normal(size=(side, side))) * fall).real] * 3
        planes = [p + 0.5 * np.roll(p, 40 * i, i % 2) for i, p in enumerate(planes)]
        pixels = np.stack([128 + 45 * (p - p.mean()) / p.std() for p in planes], axis=2)
        paths.append(folder / f"{index:05}.jpg")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=92)
    return paths


def make_run(folder: Path, config: ClipConfig, preset: str, seed: int = 0) -> Path:
    """A run folder on a backbone of random weights."""
    place = folder / f"backbone-{config.vision.width}"
    if not place.exists():
        place.mkdir(parents=True)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            clip = Clip(config)
            clip.logit_scale.data.fill_(float(np.log(100)))
        save_file(clip.state_dict(), place / "model.safetensors")
        (place / "config.json").write_text(json.dumps(as_hugging_face(config)))
        words = (EMBEDDED["small"] / "tokenizer.json").read_bytes()
        (place / "tokenizer.json").write_bytes(words)
    backbone = load_backbone(str(place))
    model = DCMPL(backbone.clip, backbone.tokenizer, PRESETS[preset].model, seed)
    run = Run(
        preset=preset,
        backbone=str(place),
        backbone_sha256=backbone.sha256,
        source=None,
        model=model.config,
        train=TrainConfig(views="resize"),
        split_sha256="",
        learned=model.config.tasks,
    )
    out = folder / f"{preset}-{config.vision.width}"
    save_learned(out / MODEL, model, run)
    run.finished_in(out).write(out)
    return out


def as_hugging_face(config: ClipConfig) -> dict[str, object]:
    """The configuration file of a backbone's folder."""

    def tower(of: TowerConfig) -> dict[str, object]:
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        sizes = (of.width, of.layers, of.heads, of.hidden)
        return {**dict(zip(names, sizes, strict=True)), "hidden_act": of.activation}

    return {
        "projection_dim": config.embed_dim,
        "vision_config": {
            **tower(config.vision),
            "image_size": config.image_size,
            "patch_size": config.patch_size,
        },
        "text_config": {
            **tower(config.text),
            "vocab_size": config.vocab_size,
            "max_position_embeddings": config.context_length,
        },
    }


class Reference(nn.Module):
    """CLIP-AGIQA's test loop, plainly: both tasks' passes for each batch of windows."""

    def __init__(self, model: DCMPL) -> None:
        super().__init__()
        visual, text = model.clip.visual, model.clip.text
        self.model = model
        self.visual = nn.ModuleList(map(plain, visual.transformer.resblocks))
        self.text = nn.ModuleList(map(plain, text.transformer.resblocks))
        self.register_buffer("mask", torch.full((77, 77), float("-inf")).triu(1))

    def encode_image(self, images: Tensor, prompts: list[Tensor]) -> Tensor:
        visual, n = self.model.clip.visual, len(prompts[0])
        x = visual.stem.conv1(images).flatten(2).mT
        cls = visual.class_embedding.expand(len(x), 1, -1)
        x = torch.cat([cls, x], dim=1) + visual.positional_embedding
        spread = [prompt.expand(len(x), -1, -1) for prompt in prompts]
        x = visual.ln_pre(torch.cat([x, spread[0]], dim=1)).transpose(0, 1)
        for index, block in enumerate(self.visual):
            if index:
                x = torch.cat([x[:-n], spread[index].transpose(0, 1)])
            x = block(x, None)
        return visual.ln_post(x[0]) @ visual.proj

    def encode_text(self, ids: Tensor, end: Tensor, prompts: list[Tensor]) -> Tensor:
        text, n = self.model.clip.text, len(prompts[0])
        ids = F.pad(ids, (0, 77 - ids.shape[1]))
        spread = [prompt.expand(len(ids), -1, -1) for prompt in prompts]
        x = text.token_embedding(ids)
        x = torch.cat([x[:, :1], spread[0], x[:, 1 + n :]], dim=1) + text.positional_embedding
        x = x.transpose(0, 1)
        for index, block in enumerate(self.text):
            if index:
                x = torch.cat([x[:1], spread[index].transpose(0, 1), x[1 + n :]])
            x = block(x, self.mask)
        return text.ln_final(x[end, torch.arange(len(ids))]) @ text.text_projection

    def forward(self, images: Tensor) -> Tensor:
        images = (images - self.model.mean) / self.model.std
        scores = []
        for task, prompts in zip(self.model.config.tasks, self.model.prompts(), strict=True):
            image = self.encode_image(images, prompts.visual)
            image = F.normalize(self.model.adapter_of(task)(image), dim=-1)
            ids, end = (getattr(self.model, f"{task}_{name}") for name in ("ids", "end"))
            words = F.normalize(self.encode_text(ids, end, prompts.text), dim=-1)
            logits = self.model.clip.logit_scale.exp() * image @ words.T
            scores.append(logits.softmax(-1)[:, 0])
        return torch.stack(scores, dim=1)


def plain(block: nn.Module) -> PlainBlock:
    """A block of ours as PyTorch's own modules."""
    made = PlainBlock(block.ln_1.normalized_shape[0], block.attn.heads)
    state = {
        name.replace("mlp.c_fc", "mlp.0").replace("mlp.c_proj", "mlp.2"): value
        for name, value in block.state_dict().items()
    }
    made.load_state_dict(state)
    return made.eval()


Round = Callable[[], np.ndarray]


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def on_ready(engine: Engine, images: list[np.ndarray], views: str = "center") -> Round:
    """The engine alone, on images that are in memory, on all cores."""
    return lambda: all_scores(engine, images, views)


def on_files(engine: Engine, paths: list[Path], views: str) -> Round:
    """The whole scorer, from JPEG files."""
    return scored_by(Scorer(engine, views, ScoringOptions(workers=CORES, batch_size=BATCH)), paths)


def scored_by(scorer: Scorer, paths: list[Path], prompt: str = "") -> Round:
    return lambda: np.array([[score.quality] for score in scorer.score(paths, prompt)])


def of_package(folder: Path, paths: list[Path], images: list[np.ndarray]) -> dict[str, Round]:
    """The model of the package, as it is and exported."""
    record, model = load_model(model_folder(None), device="cpu")
    write_export(TorchEngine(model, record.learned[:1]), record, folder, images)
    scorers = {"torch fp32": Scorer.from_pretrained(device="cpu")}
    for variant in read_export(folder).record["variants"]:
        kind = {name: variant[name] for name in ("engine", "precision")}
        scorers[" ".join(kind.values())] = Scorer.from_pretrained(folder, **kind)
    prompt = "a painting of an ocean with clouds and birds"
    return {f"{PACKAGE}, {name}": scored_by(s, paths, prompt) for name, s in scorers.items()}


def eager_transformers(ready: list[np.ndarray]) -> Round:
    config = CLIPVisionConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        patch_size=32, projection_dim=512,
    )  # fmt: skip
    config._attn_implementation = "eager"
    tower = CLIPVisionModelWithProjection(config).eval()
    pixels = torch.from_numpy(np.stack(ready)).permute(0, 3, 1, 2).float() / 255

    def run() -> np.ndarray:
        with torch.inference_mode(), threads(CORES):
            for part in pixels.split(2 * BATCH):
                tower(pixel_values=part)
        return np.zeros((len(ready), 1))

    return run


def plain_loop(model: DCMPL, images: list[np.ndarray]) -> Round:
    reference = Reference(model).eval()

    def run() -> np.ndarray:
        found = []
        with torch.inference_mode(), threads(CORES):
            for image in images:
                cut = np.stack(list(windows(image, 224, "windows")))
                tensor = torch.from_numpy(cut).permute(0, 3, 1, 2).float() / 255
                found.append(reference(tensor).mean(0).numpy())
        return np.stack(found)

    return run


def peak_memory(model: Path, folder: Path, links: Path, count: int) -> float:
    """MiB that ``dcmpl score`` of ``count`` images takes at most, in a process of its own."""
    links.mkdir()
    images = sorted(folder.iterdir())
    for index in range(count):
        os.link(images[index % len(images)], links / f"{index:06}.jpg")
    # Not ru_maxrss, which begins with what the parent held.
    script = (
        "import sys; from dcmpl.cli.main import main; code = main(sys.argv[1:]); "
        "print([line.split()[1] for line in open('/proc/self/status') if 'VmHWM' in line][0]); "
        "sys.exit(code)"
    )
    words = ["score", str(links), "--model", str(model), "-o", str(links) + ".csv"]
    words += ["--views", "center"]
    done = subprocess.run(  # noqa: S603  (this interpreter)
        [sys.executable, "-c", script, *words], check=True, capture_output=True, text=True
    )
    return int(done.stdout.split()[-1]) / 1024


def peaks() -> dict[str, float]:
    """GFLOP/s of this machine's matrix products, on all cores."""
    found, kinds = {}, {"fp32": torch.float32}
    if has_bfloat16(torch.device("cpu")):  # one product takes a minute without units for it
        kinds |= {"bf16": torch.bfloat16, "int8": torch.int8}
    for name, kind in kinds.items():
        product = torch._int_mm if kind == torch.int8 else torch.matmul
        a, b = (torch.randn(2048, 2048).to(kind) for _ in range(2))
        took = []
        for _ in range(8):
            start = time.perf_counter()
            product(a, b)
            took.append(time.perf_counter() - start)
        found[name] = 2 * 2048**3 / statistics.median(took[2:]) / 1e9
    return found


def gflop_of(engine: TorchEngine) -> float:
    """GFLOP that the products of one window take, two for a multiplication and its sum."""
    window = np.zeros((1, engine.size, engine.size, 3), np.uint8)
    with FlopCounterMode(display=False) as counter:
        engine(window, [engine.parts("a painting of an ocean", "truncate").ids])
    return counter.get_total_flops() / 1e9


def shares(
    speeds: dict[str, float], peak: dict[str, float], gflop: float, of_package: float
) -> dict[str, float]:
    """Shares of the machine's own peak that products reach, by what was timed on one window."""
    found = {}
    for name, speed in speeds.items():
        kind = next((kind for kind in peak if kind in name), None)
        if kind is None or "windows" in name:
            continue
        each = of_package if name.startswith(PACKAGE) else gflop
        found[name] = speed * each / peak[kind]
        print(f"{name:38} {found[name]:8.2f} of the peak of {kind}, {peak[kind]:.0f} GFLOP/s")
    return found


def held_to_fp32(run: Path, paths: list[str], folder: Path) -> dict[str, dict[str, float]]:
    """Drift and SRCC of every variant of a trained run, on images."""
    record, model = load_model(run, device="cpu")
    engine = TorchEngine(model, record.learned)
    images = [read_image(path) for path in paths]
    write_export(engine, record, folder, images[:: max(1, len(images) // 64)])
    exported = read_export(folder)

    views = record.train.views
    wanted = all_scores(engine, images, views)
    others: dict[str, Engine] = {}
    if has_bfloat16(torch.device("cpu")):
        others["torch bf16"] = TorchEngine(model, record.learned, "bf16")
    for variant in exported.record["variants"]:
        if variant["precision"] == "fp32":
            continue  # held to 1e-5 by the export itself
        name = f"{variant['engine']} {variant['precision']}"
        others[name] = open_variant(exported, variant, CORES)
    rows = {}
    for name, other in others.items():
        found = all_scores(other, images, views)
        ranks = {f"srcc {t}": srcc(found[:, i], wanted[:, i]) for i, t in enumerate(other.tasks)}
        rows[name] = {"drift": float(np.abs(found - wanted).max()), **ranks}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="behind one that warms up")
    parser.add_argument("--run", type=Path, help="a trained run")
    parser.add_argument("--images", help="what its variants are compared on")
    parser.add_argument("--many", type=int, default=20_000, help="images of the memory test")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/score_speed.jsonl"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        record = measure(Path(name), options)
    record["machine"] = {
        "processor": processor(), "cores": CORES, "python": platform.python_version(),
        **{p: version(p) for p in ("torch", "transformers", "onnxruntime", "openvino", "pillow")},
    }  # fmt: skip
    with options.out.open("a") as file:
        file.write(json.dumps(record) + "\n")
    print(f"appended to {options.out}")


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    named = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


def measure(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    paths = draw(folder / "images", IMAGES)
    small = make_run(folder, SMALL, "dcmpl")
    few, many = (
        peak_memory(small, folder / "images", folder / f"links{n}", n)
        for n in (options.many // 10, options.many)
    )
    prompted, bare = (make_run(folder, VIT_B_32, preset) for preset in ("dcmpl", "clip-iqa"))
    _, model = load_model(prompted, device="cpu")
    images = [read_image(path) for path in paths]
    ready = [next(windows(image, 224, "resize")) for image in images]
    exports = {}
    for path in (prompted, bare):
        of_run, network = load_model(path, device="cpu")
        exports[path] = folder / f"{path.name}-export"
        shown = images if path == prompted else []
        write_export(TorchEngine(network, ("quality",)), of_run, exports[path], shown)
    engines: dict[str, Engine] = {
        f"torch {precision}": TorchEngine(model, ("quality",), precision)
        for precision in ("fp32", *["bf16"] * has_bfloat16(torch.device("cpu")))
    }
    exported = read_export(exports[prompted])
    for engine, precision, file in (
        ("onnx", "fp32", "model.onnx"),
        ("onnx", "int8", "model.int8.onnx"),
        ("openvino", "fp32", "model.xml"),
        ("openvino", "bf16", "model.bf16.xml"),
        ("openvino", "int8", "model.int8.xml"),
    ):  # also what the export left out: random weights drift more than trained ones
        variant = {"engine": engine, "precision": precision, "file": file}
        engines[f"{engine} {precision}"] = open_variant(exported, variant, CORES)
    rounds = {f"{name}": on_ready(engine, ready) for name, engine in engines.items()}
    rounds["transformers, eager fp32"] = eager_transformers(ready)
    of_bare = read_export(exports[bare])
    for name in ("onnx", "openvino"):
        variant = next(
            v for v in of_bare.record["variants"] if (v["engine"], v["precision"]) == (name, "fp32")
        )
        rounds[f"{name} fp32, no prompts"] = on_ready(open_variant(of_bare, variant, CORES), ready)
    rounds["torch fp32, no prompts"] = on_ready(
        TorchEngine(load_model(bare, device="cpu")[1], ("quality",)), ready
    )
    for name in ("torch", "onnx", "openvino"):
        rounds[f"{name} fp32, from files"] = on_files(engines[f"{name} fp32"], paths, "resize")
    papers = images[:2]
    rounds["plain test loop, 25 windows"] = plain_loop(model, papers)
    for name in ("torch fp32", "onnx fp32", "openvino fp32"):
        rounds[f"{name}, 25 windows"] = on_ready(engines[name], papers, "windows")
    rounds |= of_package(folder / "package", paths, images)
    both = TorchEngine(model, model.config.tasks)
    rounds["torch fp32, both tasks, 25 windows"] = on_ready(both, papers, "windows")
    speeds, found = in_turns(rounds, options.rounds)
    peak, own = peaks(), load_model(model_folder(None), device="cpu")
    gflop = gflop_of(TorchEngine(model, ("quality",)))
    of_one = gflop_of(TorchEngine(own[1], own[0].learned))
    result: dict[str, object] = {
        "rounds": options.rounds,
        "images_per_second": speeds,
        "gflops": peak,
        "gflop_an_image": {"ViT-B/32": gflop, "package": of_one},
        "shares": shares(speeds, peak, gflop, of_one),
        "memory_mib": {"few": few, "many": many, "images": options.many},
    }
    result["rows"] = table(speeds, found, few, many)
    if options.run:
        chosen = [entry.path for entry in find_sources([options.images])]
        trained = held_to_fp32(options.run, chosen, folder / "trained")
        result["trained"] = trained
        for name, row in trained.items():
            told = ", ".join(f"{key} {value:.5f}" for key, value in row.items())
            print(f"{options.run.name}, {len(chosen)} images, {name}: {told}")
    return result


def in_turns(
    rounds: dict[str, Round], count: int
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Median images a second, and what each variant found."""
    took: dict[str, list[float]] = {name: [] for name in rounds}
    found = {}
    for turn in range(count + 1):  # the first warms up
        for name, run in rounds.items():
            start = time.perf_counter()
            found[name] = run()
            if turn:
                took[name].append((time.perf_counter() - start) / len(found[name]))
        print(f"round {turn} of {count}", file=sys.stderr, flush=True)
    return {name: 1 / statistics.median(times) for name, times in took.items()}, found


def table(
    speeds: dict[str, float], found: dict[str, np.ndarray], few: float, many: float
) -> list[tuple[str, str, float, str]]:
    """The rows that are asked for: what, against what, ratio, target."""
    hf = speeds["transformers, eager fp32"]
    wanted = found["torch fp32"]
    engines = ("torch", "onnx", "openvino")
    rows = []
    for name in engines:
        ratio = speeds[f"{name} fp32, from files"] / speeds[f"{name} fp32, no prompts"]
        rows.append((f"{name}, fp32, files to scores", "its bare tower, ready", ratio, ">= 0.90"))
    for precision, target in (("fp32", ">= 2.2"), ("bf16", ">= 3.5"), ("int8", ">= 6")):
        for name in engines:
            key = f"{name} {precision}"
            if key in speeds:
                drift = float(np.abs(found[key] - wanted).max())
                rank = srcc(found[key][:, 0], wanted[:, 0])
                about = f"{target}; drift {drift:.1e}, SRCC {rank:.4f}"
                rows.append((key, "transformers, eager fp32", speeds[key] / hf, about))
    loop = "plain test loop, 25 windows"
    for key in [f"{name} fp32, 25 windows" for name in engines]:
        drift = float(np.abs(found[key][:, 0] - found[loop][:, 0]).max())
        rows.append((key, loop, speeds[key] / speeds[loop], f">= 4; scores within {drift:.1e}"))
    key = "torch fp32, both tasks, 25 windows"
    drift = float(np.abs(found[key] - found[loop]).max())
    rows.append((key, loop, speeds[key] / speeds[loop], f"scores within {drift:.1e}"))
    rows.append((f"peak memory, {many:.0f} MiB", "a tenth of the images", many / few, "<= 1.05"))
    for name in engines:
        ratio = speeds[f"{name} fp32, no prompts"] / speeds[f"{name} fp32"]
        rows.append((f"{name} fp32, prompts in every block", "none", ratio, "<= 1.20, of time"))
    print(f"{'what':38} {'against':28} {'ratio':>6}  target")
    for what, against, ratio, target in rows:
        print(f"{what:38} {against:28} {ratio:6.2f}  {target}")
    for name, speed in speeds.items():
        asked = "  15 images/s are asked of the fastest" if name.startswith(PACKAGE) else ""
        print(f"{name:38} {speed:8.1f} images/s{asked}")
    return rows


if __name__ == "__main__":
    main()
