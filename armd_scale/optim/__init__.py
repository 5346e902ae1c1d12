"""How weights are updated: learning rate, parameter groups, ZeRO, running averages."""
