"""What the parameters of a model are for: its matrices by category and layer, in MLPs, convolutional networks and transformers alike."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

ATTENTION, FEED_FORWARD, NORM, CONVOLUTION, LINEAR = "attention", "feed_forward", "norm", "convolution", "linear"
EMBEDDING, HEAD, OTHER = "embedding", "head", "other"
SELECTABLE = (ATTENTION, FEED_FORWARD, NORM, CONVOLUTION, LINEAR)  # what half fine-tuning chooses among

# Names in common use: transformers (Llama, GPT-2, BERT, ViT), torchvision, this project's models.
_ATTENTION = re.compile(
    r"(^|[._])(attn|attention|self_attn|q_proj|k_proj|v_proj|o_proj|out_proj|qkv|in_proj|c_attn)([._]|$)", re.IGNORECASE
)
_FEED_FORWARD = re.compile(
    r"(^|[._])(mlp|ffn|feed_forward|intermediate|gate_proj|up_proj|down_proj|fc1|fc2|c_fc|linear1|linear2)([._]|$)", re.IGNORECASE
)
_BERT_OUTPUT = re.compile(r"\.\d+\.output\.dense$")
_EMBEDDING = re.compile(r"(embed|token|position|^wte$|^wpe$)", re.IGNORECASE)
_HEADS = ("head", "heads", "lm_head", "classifier", "score", "fc", "heads.head")
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Matrix:
    """The parameters of one module: a weight, and the bias that goes with it. A fused projection is one matrix."""

    module: str  # its path in the model
    parameters: tuple[str, ...]
    size: int  # entries
    category: str  # one of SELECTABLE, embedding, head or other
    layer: str  # path of the block it belongs to, "" if it is in none


def matrices(model: nn.Module) -> list[Matrix]:
    """Every module with parameters of its own, in the model's order; one that is shared counts once, under its first name."""
    found = []
    seen: set[int] = set()
    for path, module in model.named_modules():
        own = [(name, parameter) for name, parameter in module.named_parameters(recurse=False) if id(parameter) not in seen]
        if own:
            seen.update(id(parameter) for _, parameter in own)
            names = tuple(f"{path}.{name}" if path else name for name, _ in own)
            size = sum(parameter.numel() for _, parameter in own)
            found.append(Matrix(path, names, size, category_of(path, module), layer_of(path)))
    return found


def category_of(path: str, module: nn.Module) -> str:
    """The category of a module: by its type, then by the names in its path."""
    layer = layer_of(path)
    if isinstance(module, _NORMS) or type(module).__name__.endswith("Norm"):
        return NORM if layer else OTHER  # a final norm belongs to no block and is left alone
    if isinstance(module, nn.Embedding) or (not layer and _EMBEDDING.search(path)) or isinstance(module, nn.ParameterList):
        return EMBEDDING
    if path in _HEADS:
        return HEAD
    if isinstance(module, nn.MultiheadAttention) or (_ATTENTION.search(path) and _has_matrix(module)):
        return ATTENTION
    if (_FEED_FORWARD.search(path) or _BERT_OUTPUT.search(path)) and _has_matrix(module):
        return FEED_FORWARD
    if isinstance(module, _CONVOLUTIONS):
        return CONVOLUTION
    return LINEAR if isinstance(module, nn.Linear) else OTHER


def _has_matrix(module: nn.Module) -> bool:
    return any(parameter.ndim >= 2 for parameter in module.parameters(recurse=False))


def layer_of(path: str) -> str:
    """The block of a module: its path up to the end of the first run of numbers; "" where there is none."""
    parts = path.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdigit()]
    if not numbers:
        return ""
    end = numbers[0]
    while end + 1 in numbers:
        end += 1
    return ".".join(parts[: end + 1])


def trained_share(model: nn.Module, frozen: Iterable[str]) -> float:
    """The share of a model's parameters that is not among the `frozen` names, in [0, 1]."""
    names = set(frozen)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return sum(size for name, size in sizes.items() if name not in names) / sum(sizes.values())
