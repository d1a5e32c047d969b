"""From scans to what a network eats: windows, prompts, slices on disk."""
