"""How good a network is: the likelihood of held-out text under an order."""
