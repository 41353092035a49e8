"""Exports, YAML and numbers of strangers: nothing runs, memory is bounded, nonsense is named.

A row is a name, what makes the files and returns the command, and the one sentence that ends it.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from attacks import Attack, Ground, Words, judge
from conftest import Capture
from dcmpl.files import sealed, sha256_of
from dcmpl.images.metadata import find_prompt, plain_prompt

pytest_plugins = ("attacks",)

SECONDS, ROOM = 20, 3 * 2**29
"""What a command may take that is meant to blow up: CPU, and bytes of address space."""


def graph(path: Path, value: float = 0.5, location: str = "", domain: str = "") -> None:
    """A model of windows to two scores, a constant; it may lie in another file."""
    names = "windows", "scores"
    scores = np.full((1, 2), value, np.float32)
    held = helper.make_tensor("c", TensorProto.FLOAT, (1, 2), scores.tobytes(), raw=True)
    if location:
        del held.external_data[:]
        held.ClearField("raw_data")
        held.data_location = TensorProto.EXTERNAL
        held.external_data.add(key="location", value=location)
    nodes = [
        helper.make_node("Shape", [names[0]], ["all"]),
        helper.make_node("Slice", ["all", "zero", "one"], ["first"]),
        helper.make_node("Concat", ["first", "width"], ["wide"], axis=0),
        helper.make_node("Expand", ["c", "wide"], [names[1]], domain=domain),
    ]
    lists = {"zero": [0], "one": [1], "width": [2]}
    ints = [helper.make_tensor(n, TensorProto.INT64, [1], v) for n, v in lists.items()]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(names[0], TensorProto.UINT8, ["n", 32, 32, 3])],
        [helper.make_tensor_value_info(names[1], TensorProto.FLOAT, ["n", 2])],
        [held, *ints],
    )
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    path.write_bytes(
        helper.make_model(made, opset_imports=opsets, ir_version=8).SerializeToString()
    )


def exported(
    write: Callable[[Path, Ground], object],
    variant: Mapping[str, object] | None = None,
    **changes: object,
) -> Callable[[Ground], Words]:
    """An export of one model that ``write`` makes, with a record that a stranger sealed."""

    def make(ground: Ground) -> Words:
        folder = ground.folder / "export"
        folder.mkdir()
        write(folder / "model.onnx", ground)
        record = {
            **{"tasks": ["quality", "alignment"], "size": 32, "views": "center"},
            "variants": [
                {"engine": "onnx", "precision": "fp32", "file": "model.onnx", **(variant or {})}
            ],
            "files": {"model.onnx": sha256_of(folder / "model.onnx")},
            "about": {"backbone": "x"},
            **changes,
        }
        (folder / "export.json").write_bytes(sealed(record))
        return ground.score(folder, "--engine", "onnx")

    return make


def model(**given: object) -> Callable[[Path, Ground], None]:
    return lambda path, ground: graph(path, **given)  # type: ignore[arg-type]


def secret(location: str, link: bool = False) -> Callable[[Path, Ground], None]:
    """A model whose numbers are those of a file outside its folder."""

    def write(path: Path, ground: Ground) -> None:
        outside = ground.folder / "secret.bin"
        outside.write_bytes(np.full((1, 2), 0.25, np.float32).tobytes())
        if link:
            (path.parent / "inside.bin").symlink_to(outside)
        graph(path, location=location.replace("OUTSIDE", str(outside)))

    return write


def elsewhere(path: Path, ground: Ground) -> None:
    """The good model, and another outside the folder that the record does not vouch for."""
    graph(path)
    other = ground.folder / "other"
    other.mkdir()
    graph(other / "model.onnx", value=0.125)


def many_bytes(path: Path, ground: Ground) -> None:
    """A model whose tensor claims a thousand billion numbers and holds eight bytes."""
    graph(path)
    made = onnx.load(path)
    made.graph.initializer[0].dims[0] = 10**12
    path.write_bytes(made.SerializeToString())


NO_MODEL, NO_EXPORT = (
    "^expected a model that onnx runs at ",
    "^expected what dcmpl export wrote at ",
)

EXPORTS = [
    Attack("numbers from above the folder", exported(secret("../secret.bin")), 1, NO_MODEL),
    Attack("numbers from an absolute place", exported(secret("OUTSIDE")), 1, NO_MODEL),
    Attack("numbers behind a link", exported(secret("inside.bin", link=True)), 1, NO_MODEL),
    Attack("numbers of the system", exported(model(location="/etc/hostname")), 1, NO_MODEL),
    Attack(
        "a model above the folder",
        exported(elsewhere, {"file": "../other/model.onnx"}),
        *(1, NO_EXPORT),
    ),
    Attack("an operator of a stranger", exported(model(domain="ai.evil")), 1, NO_MODEL),
    Attack("a tensor larger than its bytes", exported(many_bytes), 1, NO_MODEL),
    Attack("no model", exported(lambda p, g: p.write_bytes(b"\x80\x04cos\n")), 1, NO_MODEL),
    Attack("an engine that is a module", exported(model(), {"engine": "os"}), 1, NO_EXPORT),
    Attack("windows of a billion pixels", exported(model(), size=10**9), 1, NO_EXPORT),
    Attack("windows of no pixels", exported(model(), size=0), 1, NO_EXPORT),
    Attack(
        "views of a stranger", exported(model(), views="grid-99999"), 2, "^expected views to be "
    ),
    Attack("tasks that are no names", exported(model(), tasks=["=1", "\x1b[2J"]), 1, NO_EXPORT),
    Attack("scores of NaN", exported(model(value=np.nan)), 3, "expected finite scores of "),
    Attack("scores without end", exported(model(value=np.inf)), 3, "expected finite scores of "),
    Attack("scores beyond the scale", exported(model(value=1e30)), 3, "expected .*scores"),
]


def yaml(content: str, command: str = "train") -> Callable[[Ground], Words]:
    """A configuration; TRACE stands for the trace."""

    def make(ground: Ground) -> Words:
        file = ground.folder / "a.yaml"
        file.write_text(content.replace("TRACE", str(ground.trace)))
        if command == "grid":
            return [
                *("benchmark", "--data", ground.data, "--mos-scale", 1, 5, "--grid", file),
                *("--out", ground.folder / "out"),
            ]
        return [*ground.train(), "--config", file]

    return make


NO_YAML, NO_GRID = "^expected a YAML file at --config ", "^expected a YAML grid at "
CALL = '!!python/object/apply:os.mkdir ["TRACE"]'
LAUGHS = (
    "[&a0 [x, x], "
    + ", ".join(f"&a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))
    + "]"
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12)
)

YAMLS = [
    Attack("a call in a configuration", yaml(f"lr: {CALL}"), 2, NO_YAML),
    Attack("a call as the name of a flag", yaml(f"? {CALL}\n: 1"), 2, NO_YAML),
    Attack("a call for the whole file", yaml(CALL), 2, NO_YAML),
    Attack("a class", yaml("backbone: !!python/name:os.mkdir"), 2, NO_YAML),
    Attack("a module", yaml("backbone: !!python/module:antigravity"), 2, NO_YAML),
    Attack("an object", yaml("preset: !!python/object/new:os.mkdir [TRACE]"), 2, NO_YAML),
    Attack("a class by its name", yaml("preset: os.mkdir"), 2, "^expected --preset of "),
    Attack("a backbone of a place on the web", yaml("backbone: http://a/b"), 2, "^expected "),
    Attack("lists without end", yaml("[" * 10**5), 2, NO_YAML),
    Attack("a byte of nothing", yaml("lr: 1\0"), 2, NO_YAML),
    Attack("two files in one", yaml("lr: 1\n---\nlr: 2"), 2, NO_YAML),
    Attack("a list that holds itself", yaml("set: &a [*a]"), 2, "^expected "),
    Attack("more than a megabyte", yaml("#" * 2**21), 2, f"{NO_YAML}.*1048576 bytes"),
    Attack("a rate of NaN", yaml("lr: .nan"), 2, "^expected a finite number for --lr, got nan"),
    Attack("a rate without end", yaml("lr: .inf"), 2, "^expected a finite number for --lr"),
    Attack("a number of thousands of digits", yaml("epochs: 0x" + "f" * 9000), 2, "100 digits"),
    Attack("a mapping that is a text", yaml("!!map x"), 2, "^expected "),
    Attack("a mapping that is a list", yaml("!!map [a, b]"), 2, "^expected "),
    Attack(
        "ten thousand keys",
        yaml("".join(f"k{i}: 1\n" for i in range(10**4))),
        2,
        "^expected ",
    ),
    Attack("a rate that is there twice", yaml("lr: 0.1\nlr: 0.2"), 2, f"{NO_YAML}.*lr twice"),
    Attack("bytes", yaml("lr: !!binary AAAA"), 2, "^expected "),
    Attack("a call in a grid", yaml(f"variants: {{a: {CALL}}}", "grid"), 2, NO_GRID),
    Attack(
        "a class for a preset", yaml("variants: {a: {preset: os}}", "grid"), 2, "a preset for a"
    ),
]


def words(*given: object) -> Callable[[Ground], Words]:
    return lambda ground: ground.train(*given)


def scoring(*given: object) -> Callable[[Ground], Words]:
    return lambda ground: ground.score(ground.run, *given)


def setting(value: str) -> Callable[[Ground], Words]:
    return words("--set", value)


def scale(low: object, high: object) -> Callable[[Ground], Words]:
    return lambda ground: [
        *("train", "--data", ground.data, "--mos-scale", low, high, "--out", ground.folder / "run")
    ]


def opinion(cell: str) -> Callable[[Ground], Words]:
    """A table with one opinion of that kind."""

    def make(ground: Ground) -> Words:
        file = ground.folder / "mine.csv"
        file.write_text(f"image,prompt,mos_quality\na.png,a,3\nb.png,b,{cell}\n")
        return ["data", "check", file, "--mos-scale", 1, 5]

    return make


NO_OPINION = "^expected mos_quality between 1 and 5 in .* in line 3"

NUMBERS = [
    Attack("a rate of NaN in words", words("--lr", "nan"), 2, "--lr, got nan$"),
    Attack("a rate without end in words", words("--lr", "inf"), 2, "--lr, got inf$"),
    Attack("a rate below nothing", words("--lr", "-1"), 2, r"\blr\b"),
    Attack("no rate", words("--lr", "0"), 2, r"\blr\b"),
    Attack("an absurd rate", words("--lr", "1e30"), 2, r"\blr\b.*1e\+30"),
    Attack("a set rate of NaN", setting("train.lr=.nan"), 2, r"\blr\b"),
    Attack("a weight of NaN", setting("train.alignment_weight=.nan"), 2, "alignment_weight"),
    Attack("a weight without end", setting("train.mismatch_weight=.inf"), 2, "mismatch_weight"),
    Attack("an absurd weight", setting("train.alignment_weight=1.0e+300"), 2, "alignment_weight"),
    Attack("a ratio of NaN", setting("model.adapter.ratio=.nan"), 2, "^expected adapter.ratio"),
    Attack("a ratio above one", setting("model.adapter.ratio=7"), 2, "^expected adapter.ratio"),
    Attack("a million prompts", setting("model.n_context=1000000"), 2, "^expected n_context"),
    Attack("prompts below nothing", setting("model.n_context=-1"), 2, "^expected n_context"),
    Attack("a call in a setting", setting("train.lr=!!python/name:os.mkdir"), 2, "train.lr"),
    Attack(
        "a setting of thousands of digits", setting("train.epochs=0x" + "f" * 9000), 2, "epochs"
    ),
    Attack(
        "a million threads", scoring("--workers", 10**6), 2, "^expected --workers from 1 to 1024"
    ),
    Attack("a core that is no device", scoring("--device", "cpu:7"), 2, "^expected --device of "),
    Attack("no model", scoring("--model", ""), 2, "^expected .*, got none at an empty path"),
    Attack("no epochs", words("--epochs", "0"), 2, "^expected epochs of at least 1, got 0$"),
    Attack("more epochs than seconds", words("--epochs", 10**30), 2, "^expected epochs"),
    Attack("an absurd batch", words("--batch-size", 10**30), 2, "^expected batch_size"),
    Attack("a seed below nothing", words("--seed", "-1"), 2, "^expected seed of at least 0"),
    Attack("a seed too long", words("--seed", 10**30), 2, "^expected seed"),
    Attack("a scale of NaN", scale("nan", 5), 2, "--mos-scale, got nan$"),
    Attack("a scale without end", scale(1, "inf"), 2, "--mos-scale, got inf$"),
    Attack("a scale upside down", scale(5, 1), 2, "^expected --mos-scale LOW HIGH"),
    Attack("a scale whose length overflows", scale("-1e308", "1e308"), 2, "scale"),
    Attack("an absurd scale", scale("0", "1e-320"), 1, "^expected mos_quality between 0 and "),
    Attack("an opinion of NaN", opinion("nan"), 1, NO_OPINION),
    Attack("an opinion without end", opinion("inf"), 1, NO_OPINION),
    Attack("an opinion beyond the scale", opinion("1e400"), 1, NO_OPINION),
    Attack("an opinion that is a formula", opinion("=1+1"), 1, NO_OPINION),
    Attack("an opinion that is code", opinion("__import__('os')"), 1, NO_OPINION),
    Attack("an opinion in other digits", opinion("0x5"), 1, NO_OPINION),
]


def backbone_of(name: str, size: int) -> Callable[[Ground], Words]:
    """A backbone with a file that takes no room on the disk, and all memory once it is read."""

    def make(ground: Ground) -> Words:
        folder = ground.copy_of(ground.backbone)
        with (folder / name).open("wb") as file:
            file.truncate(size)
        return ground.train("--backbone", folder)

    return make


def endless(name: str, *command: object) -> Callable[[Ground], Words]:
    """A link to a device that ends never and says that it has no bytes."""

    def make(ground: Ground) -> Words:
        folder = ground.copy_of(ground.run)
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to("/dev/zero")
        return [
            folder / name if word is FILE else folder if word is DIR else word for word in command
        ]

    return make


FILE, DIR = "FILE", "DIR"


def growing(ground: Ground) -> Words:
    """A tokenizer that doubles every letter thirty times."""
    folder = ground.copy_of(ground.backbone)
    record = json.loads((folder / "tokenizer.json").read_text())
    twice = {"type": "Replace", "pattern": {"String": "o"}, "content": "oo"}
    record["normalizer"] = {"type": "Sequence", "normalizers": [twice] * 30}
    (folder / "tokenizer.json").write_text(json.dumps(record))
    return ground.train("--backbone", folder)


BOMBS = [
    Attack("a billion laughs as settings", yaml(f"set: {LAUGHS}"), 2, "^expected "),
    Attack("a billion laughs", yaml(LAUGHS), 2, NO_YAML),
    Attack("a billion laughs for one value", yaml(f"lr: {LAUGHS}"), 2, "^expected "),
    Attack("a billion merges", yaml(MERGES), 2, "^expected "),
    Attack(
        "a billion laughs in a grid",
        yaml(f"train: {{lr: {LAUGHS}}}\nvariants: {{a: {{}}}}", "grid"),
        2,
        "^exp",
    ),
    Attack("a configuration of 64 GB", backbone_of("config.json", 2**36), 1, "^expected "),
    Attack("a tokenizer of 64 GB", backbone_of("tokenizer.json", 2**36), 1, "^expected "),
    Attack(
        "a configuration without end", endless("a.yaml", "train", "--config", FILE), 2, "^expected "
    ),
    Attack(
        "a table without end",
        endless("a.csv", "data", "check", FILE, "--mos-scale", 1, 5),
        *(1, "^expected "),
    ),
    Attack("a record without end", endless("run.json", "info", DIR), 1, "^expected "),
    Attack("scores without end of lines", endless("a.csv", "select", FILE), 2, "^expected "),
    Attack("a tokenizer that doubles", growing, 1, "^expected "),
]

ATTACKS = [*EXPORTS, *YAMLS, *NUMBERS]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_what_makes_no_sense_is_refused_by_name_and_runs_nothing(
    attack: Attack, ground: Ground, capsys: Capture
) -> None:
    judge(attack, ground, capsys)


BOUNDED = """
import resource, sys
seconds, room = int(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
resource.setrlimit(resource.RLIMIT_AS, (room, room))
from dcmpl.cli.main import main
sys.exit(main(sys.argv[3:]))
"""


@pytest.mark.parametrize("attack", BOMBS, ids=lambda a: a.name)
def test_what_would_fill_the_memory_is_refused_within_bounds(
    attack: Attack, ground: Ground
) -> None:
    given = [str(word) for word in attack.make(ground)]
    room = ROOM if "--config" in given else 4 * ROOM  # PyTorch takes room of its own
    command = [sys.executable, "-c", BOUNDED, str(SECONDS), str(room), *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (line,) = done.stderr.splitlines()[-1:]
    assert done.returncode == attack.code, done.stderr[-600:]
    assert line.startswith("dcmpl: expected "), line
    assert len(line) < 3000


SLOW: dict[str, Callable[[], object]] = {
    "an open bracket and blanks": lambda: plain_prompt("(" + " " * 200_000),
    "a weight that never ends": lambda: plain_prompt("(:" + "1" * 200_000),
    "brackets in brackets": lambda: plain_prompt("(" * 10**5 + ")" * 10**5),
    "blanks in a description": lambda: find_prompt({"Description": " " * 200_000}),
    "quotes of InvokeAI": lambda: find_prompt({"Dream": '"' + '" ' * 10**5}),
    "comments of XMP": lambda: find_prompt(
        {"XML:com.adobe.xmp": "<exif:UserComment><rdf:li" * 10**4}
    ),
    "a graph without end": lambda: find_prompt({"prompt": '{"1":' * 10**5}),
    "networks that never end": lambda: plain_prompt("<lora:" * 10**5),
}


@pytest.mark.parametrize("name", SLOW)
def test_text_of_an_image_takes_no_more_time_than_its_length(name: str) -> None:
    SLOW[name]()  # the square of its length would be minutes: the suite's own limit ends it
