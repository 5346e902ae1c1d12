"""The two-stream ARMD transformer on megatron-core's parallel layers."""
