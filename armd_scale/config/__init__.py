"""What a run is: typed recipes from YAML, rules they obey, numbers that follow from them."""
