"""Pipeline partition, schedule and point-to-point messages."""
