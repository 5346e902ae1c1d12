"""Weight updates: learning rate schedule, parameter groups, AdamW under ZeRO, EMA."""
