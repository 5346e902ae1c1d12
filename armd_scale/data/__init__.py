"""From a corpus to token shards, and from token shards to the batches that a model trains on."""
