"""The papers' tables, with the published rows beside those of given checkpoints."""
