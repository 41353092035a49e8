"""Weights, tokenizers and runs of strangers: nothing in them runs, and what is wrong is named.

A row is a name, what makes the files and returns the command, and the one sentence that ends it.
Whatever could run leaves a trace, which must not be there afterwards.
"""

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from attacks import Attack, Ground, Words, judge
from conftest import Capture
from dcmpl.files import as_json, sealed, sha256_of
from torch_files import Trap, described, named, plain, save_archive, save_torchscript, tensor

pytest_plugins = ("attacks",)


def weights(name: str, write: Callable[[Path, Ground], object]) -> Callable[[Ground], Words]:
    """A backbone whose weights ``write`` makes under that name."""

    def make(ground: Ground) -> Words:
        folder = ground.copy_of(ground.backbone)
        (folder / "model.safetensors").unlink()
        write(folder / name, ground)
        return ground.train("--backbone", folder)

    return make


def beside(name: str, write: Callable[[Path, Ground], object]) -> Callable[[Ground], Words]:
    """A backbone with one file beside the weights replaced."""

    def make(ground: Ground) -> Words:
        folder = ground.copy_of(ground.backbone)
        write(folder / name, ground)
        return ground.train("--backbone", folder)

    return make


def tree(*parts: bytes) -> Callable[[Path, Ground], None]:
    """An archive of PyTorch's whose pickle has these opcodes; TRACE becomes the trace."""

    def write(path: Path, ground: Ground) -> None:
        spelled = b"".join(plain(str(ground.trace)) if part == b"TRACE" else part for part in parts)
        save_archive(path, spelled)

    return write


def safetensors(header: object, content: bytes = b"", length: int | None = None) -> Any:
    """A safetensors file whose header says what it likes."""

    def write(path: Path, ground: Ground) -> None:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        size = len(text) if length is None else length
        path.write_bytes(struct.pack("<Q", size) + text + content)

    return write


def changed_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Any:
    """The good weights with a change."""

    def write(path: Path, ground: Ground) -> None:
        state = load_file(ground.backbone / "model.safetensors")
        change(state)
        save_file(state, path)

    return write


def fill(value: float) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda state: state["visual.proj"].fill_(value)


F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
PICKLE, SAFE = "pytorch_model.bin", "model.safetensors"
NO_TENSORS, NO_SAFE = "^expected a file that PyTorch", "^expected a readable safetensors file at "

WEIGHTS = [
    Attack(
        "a state dict with a call in it",
        weights(PICKLE, lambda p, g: torch.save({"w": Trap(g.trace)}, p)),
        *(1, NO_TENSORS),
    ),
    Attack(
        "a bare pickle",
        weights(PICKLE, lambda p, g: p.write_bytes(pickle.dumps(Trap(g.trace)))),
        *(1, NO_TENSORS),
    ),
    Attack(
        "a pickle called safetensors",
        weights(SAFE, lambda p, g: p.write_bytes(pickle.dumps(Trap(g.trace)))),
        *(1, NO_SAFE),
    ),
    Attack(
        "PyTorch's old form with a call in it",
        weights(
            PICKLE,
            lambda p, g: torch.save(Trap(g.trace), p, _use_new_zipfile_serialization=False),
        ),
        *(1, NO_TENSORS),
    ),
    Attack(
        "a call by the name of a function",
        weights(PICKLE, tree(named("os", "mkdir"), b"TRACE", b"\x85R")),
        *(1, f"{NO_TENSORS}.* got: a call of os mkdir"),
    ),
    Attack(
        "a call by a name from the stack",
        weights(PICKLE, tree(plain("os"), plain("mkdir"), b"\x93", b"TRACE", b"\x85R")),
        *(1, NO_TENSORS),
    ),
    Attack(
        "a call by the oldest opcode",
        weights(PICKLE, tree(b"(", b"TRACE", b"ios\nmkdir\n")),
        *(1, NO_TENSORS),
    ),
    Attack(
        "an object with a state of its own",
        weights(PICKLE, tree(named("torch", "FloatStorage"), b")\x81", plain({"a": 1}), b"b")),
        *(1, NO_TENSORS),
    ),
    Attack(
        "a tensor made by another function",
        weights(PICKLE, tree(described(w=named("torch.hub", "load") + plain("a/b") + b"\x85R"))),
        *(1, NO_TENSORS),
    ),
    Attack(
        "a program of TorchScript",
        weights(PICKLE, lambda p, g: save_torchscript({"w": torch.zeros(2)}, p)),
        *(1, "^expected a file of tensors at .* strangers' programs are not run"),
    ),
    Attack(
        "a tensor of a storage that is not there",
        weights(PICKLE, tree(described(w=tensor(key="../../secret")))),
        *(1, NO_TENSORS),
    ),
    Attack(
        "a header longer than any file", weights(SAFE, safetensors({}, length=2**60)), 1, NO_SAFE
    ),
    Attack("a header of nested lists", weights(SAFE, safetensors(b'{"a":' * 50_000)), 1, NO_SAFE),
    Attack(
        "tensors that share their bytes",
        weights(SAFE, safetensors({"a": F32, "b": F32}, bytes(4))),
        *(1, NO_SAFE),
    ),
    Attack(
        "bytes behind the end of the file",
        weights(SAFE, safetensors({"a": {**F32, "data_offsets": [0, 2**40], "shape": [2**38]}})),
        *(1, NO_SAFE),
    ),
    Attack(
        "a shape whose product overflows",
        weights(SAFE, safetensors({"a": {**F32, "shape": [2**33, 2**33]}}, bytes(4))),
        *(1, NO_SAFE),
    ),
    Attack(
        "offsets before the beginning",
        weights(SAFE, safetensors({"a": {**F32, "data_offsets": [-4, 0]}}, bytes(4))),
        *(1, NO_SAFE),
    ),
    Attack(
        "a kind of number that is a class",
        weights(SAFE, safetensors({"a": {**F32, "dtype": "os.mkdir"}}, bytes(4))),
        *(1, NO_SAFE),
    ),
    Attack(
        "weights that are complex",
        weights(
            SAFE,
            changed_weights(lambda s: s.update({"visual.proj": s["visual.proj"].to(torch.cfloat)})),
        ),
        *(1, "^expected .*visual.proj"),
    ),
    Attack("weights of NaN", weights(SAFE, changed_weights(fill(np.nan))), 1, "^expected .*finite"),
    Attack(
        "weights without end", weights(SAFE, changed_weights(fill(np.inf))), 1, "^expected .*finite"
    ),
]


def config(section: str = "", **changes: object) -> Callable[[Path, Ground], None]:
    """The backbone's configuration with changes, in a section where one is named."""

    def write(path: Path, ground: Ground) -> None:
        record = json.loads(path.read_text())
        (record[section] if section else record).update(changes)
        path.write_text(json.dumps(record))

    return write


def tokenizer(**changes: object) -> Callable[[Path, Ground], None]:
    def write(path: Path, ground: Ground) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return write


def model_of(**changes: object) -> Callable[[Path, Ground], None]:
    """The backbone's tokenizer with changes of its model."""

    def write(path: Path, ground: Ground) -> None:
        record = json.loads(path.read_text())
        record["model"].update(changes)
        path.write_text(json.dumps(record))

    return write


def text(content: str) -> Callable[[Path, Ground], None]:
    return lambda path, ground: (path.write_text(content), None)[1]


def sparse(size: int) -> Callable[[Path, Ground], None]:
    """A file that takes no room on the disk, and all memory when it is read."""

    def write(path: Path, ground: Ground) -> None:
        with path.open("wb") as file:
            file.truncate(size)

    return write


def with_code(path: Path, ground: Ground) -> None:
    """A configuration that asks for code which lies beside it."""
    (path.parent / "evil.py").write_text(f"import os; os.mkdir({str(ground.trace)!r})")
    config(
        auto_map={"AutoModel": "evil.Evil"}, architectures=["evil.Evil"], trust_remote_code=True
    )(path, ground)
    (path.parent / "model.safetensors").unlink()


CONFIG, WORDS = "config.json", "tokenizer.json"
NO_CLIP, NO_WORDS = (
    "^expected the configuration of a CLIP at ",
    "^expected a readable tokenizer at ",
)
SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}

BESIDE = [
    Attack("a configuration nested without end", beside(CONFIG, text("[" * 10**5)), 1, NO_CLIP),
    Attack(
        "a billion layers",
        beside(CONFIG, config("vision_config", num_hidden_layers=10**9)),
        *(1, f"{NO_CLIP}.*num_hidden_layers"),
    ),
    Attack(
        "a width below nothing",
        beside(CONFIG, config("text_config", hidden_size=-32)),
        *(1, f"{NO_CLIP}.*hidden_size"),
    ),
    Attack(
        "an epsilon that is no number",
        beside(CONFIG, config("vision_config", layer_norm_eps=float("nan"))),
        *(1, f"{NO_CLIP}.*layer_norm_eps"),
    ),
    Attack(
        "an activation that is a function of Python",
        beside(CONFIG, config("vision_config", hidden_act="os.mkdir")),
        *(1, f"{NO_CLIP}.*'os.mkdir' is none of"),
    ),
    Attack("code beside the configuration", beside(CONFIG, with_code), 1, "no model.safetensors$"),
    Attack(
        "a number of a hundred thousand digits",
        beside(CONFIG, text('{"vision_config": {"image_size": ' + "9" * 10**5 + "}}")),
        *(1, NO_CLIP),
    ),
    Attack("a tokenizer nested without end", beside(WORDS, text("[" * 10**5)), 1, NO_WORDS),
    Attack(
        "a tokenizer of an unknown class",
        beside(WORDS, tokenizer(model={"type": "os.mkdir"})),
        *(1, NO_WORDS),
    ),
    Attack(
        "a tokenizer without its tokens",
        beside(WORDS, tokenizer(added_tokens=[], model={"type": "BPE", "vocab": {}, "merges": []})),
        *(1, "^expected the token "),
    ),
    Attack(
        "a token of a number beyond the table",
        beside(
            WORDS,
            tokenizer(
                model={
                    "type": "BPE",
                    "vocab": {"<|startoftext|>": 1, "<|endoftext|>": 2, "a": 2**32 - 1},
                    "merges": [],
                }
            ),
        ),
        *(1, "^expected a tokenizer of at most 640 entries"),
    ),
    Attack(
        "a pattern that is none",
        beside(WORDS, tokenizer(pre_tokenizer={**SPLIT, "pattern": {"Regex": "("}})),
        *(1, NO_WORDS),
    ),
    Attack(
        "a pattern that takes for ever",
        beside(WORDS, tokenizer(pre_tokenizer={**SPLIT, "pattern": {"Regex": "(a+)+$"}})),
        *(1, NO_WORDS),
    ),
    Attack(
        "bytes of bytes without end",
        beside(
            WORDS,
            tokenizer(
                pre_tokenizer={
                    "type": "Sequence",
                    "pretokenizers": [{"type": "ByteLevel", "add_prefix_space": False}] * 30,
                }
            ),
        ),
        *(1, f"{NO_WORDS}.*more than 8 steps of a pre_tokenizer, or bytes of bytes"),
    ),
    Attack(
        "byte pairs that end beyond their prefix",
        beside(WORDS, model_of(continuing_subword_prefix="#" * 50)),
        *(1, f"{NO_WORDS}.*byte pairs with a prefix"),
    ),
    Attack("a model of all pieces", beside(WORDS, model_of(type="Unigram")), 1, NO_WORDS),
    Attack(
        "word pieces without a token for others",
        beside(WORDS, model_of(type="WordPiece", unk_token="[UNK]")),
        *(1, f"{NO_WORDS}.*word pieces without a token"),
    ),
    Attack(
        "a map of letters that is damaged",
        beside(
            WORDS, tokenizer(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"})
        ),
        *(1, NO_WORDS),
    ),
]


def record_of(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a sealed record and seal it again, as a stranger can."""
    record = json.loads(path.read_text())
    del record["digest"]
    change(record)
    path.write_bytes(sealed(record))


def learned(write: Callable[[Path, Ground], object]) -> Callable[[Ground], Words]:
    """A finished run with other learned tensors, whose SHA-256 its record names."""

    def make(ground: Ground) -> Words:
        folder = ground.copy_of(ground.run)
        write(folder / SAFE, ground)
        digest = sha256_of(folder / SAFE)
        record_of(folder / "run.json", lambda r: r.update(weights_sha256=digest))
        return ground.score(folder)

    return make


def tensors_with(
    change: Callable[[dict[str, torch.Tensor]], object], epochs: int = 3
) -> Callable[[Path, Ground], None]:
    """The tensors that are there with a change, under the record that was with them."""

    def write(path: Path, ground: Ground) -> None:
        content = path.read_bytes()
        (size,) = struct.unpack("<Q", content[:8])
        about = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["dcmpl"])
        about["history"] = about["history"][:epochs]
        state = load_file(path)
        change(state)
        save_file(state, path, {"dcmpl": as_json(about).decode()})

    return write


def resumed(
    write: Callable[[Path, Ground], object], name: str = "last.safetensors"
) -> Callable[[Ground], Words]:
    """A run that was broken off after its first epoch, with another training state."""

    def make(ground: Ground) -> Words:
        folder = ground.copy_of(ground.run)

        def breaks(record: dict[str, Any]) -> None:
            record.update(finished=False, weights_sha256="", best_epoch=1)
            record["history"] = record["history"][:1]

        record_of(folder / "run.json", breaks)
        write(folder / name, ground)
        words = f"--epochs 3 --batch-size 16 --lr 0.003 --set train.views=center --out {folder}"
        head = ground.train()[:-2]  # without --out
        return [*head, *words.split(), "--resume", "--backbone", ground.backbone]

    return make


def adam(entry: str, value: float) -> Callable[[Path, Ground], None]:
    def change(state: dict[str, torch.Tensor]) -> None:
        for name in state:
            if name.startswith("optimizer/") and name.endswith(f"/{entry}"):
                state[name].fill_(value)

    return tensors_with(change, epochs=1)


def adam_as(entry: str, kind: torch.dtype) -> Callable[[Path, Ground], None]:
    """Adam's state with an entry in numbers of another kind."""

    def change(state: dict[str, torch.Tensor]) -> None:
        for name in state:
            if name.startswith("optimizer/") and name.endswith(f"/{entry}"):
                state[name] = state[name].to(kind)

    return tensors_with(change, epochs=1)


def first_to(value: float) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda state: next(v for n, v in state.items() if "optimizer" not in n).fill_(value)


def run_with(command: str = "score", **changes: object) -> Callable[[Ground], Words]:
    """A finished run whose record, sealed again, says something else."""

    def make(ground: Ground) -> Words:
        folder = ground.copy_of(ground.run)
        record_of(folder / "run.json", lambda record: record.update(changes))
        return ["info", folder] if command == "info" else ground.score(folder)

    return make


def of_recipe(**changes: object) -> Callable[[Ground], Words]:
    def make(ground: Ground) -> Words:
        folder = ground.copy_of(ground.run)
        record_of(folder / "run.json", lambda record: record["train"].update(changes))
        return ground.score(folder)

    return make


NO_LEARNED, NO_RECORD = "^expected learned tensors at ", "^expected the record of a run at "

RUNS = [
    Attack(
        "learned tensors that are a pickle",
        learned(lambda p, g: p.write_bytes(pickle.dumps(Trap(g.trace)))),
        *(1, NO_LEARNED),
    ),
    Attack(
        "learned tensors that are PyTorch's",
        learned(lambda p, g: torch.save(Trap(g.trace), p)),
        *(1, NO_LEARNED),
    ),
    Attack(
        "learned tensors of NaN",
        learned(tensors_with(first_to(np.nan))),
        *(1, "^expected finite numbers in "),
    ),
    Attack(
        "a training state that is a pickle",
        resumed(lambda p, g: p.write_bytes(pickle.dumps(Trap(g.trace)))),
        *(1, NO_LEARNED),
    ),
    Attack(
        "a training state that is PyTorch's",
        resumed(lambda p, g: torch.save({"optimizer": Trap(g.trace)}, p)),
        *(1, NO_LEARNED),
    ),
    Attack(
        "a training state with a header that lies",
        resumed(safetensors({}, length=2**50)),
        *(1, NO_LEARNED),
    ),
    Attack(
        "tensors of NaN to go on from",
        resumed(tensors_with(first_to(np.nan), 1)),
        *(1, "^expected finite numbers in "),
    ),
    Attack("a momentum of NaN", resumed(adam("exp_avg", np.nan)), 1, "^expected .*finite"),
    Attack(
        "a momentum of truths", resumed(adam_as("exp_avg", torch.bool)), 1, "^expected .*finite"
    ),
    Attack(
        "a momentum of eight bits with a sign that is none",
        resumed(adam_as("exp_avg_sq", torch.int8)),
        *(1, "^expected .*finite"),
    ),
    Attack("a momentum without end", resumed(adam("exp_avg", np.inf)), 1, "^expected .*finite"),
    Attack(
        "a variance below nothing", resumed(adam("exp_avg_sq", -1)), 1, "^expected .*exp_avg_sq"
    ),
    Attack("a step before the first", resumed(adam("step", -7)), 1, "^expected .*step"),
    Attack(
        "a split that is nested without end",
        resumed(text('{"a":' * 10**5), "split.json"),
        *(1, "^expected .*split.json"),
    ),
    Attack("a record of a later version", run_with(version="999.0"), 1, "a later version, 999.0"),
    Attack("a best epoch that never was", run_with("info", best_epoch=10**9), 1, NO_RECORD),
    Attack("a history of texts", run_with(history=[{"loss": "x"}]), 1, NO_RECORD),
    Attack("a learning rate of NaN in a record", of_recipe(lr=float("nan")), 1, NO_RECORD),
    Attack("views that are code", of_recipe(views="__import__('os').mkdir('x')"), 1, NO_RECORD),
    Attack("an entry that no run has", run_with(hook="os.mkdir"), 1, f"{NO_RECORD}.*hook"),
    Attack("learned tasks that are none", run_with(learned=["os"]), 1, NO_RECORD),
]


ATTACKS = [*WEIGHTS, *BESIDE, *RUNS]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_file_that_is_loaded_runs_nothing_and_is_refused_in_a_sentence(
    attack: Attack, ground: Ground, capsys: Capture
) -> None:
    judge(attack, ground, capsys)
