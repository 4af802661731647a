"""Text: corpora, tokens, and the benchmarks made of them. Token ids are the items, so memories hold what the model reads."""
