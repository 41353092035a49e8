"""Export of a run to ONNX Runtime and OpenVINO: folded, compared with PyTorch, recorded.

    model.onnx                 float32, any number of windows
    model.xml, model.bin       the same for OpenVINO
    model.bf16.xml, .bin       the blocks' products in bfloat16
    model.int8.onnx            the blocks' products in 8 bits, calibrated on images
    model.int8.xml, .bin       the same for OpenVINO
    export.json                what it is, how far each variant's scores are from torch's

A model takes windows, uint8 (N, size, size, 3), RGB, and gives scores in [0, 1], (N, tasks).
Normalisation is inside.
"""

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dcmpl import __version__
from dcmpl.errors import RunError, UsageError
from dcmpl.files import sealed, sha256_of, write_atomically
from dcmpl.images.decode import cores
from dcmpl.images.windows import windows
from dcmpl.metrics import srcc
from dcmpl.progress import say
from dcmpl.runs import Run
from dcmpl.scoring.calibration import Calibration
from dcmpl.scoring.engines import (
    EXPORT,
    MODULES,
    PRECISIONS,
    Engine,
    Exported,
    all_scores,
    open_variant,
    openvino_core,
)
from dcmpl.scoring.torch_engine import TorchEngine

__all__ = ["write_export"]

FP32_DRIFT, BF16_DRIFT = 1e-5, 5e-3
INT8_SRCC = 0.995
"""A variant beyond these is left out, and said to be."""

CALIBRATION_WINDOWS, CALIBRATION_PIXELS = 512, 2**20
"""To calibrate int8 on, and those of a batch, whose maps are all in memory at once."""

MOST_WINDOWS = 2**16
"""In one call; the exporter wants a bound."""


def write_export(
    engine: TorchEngine,
    run: Run,
    folder: Path,
    images: Sequence[np.ndarray],
    calibration: Calibration | None = None,
) -> dict[str, Any]:
    """Write all variants that the installed packages allow, and the record; returns the record.

    ``images`` calibrate int8, and their middle windows measure drifts; without any there is no
    int8, and drifts are measured on noise. Raises :class:`UsageError` where ONNX is not
    installed, :class:`RunError` where an export does not give PyTorch's scores.
    """
    if lack := [name for name in ("onnx", "onnxscript", "onnxruntime") if not find_spec(name)]:
        raise UsageError(f"{', '.join(lack)} to export", "none", "pip install 'dcmpl-agiqa[onnx]'")
    views = run.train.views
    shown = list(images) or [_noise(engine.size, seed) for seed in range(4)]
    wanted = all_scores(engine, shown, "center")
    files, variants, left_out = _write_models(engine, folder, views, images)
    record = {
        "kind": "dcmpl export",
        "tasks": list(engine.tasks),
        "size": engine.size,
        "views": views,
        "input": "windows: uint8 (N, size, size, 3), RGB; normalisation is inside",
        "about": run.about(),
        "files": {path.name: sha256_of(path) for path in files},
        "calibration": calibration and calibration.record(),
        "compared_on": f"the middle of {len(images)} images" if images else "noise",
    }
    kept = []
    for variant in variants:
        tried = Exported(folder, {**record, "variants": [variant]})
        drift = _drift(open_variant(tried, variant, cores()), shown, wanted)
        why = _why_left_out(variant, drift, bool(images))
        text = f"{variant['engine']} {variant['precision']}: {_told(drift)}"
        say(f"{text}{'; left out, ' + why if why else ''}")
        if why:
            left_out[f"{variant['engine']} {variant['precision']}"] = f"left out, {why}"
        else:
            kept.append({**variant, "drift": drift["most"], "srcc": drift["srcc"]})
    record |= {"variants": kept, "left_out": left_out}
    record |= {"made_with": _versions(), "version": __version__}
    write_atomically(folder / EXPORT, sealed(record))
    return record


def _write_models(
    engine: TorchEngine, folder: Path, views: str, images: Sequence[np.ndarray]
) -> tuple[list[Path], list[dict[str, Any]], dict[str, str]]:
    """Write the models; returns files, variants, and reasons for missing ones."""
    fp32 = _write_onnx(engine.network.cpu(), folder / "model.onnx", engine.size)
    files, variants, left_out = [fp32], [_variant("onnx", "fp32", fp32)], {}
    if images:
        int8 = _write_int8(fp32, folder / "model.int8.onnx", engine.size, views, images)
        files.append(int8)
        variants.append(_variant("onnx", "int8", int8))
    else:
        for name in ("onnx", "openvino"):
            left_out[f"{name} int8"] = "it is calibrated on images, and there were none"
    if not find_spec(MODULES["openvino"]):
        for precision in PRECISIONS:
            left_out[f"openvino {precision}"] = "it was not installed at export"
        return files, variants, left_out
    # OpenVINO's own bfloat16 also lowers what must not be: the tokens and the stem.
    lower = engine.network.in_bfloat16()
    bf16 = _write_onnx(lower, folder / "model.bf16.onnx", engine.size)
    precisions = [*(variant["precision"] for variant in variants), "bf16"]
    for path, precision in zip([*files, bf16], precisions, strict=True):
        made = _write_openvino(path)
        files += made
        variants.append(_variant("openvino", precision, made[0]))
    bf16.unlink()
    return files, variants, left_out


def _noise(size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def _variant(engine: str, precision: str, path: Path) -> dict[str, Any]:
    return {"engine": engine, "precision": precision, "file": path.name}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence exporters, which report missing packages that are not needed."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _write_onnx(network: nn.Module, path: Path, size: int) -> Path:
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    batch = torch.export.Dim("windows", min=1, max=MOST_WINDOWS)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _quiet():
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            dynamic_shapes={"windows": {0: batch}},
            input_names=["windows"],
            output_names=["scores"],
            verbose=False,
        )
        if program is None:
            raise RunError(f"an ONNX model for {path}", "none from the exporter")
        _tidy(program.model)
        program.save(path, external_data=False)
    return path


def _tidy(model: Any) -> None:
    """Store every matrix once, as it is used."""
    from onnx_ir.passes.common import DeduplicateInitializersPass
    from onnxscript.optimizer import optimize_ir

    most = 2**40
    optimize_ir(model, input_size_limit=most, output_size_limit=most)
    DeduplicateInitializersPass(size_limit=most)(model)


def _write_int8(
    fp32: Path, path: Path, size: int, views: str, images: Sequence[np.ndarray]
) -> Path:
    """Write the int8 variant: the blocks' matrix products in 8 bits, all else in float32."""
    import onnx
    from onnxruntime import quantization

    spread = range(0, len(images), max(1, len(images) // CALIBRATION_WINDOWS))
    cut = (window for index in spread for window in windows(images[index], size, views))
    shown = [window for window, _ in zip(cut, range(CALIBRATION_WINDOWS), strict=False)]
    count = max(1, CALIBRATION_PIXELS // size**2)
    batches = ({"windows": np.stack(shown[i : i + count])} for i in range(0, len(shown), count))

    class Shown(quantization.CalibrationDataReader):  # type: ignore[misc]  # no stubs
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(batches, None)

    nodes = onnx.load(fp32).graph.node
    with _quiet():
        quantization.quantize_static(
            fp32,
            path,
            Shown(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_quantize=[node.name for node in nodes if _is_in_block(node)],
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )
    return path


def _is_in_block(node: Any) -> bool:
    """Whether a node is a product with a matrix of a block, by where the exporter found it."""
    scopes = [p.value for p in node.metadata_props if p.key.endswith("name_scopes")]
    return node.op_type in ("MatMul", "Gemm") and any(
        "'blocks." in scope and "'linear" in scope for scope in scopes
    )


def _write_openvino(path: Path) -> list[Path]:
    import openvino

    target = path.with_suffix(".xml")
    openvino.save_model(openvino_core(os.getpid()).read_model(path), target, compress_to_fp16=False)
    return [target, target.with_suffix(".bin")]


def _drift(engine: Engine, images: Sequence[np.ndarray], wanted: np.ndarray) -> dict[str, Any]:
    found = all_scores(engine, images, "center")
    ranks = {task: srcc(found[:, i], wanted[:, i]) for i, task in enumerate(engine.tasks)}
    return {"most": float(np.abs(found - wanted).max()), "srcc": ranks}


def _told(drift: dict[str, Any]) -> str:
    ranks = ", ".join(f"{task} {value:.5f}" for task, value in drift["srcc"].items())
    return f"scores drift by at most {drift['most']:.1e}, SRCC to torch fp32: {ranks}"


def _why_left_out(variant: dict[str, Any], drift: dict[str, Any], on_images: bool) -> str:
    """Reason to leave a variant out; raises :class:`RunError` for fp32."""
    most = drift["most"]
    if variant["precision"] == "fp32" and not most <= FP32_DRIFT:
        raise RunError(
            f"{variant['engine']} to give torch's scores to {FP32_DRIFT:g}",
            f"a drift of {most:.1e}",
            "the export is not to be used",
        )
    if variant["precision"] == "bf16" and not most <= BF16_DRIFT:
        return f"a drift of at most {BF16_DRIFT:g} is asked for"
    is_like = all(rank >= INT8_SRCC for rank in drift["srcc"].values())
    if variant["precision"] == "int8" and on_images and not is_like:
        return f"an SRCC of at least {INT8_SRCC:g} is asked for"
    return ""


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("torch", "onnx", "onnxruntime", "openvino"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
