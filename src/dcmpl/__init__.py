"""Scores of AI-generated images: how good each looks, how well it follows its prompt.

Importing this package costs nothing; a public name brings its module when it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dcmpl.config import ModelConfig, TrainConfig
    from dcmpl.data.datasets import load_table
    from dcmpl.data.table import MosScale
    from dcmpl.errors import DataError, DcmplError, RunError, UsageError, WeightsError
    from dcmpl.model.dcmpl import DCMPL
    from dcmpl.scoring.results import Score, Scores
    from dcmpl.scoring.scorer import Scorer
    from dcmpl.weights.backbones import load_backbone

__version__ = "0.3.0"

__all__ = [
    "DCMPL",
    "DataError",
    "DcmplError",
    "ModelConfig",
    "MosScale",
    "RunError",
    "Score",
    "Scorer",
    "Scores",
    "TrainConfig",
    "UsageError",
    "WeightsError",
    "load_backbone",
    "load_table",
]

_HOMES = {
    "DCMPL": "model.dcmpl",
    "ModelConfig": "config",
    "MosScale": "data.table",
    "Score": "scoring.results",
    "Scorer": "scoring.scorer",
    "Scores": "scoring.results",
    "TrainConfig": "config",
    "load_backbone": "weights.backbones",
    "load_table": "data.datasets",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
