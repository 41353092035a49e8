"""Backbones by their id: what is fetched, and what is taken from the cache without asking."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file

from dcmpl.errors import WeightsError
from dcmpl.weights.backbones import load_backbone


@dataclass
class Hub:
    """One upload on the hub, the local cache, and the names of what was fetched."""

    remote: Path
    cache: Path
    online: bool = True
    fetched: list[str] = field(default_factory=list)

    def snapshot_download(
        self, name: str, allow_patterns: Sequence[str], local_files_only: bool
    ) -> str:
        """As huggingface_hub's: a cached folder is given whatever is in it."""
        assert name == "some/clip"
        if not local_files_only:
            if not self.online:
                raise OSError("no route to the hub")
            self.cache.mkdir(exist_ok=True)
            for file in sorted(self.remote.iterdir()):
                wanted = any(fnmatch(file.name, pattern) for pattern in allow_patterns)
                if wanted and not (self.cache / file.name).exists():
                    shutil.copy(file, self.cache)
                    self.fetched.append(file.name)
        if not self.cache.exists():
            raise LocalEntryNotFoundError("not cached")
        return str(self.cache)


@pytest.fixture
def hub(tmp_path: Path, small_backbone: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The small backbone on the hub, an unrelated file beside it, and an empty cache."""
    remote = Path(shutil.copytree(small_backbone, tmp_path / "remote"))
    (remote / "flax_model.msgpack").write_bytes(bytes(99))
    monkeypatch.chdir(tmp_path)  # where no folder has the name of the id
    hub = Hub(remote, tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    return hub


def as_bin(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")


def test_an_upload_is_fetched_without_what_is_not_needed(hub: Hub) -> None:
    as_bin(hub.remote)
    assert load_backbone("some/clip").name == "some/clip"
    assert hub.fetched == ["config.json", "model.safetensors", "tokenizer.json"]


def test_what_is_cached_is_used_without_network(hub: Hub) -> None:
    load_backbone("some/clip")
    hub.online = False
    load_backbone("some/clip")


def test_pytorch_model_bin_is_fetched_where_there_is_nothing_else(hub: Hub) -> None:
    as_bin(hub.remote)
    (hub.remote / "model.safetensors").unlink()
    load_backbone("some/clip")
    assert hub.fetched == ["config.json", "tokenizer.json", "pytorch_model.bin"]
    hub.online = False
    load_backbone("some/clip")


def test_files_of_open_clip_are_fetched(hub: Hub) -> None:
    """Their weights' name ends in that of Hugging Face's."""
    record = json.loads((hub.remote / "config.json").read_text())
    vision, text = record["vision_config"], record["text_config"]
    sizes = {"width": vision["hidden_size"], "layers": 3, "head_width": 16, "mlp_ratio": 1.5}
    words = {"width": text["hidden_size"], "layers": 3, "heads": 2, "mlp_ratio": 2.0}
    words |= {"vocab_size": 640, "context_length": 40}
    sizes |= {"image_size": 32, "patch_size": 8}
    model = {"embed_dim": 24, "quick_gelu": True, "vision_cfg": sizes, "text_cfg": words}
    (hub.remote / "open_clip_config.json").write_text(json.dumps(model))
    (hub.remote / "config.json").unlink()
    (hub.remote / "model.safetensors").rename(hub.remote / "open_clip_model.safetensors")
    load_backbone("some/clip")
    assert "open_clip_model.safetensors" in hub.fetched


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_what_an_upload_lacks_is_named(hub: Hub, file: str) -> None:
    (hub.remote / file).unlink()
    with pytest.raises(WeightsError, match=rf"^expected .*, got no {file}$"):
        load_backbone("some/clip")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_what_the_cache_lacks_is_fetched(hub: Hub, file: str) -> None:
    """Another program may have left there only what it needs, the weights for example."""
    shutil.copytree(hub.remote, hub.cache)
    (hub.cache / file).unlink()
    load_backbone("some/clip")
    assert hub.fetched == [file]


def test_without_cache_and_network_the_reason_is_told(hub: Hub) -> None:
    hub.online = False
    with pytest.raises(WeightsError, match=r"^expected to find the backbone some/clip .*no route"):
        load_backbone("some/clip")


def test_a_folder_of_that_name_comes_before_the_hub(hub: Hub) -> None:
    shutil.copytree(hub.remote, Path("some") / "clip")
    load_backbone("some/clip")
    assert hub.fetched == []
