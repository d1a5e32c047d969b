"""From scans to training data: windows, prompts, slices on disk."""
