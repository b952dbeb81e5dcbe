"""Per-runner option presets."""
