"""Settings from flags, environment, files and defaults, validated in one go."""
