"""What the parameters of a model are for: its matrices by category and layer, in MLPs, convolutional networks and transformers alike.

Read from types and names of modules alone, so that it works for models that know nothing of this framework. Where a model leaves doubt:

- A **layer** is the first thing on the way down that lies in an `nn.Sequential` or `nn.ModuleList` and is none itself: a transformer's
  block, a residual block, an MLP's hidden layer. A single module outside of any is a layer of its own (the stem of a ResNet). A norm
  right after a single module belongs to that one's layer; a norm right after anything else, the final norm, to none.
- **Attention** is what is named so; a fused projection is one tensor and so one matrix.
- **Feed-forward** is what is named so, experts included, and what else a layer with attention holds of linear modules.
- **Head** is what is called so outside of all layers, with all it contains; else the last linear module of a model without attention.
- **Embedding** is a table, and what is named so outside of all layers: patches, positions, class tokens.
- **Low-rank factors** of one layer, by the names that peft gives them, are one matrix: while one rests at zero, where it starts, the other
  learns nothing.
- **Other** is what fits none: norms outside of layers, parameters that no known module owns, routers of experts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from torch import nn

ATTENTION, FEED_FORWARD, NORM, CONVOLUTION, LINEAR = "attention", "feed_forward", "norm", "convolution", "linear"
EMBEDDING, HEAD, OTHER = "embedding", "head", "other"
SELECTABLE = (ATTENTION, FEED_FORWARD, NORM, CONVOLUTION, LINEAR)  # what half fine-tuning chooses among

# Names in common use: transformers (Llama, Mixtral, GPT-2, BERT, T5, ViT), torchvision, this project's models.
_ATTENTION = re.compile(r"(attn|attention|(^|\.)([qkvo]_proj|out_proj|qkv|qkv_proj|in_proj|query|key|value)(\.|$))", re.IGNORECASE)
_FEED_FORWARD = re.compile(
    r"(^|\.)(mlp|ffn|feed_forward|intermediate|(gate|up|down|gate_up)_proj|fc1|fc2|c_fc|linear1|linear2)(\.|$)", re.IGNORECASE
)
_ROUTER = re.compile(r"(^|\.)(gate|router)$", re.IGNORECASE)
_EMBEDDING = re.compile(r"(embed|token|^position|^wte$|^wpe$|^conv_proj$)", re.IGNORECASE)
_FACTOR = re.compile(r"\.lora_[AB](\.|$)")
_HEADS = ("head", "heads", "lm_head", "classifier", "score", "fc")
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_CONTAINERS = (nn.Sequential, nn.ModuleList)


@dataclass(frozen=True)
class Matrix:
    """The parameters of one module: a weight, and the bias that goes with it. A fused projection is one matrix, a low-rank pair too."""

    module: str  # its path in the model; of a low-rank pair that of the layer it adapts
    parameters: tuple[str, ...]
    size: int  # entries
    category: str  # one of SELECTABLE, embedding, head or other
    layer: str  # path of the layer it belongs to, "" if it is in none


@dataclass(frozen=True)
class _Place:
    path: str
    module: nn.Module
    layer: str
    category: str | None  # of all that it contains, where its name says so


def matrices(model: nn.Module) -> list[Matrix]:
    """Every module with parameters of its own, in the model's order; a tensor that is shared counts once, under its first name."""
    found = []
    seen: set[int] = set()
    for place in _places(_Place("", model, "", None), set()):
        own = [(name, parameter) for name, parameter in place.module.named_parameters(recurse=False) if id(parameter) not in seen]
        if own:
            seen.update(id(parameter) for _, parameter in own)
            names = tuple(f"{place.path}.{name}" if place.path else name for name, _ in own)
            size = sum(parameter.numel() for _, parameter in own)
            found.append(Matrix(place.path, names, size, category_of(place), place.layer))
    return _with_a_head(_beside_attention(_paired(found)))


def trained_share(model: nn.Module, frozen: Iterable[str]) -> float:
    """The share of a model's parameters that is not among the `frozen` names, in [0, 1]; 1 of a model that has none."""
    names = set(frozen)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    total = sum(sizes.values())
    return sum(size for name, size in sizes.items() if name not in names) / total if total else 1.0


# --- where a module is ---


def _places(place: _Place, seen: set[int]) -> Iterator[_Place]:
    """A module and all within it, in the order of `named_modules`."""
    seen.add(id(place.module))
    yield place
    before = ""  # the layer of a single module right before
    for name, child in place.module.named_children():
        if id(child) in seen or next(child.parameters(), None) is None:
            continue
        path = f"{place.path}.{name}" if place.path else name
        layer, category = place.layer, place.category
        if not layer and category is None:
            single = next(child.children(), None) is None or isinstance(child, nn.MultiheadAttention)
            if name.lower() in _HEADS:
                category = HEAD
            elif _EMBEDDING.search(name):
                category = EMBEDDING
            elif _is_norm(child):
                layer = before
            elif type(child) not in _CONTAINERS and (single or type(place.module) in _CONTAINERS):
                layer = path
            before = layer if single else ""
        yield from _places(_Place(path, child, layer, category), seen)


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, _NORMS) or type(module).__name__.lower().endswith("norm")


# --- what a module is ---


def category_of(place: _Place) -> str:
    """The category of what a module owns itself: by what it lies in, by its type, then by the names within its layer."""
    module = place.module
    if place.category is not None:
        return place.category
    if _is_norm(module):
        return NORM if place.layer else OTHER
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return EMBEDDING
    if isinstance(module, nn.MultiheadAttention):
        return ATTENTION
    if isinstance(module, nn.modules.conv._ConvNd):
        return CONVOLUTION
    within = place.path[len(place.layer) :] if place.path != place.layer else place.path.rpartition(".")[2]
    names = [name for name, parameter in module.named_parameters(recurse=False) if parameter.ndim >= 2]
    if isinstance(module, nn.Linear) or names == ["weight"]:  # GPT-2's linear module is another class
        if _ROUTER.search(within):
            return OTHER
        if _ATTENTION.search(within):
            return ATTENTION
        return FEED_FORWARD if _FEED_FORWARD.search(within) else LINEAR
    fused_experts = bool(names) and all(_FEED_FORWARD.search(name) for name in names)
    return FEED_FORWARD if fused_experts else OTHER


# --- what only the whole model shows ---


def _paired(found: list[Matrix]) -> list[Matrix]:
    """Low-rank factors of the same layer as one matrix, in the place of the first."""
    whole: dict[str, Matrix] = {}
    for matrix in found:
        factor = _FACTOR.search(matrix.module)
        module = matrix.module[: factor.start()] if factor else matrix.module
        if factor and module in whole:
            first = whole[module]
            matrix = replace(first, parameters=first.parameters + matrix.parameters, size=first.size + matrix.size)
        elif factor:
            matrix = replace(matrix, module=module, layer=module if _FACTOR.search(matrix.layer) else matrix.layer)
        whole[module] = matrix
    return list(whole.values())


def _beside_attention(found: list[Matrix]) -> list[Matrix]:
    """Linear modules beside attention are feed-forward, whatever their names."""
    attending = {matrix.layer for matrix in found if matrix.category == ATTENTION and matrix.layer}
    return [replace(one, category=FEED_FORWARD) if one.category == LINEAR and one.layer in attending else one for one in found]


def _with_a_head(found: list[Matrix]) -> list[Matrix]:
    """If nothing is called a head and there is no attention, the last linear module is it."""
    if not {HEAD, ATTENTION} & {matrix.category for matrix in found}:
        linear = [place for place, matrix in enumerate(found) if matrix.category in (LINEAR, FEED_FORWARD)]
        for place in linear[-1:]:
            found[place] = replace(found[place], category=HEAD, layer="")
    return found
