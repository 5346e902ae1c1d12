"""Corpus to token shards, and token shards to the batches that a model is trained on."""
