"""Decoders of text for language modelling: a small Llama from scratch, or a pretrained one; the next token at each place.

Logits are (B, V, L), token ids before places, as `criterion` says; the state of every place is a feature, (B, L, D).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cl_framework.benchmarks.base import Benchmark
from cl_framework.checks import check_range
from cl_framework.errors import ConfigurationError
from cl_framework.models.from_transformers import check_fit, check_same, load_pretrained
from cl_framework.models.text import import_transformers, vocabulary_of
from cl_framework.registry import register_model

_DEVIATION = 0.02  # of initial weights, as of all of a Llama's
_FAULT = (
    "its logits are not those of a linear head on its last states under a causal mask, which is what pretrained_decoder makes of a model"
)


@dataclass(frozen=True)
class DecoderOptions:
    width: int = 128  # of the states, >= 2, an even multiple of `heads`
    layers: int = 2  # >= 1
    heads: int = 4  # of attention, >= 1
    key_value_heads: int | None = None  # of grouped-query attention, a divisor of `heads`; default: as many
    hidden: int | None = None  # of the feed-forward part, >= 1; default: 8/3 of the width, as in Llama
    tied: bool = False  # one matrix for the embedding and the head

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads"):
            check_range(name, getattr(self, name), low=1)
        if self.width % (2 * self.heads):
            raise ValueError(f"width={self.width} is no even multiple of heads={self.heads}")
        if self.key_value_heads is not None:
            check_range("key_value_heads", self.key_value_heads, low=1, high=self.heads)
            if self.heads % self.key_value_heads:
                raise ValueError(f"key_value_heads={self.key_value_heads} does not divide heads={self.heads}")
        if self.hidden is not None:
            check_range("hidden", self.hidden, low=1)


@dataclass(frozen=True)
class PretrainedDecoderOptions:
    source: str  # a folder, package:NAME, or a name on the hub


class TokenHead(nn.Linear):
    """States (B, L, D) -> logits (B, V, L)."""

    def forward(self, states: Tensor) -> Tensor:
        return super().forward(states).transpose(1, 2)


class Decoder(nn.Module):
    """A causal transformer and a head that names the next token at each place."""

    def __init__(self, body: nn.Module, head: TokenHead) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def features(self, inputs: dict[str, Tensor]) -> Tensor:
        """{input_ids (B, L), attention_mask (B, L)} -> (B, L, D)."""
        mask = causal(inputs["attention_mask"], self.head.weight.dtype)
        states: Tensor = self.body(input_ids=inputs["input_ids"], attention_mask=mask, use_cache=False).last_hidden_state
        return states

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """-> (B, V, L)."""
        logits: Tensor = self.head(self.features(inputs))
        return logits


def causal(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Which tokens may be looked at, (B, L) bool, as what is added to the scores of attention, (B, 1, L, L): none that comes later.

    A place always sees itself, so that no row of scores is empty.
    """
    length = mask.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=mask.device)
    seen = (earlier & mask[:, None, None, :]) | itself
    return torch.zeros(seen.shape, dtype=dtype, device=mask.device).masked_fill(~seen, torch.finfo(dtype).min)


@register_model("decoder", DecoderOptions)
def decoder(options: DecoderOptions, benchmark: Benchmark) -> nn.Module:
    """A small Llama from scratch, for benchmarks of language modelling."""
    transformers, vocabulary = import_transformers(), vocabulary_of(benchmark, "decoder")
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=options.width,
        intermediate_size=options.hidden or -(-8 * options.width // 3),
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=options.key_value_heads or options.heads,
        max_position_embeddings=benchmark.input_shape[0],
        initializer_range=_DEVIATION,
        attn_implementation="eager",  # the fused kernel of the host has no batching rule: squared gradients row by row would be slow
    )
    body = transformers.LlamaModel(config)
    head = TokenHead(options.width, vocabulary, bias=False)
    if options.tied:
        head.weight = body.embed_tokens.weight
    else:
        nn.init.normal_(head.weight, std=_DEVIATION)
    return Decoder(body, head)


@register_model("pretrained_decoder", PretrainedDecoderOptions)
def pretrained_decoder(options: PretrainedDecoderOptions, benchmark: Benchmark) -> nn.Module:
    """A pretrained causal language model of transformers; the benchmark's tokenizer must be its own.

    Ids that its embedding and its head have beyond the tokenizer's, as padding, are cut off: classes are the tokenizer's ids.
    """
    transformers, vocabulary = import_transformers(), vocabulary_of(benchmark, "decoder")
    model = load_pretrained(transformers.AutoModelForCausalLM, options.source, attn_implementation="eager")
    model = model.float()  # small steps would be rounded away in half precision, whatever the file holds
    output = model.get_output_embeddings()
    if not isinstance(output, nn.Linear):
        raise ConfigurationError(f"model.source={options.source}: {_FAULT}. Choose another model.")
    known = output.weight.shape[0]
    check_fit(benchmark, options.source, known, getattr(model.config, "max_position_embeddings", None))
    if known > vocabulary:
        model.resize_token_embeddings(vocabulary)
        output = model.get_output_embeddings()
    head = TokenHead(output.in_features, vocabulary, bias=output.bias is not None)
    head.weight, head.bias = output.weight, output.bias
    made = Decoder(model.base_model, head)

    def own_and_ours(inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits at each token of the text, (N, V)."""
        mask = inputs["attention_mask"]
        own = model(input_ids=inputs["input_ids"], attention_mask=mask.long(), use_cache=False).logits
        return own[mask], made(inputs).transpose(1, 2)[mask]

    check_same(own_and_ours, benchmark, options.source, getattr(model.config, "pad_token_id", None), _FAULT)
    return made
