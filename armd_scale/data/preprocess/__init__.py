"""A corpus into token shards: what is read, cut into units, encoded by workers and joined."""
