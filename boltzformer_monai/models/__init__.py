"""Models as files: what is known of public ones, how they get here, and the folder that a model is."""
