"""``dcmpl explain``: quality maps of an image, and the words that it does not show."""

from pathlib import Path

from dcmpl.cli.options import (
    DEVICE,
    MOVED_BACKBONE,
    Arguments,
    Command,
    Flag,
    check_device,
    check_replaces,
    check_run,
)
from dcmpl.errors import UsageError
from dcmpl.files import write_atomically
from dcmpl.progress import say
from dcmpl.weights import as_installed, warn_of_model

__all__ = ["EXPLAIN"]

FLAGS = (
    Flag("IMAGE", "an image", required=True, metavar="IMAGE", at_url="file"),
    Flag(
        "--model", "run folder (default: the model of the package)", metavar="RUN", at_url="folder"
    ),
    Flag("--prompt", "its prompt", metavar="TEXT"),
    Flag("--out", ".png", required=True, short="-o", metavar="FILE"),
    MOVED_BACKBONE,
    DEVICE,
)


def explain(arguments: Arguments) -> int:
    """Draw the quality maps of an image, and print a summary of each."""
    folder = _check(arguments)
    from dcmpl.images.decode import decode, quiet_pillow
    from dcmpl.pages import has_matplotlib
    from dcmpl.runs import uncalibrated
    from dcmpl.scoring.calibration import read_calibration
    from dcmpl.scoring.explain import explain as explained
    from dcmpl.scoring.torch_engine import TorchEngine, load_model

    if not has_matplotlib():
        raise UsageError("matplotlib to draw with", "none", "pip install 'dcmpl-agiqa[plots]'")
    with as_installed(folder):
        run, model = load_model(folder, arguments.backbone, arguments.device)
        calibration = read_calibration(folder, run.weights_sha256)
    warn_of_model(folder, run.backbone)
    if calibration is None:
        say(f"note: no MOS units and no map of patches: {uncalibrated(run)}")
    with quiet_pillow():
        image = decode(arguments.IMAGE).pixels
    engine, views = TorchEngine(model, run.learned), run.train.views
    found = explained(engine, calibration, image, arguments.prompt or "", views)
    for note in found.notes:
        say(note)
    write_atomically(Path(arguments.out), found.figure(image))
    print("\n".join(found.sentences))
    for drawn in found.maps:
        row, column = drawn.worst
        print(f"lowest by {drawn.name}: {drawn.values.min():.2f} about x {column}, y {row}")
    for word, gain in sorted(found.words, key=lambda pair: -pair[1]):
        print(f"without {word!r}: {gain:+.3f}")
    print(f"image: {arguments.out}")
    return 0


def _check(arguments: Arguments) -> Path:
    """Folder of the model, after all checks that need no PyTorch."""
    folder = check_run(arguments.model)
    check_device(arguments.device)
    if not Path(arguments.IMAGE).is_file():
        found = "a folder" if Path(arguments.IMAGE).is_dir() else "no file"
        raise UsageError(f"an image at {arguments.IMAGE}", found)
    out = Path(arguments.out)
    if out.suffix.lower() != ".png" or out.is_dir():
        raise UsageError("-o to be a file that ends in .png", out)
    if out.exists() and out.samefile(arguments.IMAGE):
        raise UsageError("-o beside the image", f"the image itself, {out}")
    check_replaces(arguments.out)
    return folder


EXPLAIN = Command(
    "Draw where an image looks bad, and which words of its prompt it lacks.", FLAGS, explain
)
