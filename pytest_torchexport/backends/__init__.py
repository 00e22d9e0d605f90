"""The ways to export a model: one protocol, one registry, one file per family."""
