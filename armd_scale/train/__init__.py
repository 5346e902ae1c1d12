"""The training job: build everything from a recipe, loop over steps, survive being stopped."""
