"""The two-stream ARMD transformer on megatron-core's parallel layers: what one pipeline stage computes."""
