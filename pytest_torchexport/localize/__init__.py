"""Where an exported program and eager part first."""
